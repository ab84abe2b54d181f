"""Samples of all requests become inputs for the members, or scores that are known already.

Enters: the parsed requests of one batch, and which members each of them asks.
Leaves: for each request its decoded samples, cached scores, and the errors of single samples.
Must not import: `decisions`, `answers`, `service`. It knows no policy and writes no answer.
"""
