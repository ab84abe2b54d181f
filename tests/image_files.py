"""Helpers that make image files, also of kinds that Pillow cannot write, byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Let Pillow write an image in a format, such as ``PNG``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int,
    depth: int,
    color: int,
    *rows: bytes,
    transparency: bytes = b"",
    palette: bytes = b"",
) -> bytes:
    """Write a PNG file (PNG specification, third edition).

    Args:
        width: pixels in a row.
        depth: bits of a sample.
        color: colour type, such as `RGB`.
        rows: the pixels of each row, packed in the bit depth.
        transparency: content of the tRNS chunk.
        palette: content of the PLTE chunk.
    """
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparency)]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc(kind + content))
        for kind, content in chunks
        if content or kind == b"IEND"
    )


def crc(data: bytes) -> int:
    return zlib.crc32(data)


def gray_tiff(
    width: int, bits: int, data: bytes, *, white_is_zero: bool = False, sample_format: int = 1
) -> bytes:
    """Write an uncompressed, little-endian gray TIFF file with a single row (TIFF 6.0).

    Args:
        width: pixels in the row.
        bits: bits of a pixel.
        data: the pixels.
        white_is_zero: whether 0 means white.
        sample_format: 1 for unsigned integers, 2 for signed ones, 3 for floats.
    """
    tags = [
        (256, width),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 0),
        (277, 1),
        (278, 1),
        (279, len(data)),
        (339, sample_format),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        directory += struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + data
