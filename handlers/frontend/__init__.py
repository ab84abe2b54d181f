"""The worker's side of TorchServe's frontend protocol, without any of TorchServe's types.

Enters: bytes from the frontend's socket, and the file by which the server's owner holds a worker.
Leaves: the parts of each request, in order and limited in number.
Must not import: anything but `base`. `entry` alone puts these functions into TorchServe's worker.
"""
