"""Encoded images become the tensors that members take.

Enters: bytes of one image, or its pixels.
Leaves: uint8 pixels (3, height, width), and float32 batches (N, channels, height, width), one for
each distinct preprocessing.
Must not import: `requests`, `members` or anything above them. An image is decoded the same way
wherever it came from.
"""
