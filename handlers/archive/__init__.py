"""What an archive says of itself, and whether every byte of it agrees.

Enters: a `.mar` file, or the folder that TorchServe extracted it to.
Leaves: its checked record with the digest that answers name, or an error that names each problem.
Must not import: anything but `base` and `spec`. The worker checks the archive before it runs any
other code from it.
"""
