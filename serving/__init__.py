"""Everything that talks to a running TorchServe: its life cycle, its changes, and its clients.

Enters: the addresses and tokens of a server, or the settings with which to start one.
Leaves: a server whose workers are READY, changes that lose no request, predictions.
Must not import: `archiver` or `tuning`. Serving an archive needs none of what built it.
"""
