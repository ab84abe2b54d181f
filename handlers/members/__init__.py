"""Files of the ensemble become executables: one member, or several that run as one.

Enters: a spec, the folder with its files, a device.
Leaves: functions from a batch (N, channels, height, width) to raw outputs, each compared with the
saved member before it is used.
Must not import: `engine`, which schedules them, `requests`, `decisions`, `policies` or `answers`.
"""
