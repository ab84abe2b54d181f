"""Files of the ensemble become executables: what computes one member, or several at once.

Enters: a spec, the folder with its files, the example inputs, a device.
Leaves: `Executables`: functions from a batch (N, channels, height, width) to raw outputs (members,
N, outputs), each compared with the saved member before it is used.
Must not import: `engine`, which schedules the executables, `requests`, `decisions`, `policies` or
`answers`.
"""
