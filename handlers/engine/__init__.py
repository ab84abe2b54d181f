"""All members on one batch of samples.

Enters: decoded samples of all requests, which members each of them needs, and its deadline.
Leaves: scores (members, samples, score labels), and the reason wherever there are none.
Must not import: `requests`, `decisions`, `policies`, `answers`. It knows nothing of clients.
"""
