"""An archive's record of its files, and the check that every byte of the archive agrees with it.

Enters: a `.mar` file, or the folder that TorchServe extracted one to.
Leaves: the archive's record, whose digest every answer names, or an error that lists each problem.
Must not import: anything but `base` and `spec`. The worker checks the archive before it runs any
other code from it.
"""
