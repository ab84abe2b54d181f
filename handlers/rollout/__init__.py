"""A candidate is tried beside the current ensemble, in the same worker (`rollout` in the spec).

Enters: the requests of a batch, and as a shadow their decoded samples and results.
Leaves: which side answers a request (`canary`), or counts of how the candidate's decisions differ
from the answers (`shadow`).
Must not import: `service`, `deployment` or `entry`.

As a shadow the new members run in a process of their own (`candidate_process`, `candidate_main`).
Whatever happens in it, even an endless loop or a crash of the interpreter, the worker does not
wait for it, and the operating system prefers the worker's threads to it.
"""
