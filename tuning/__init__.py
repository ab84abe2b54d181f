"""Labelled data choose a policy and its operating point; a running server is measured.

Enters: a spec or a running endpoint, labelled images, and a target such as ``recall>=0.99``.
Leaves: metrics with their intervals, a policy that is written into the spec, a report; settings of
a server that keep to a latency bound.
Must not import: `torchserve_ensemble.commands`. It is the only package above `archiver` and
`serving`, and may use both.
"""
