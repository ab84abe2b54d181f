"""The worker's side of TorchServe's frontend protocol, without any of TorchServe's types.

Enters: bytes from the frontend's socket, and the wish of the server's owner to hold this worker.
Leaves: the parts of each request, in order and limited in number.
Must not import: anything but `base`. `entry` alone puts these functions into TorchServe's worker.
"""
