"""The worker's side of TorchServe's frontend protocol, without any of TorchServe's types.

Enters: bytes from the frontend's socket. Leaves: the parts of each request, in order and bounded.
Must not import: anything but `base`. `entry` alone puts these functions into TorchServe's worker.
"""
