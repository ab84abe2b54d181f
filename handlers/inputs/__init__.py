"""Encoded images become the tensors that members take.

Enters: the bytes of one image file, or its pixels.
Leaves: pixels (channels, height, width), and float32 batches (N, channels, height, width), one for
each distinct preprocessing.
Must not import: `requests`, `members` or anything above them. An image is decoded the same way
wherever it came from.
"""
