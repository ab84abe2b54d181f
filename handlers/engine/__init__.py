"""Runs all members on one batch of samples.

Enters: the decoded samples of all requests; for each sample its members and its deadline.
Leaves: scores (members, samples, score labels); where a member has none for a sample, the reason.
Must not import: `requests`, `decisions`, `policies`, `answers`. It knows nothing of clients.
"""
