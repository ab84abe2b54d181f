"""Decodes samples to inputs of limited size, or finds their scores in the cache.

Enters: the samples of all requests of a batch, each request with its members and its budget.
Leaves: for each request the inputs that members run on, the scores that the cache already holds,
and one error for each sample that could not be read.
Must not import: `decisions`, `policies`, `answers`, `service`, `deployment` or `entry`.
"""
