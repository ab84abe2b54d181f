"""Choose a policy and its threshold from labelled images, and choose settings of a server.

Enters: a spec or a running endpoint, labelled images, and a target such as ``recall>=0.99``.
Leaves: a policy that is written into the spec together with the guarantee that was shown for it on
held-out images; metrics with their intervals; a report; settings of a server that keep to a latency
bound.
Must not import: `torchserve_ensemble.commands`. It is the only package above `archiver` and
`serving`, and may use both.
"""
