"""Builds an archive from a spec and the files that it names. Only build machines need this package.

It also compares archives, and converts checkpoints.

Enters: an ensemble's YAML file, the members' files, example images for compiling and quantizing.
Leaves: one `.mar` file that stock TorchServe loads, with a record of the SHA-256 of every file.
Must not import: `serving` or `tuning`. Building an archive needs no server.
"""
