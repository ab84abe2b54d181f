"""Loads the members of an ensemble as executables: each computes one member, or several at once.

Enters: a spec, the folder with its files, the example inputs, a device.
Leaves: `Executables`, which are functions from a batch (N, channels, height, width) to raw outputs
(members, N, outputs). Each was compared with the saved members before it is used.
Must not import: `engine`, which schedules the executables, `requests`, `decisions`, `policies` or
`answers`.
"""
