"""Estimates from an image's header how much time and memory decoding the file takes.

Time is counted in pixels of a PNG file, of which 200 million are decoded in a second. The constants
were measured on 2000 x 2000 pixels of noise, of smooth colours and of black, with Pillow 13 on an
AMD EPYC: the slowest of the three, rounded up.
"""

from __future__ import annotations

from PIL import Image

from .metadata_bounds import number_of_tags

_MEMORY_FACTOR = {"JPEG2000": 3, "WEBP": 3, "AVIF": 2}
"""Format -> memory that decoding a pixel takes, divided by the 7 bytes of other formats.

OpenJPEG keeps four bytes for each component, WebP's decoder two canvases, libavif one.
"""

_COST_PER_PIXEL = {"JPEG2000": 6, "WEBP": 2, "AVIF": 2, "TIFF": 2}
_DEFAULT_COST_PER_PIXEL = 1
_COST_PER_BYTE = {"JPEG2000": 16, "AVIF": 10, "WEBP": 8}
DEFAULT_COST_PER_BYTE = 2
_COST_PER_BYTE_OF_PLAIN_TEXT = 40
"""Plain text: PPM files that write their numbers in digits."""

_COST_PER_TAG = 1600
"""Pillow takes 4 microseconds to read a tag of metadata, and reads it twice."""

_COST_PER_PIXEL_AND_SCAN = 0.3
"""A progressive JPEG file goes over its pixels once for each scan."""

_ARITHMETIC_CODING_FACTOR = 4
_INTERLACING_FACTOR = 2
_TRANSPARENCY_FACTOR = 2
_LZMA_FACTOR = 8
_16_BITS_FACTOR = 2
"""Of a PNG file, of whose 16 bits per channel Pillow keeps 8."""

_DEEP_GRAY_FACTOR = 2
"""Of images whose values are 16-bit or 32-bit numbers, which become levels in NumPy."""

_TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_PNG_DEPTH_AT = 24
_TIFF_COMPRESSION, _TIFF_LZMA = 259, 34925


def memory_factor(file_format: str) -> int:
    """Return how many times the memory of a PNG file's pixel a pixel of this format takes."""
    return _MEMORY_FACTOR.get(file_format, 1)


def cost_of_pixels(image: Image.Image, data: bytes, pixels: int) -> int:
    """Estimate the time to decode the pixels of a file, in pixels of a PNG file.

    Args:
        image: opened, not loaded.
        data: the file.
        pixels: number of pixels to decode, the padding of tiles included.
    """
    file_format = image.format or ""
    cost = float(_COST_PER_PIXEL.get(file_format, _DEFAULT_COST_PER_PIXEL) * pixels)
    if file_format in ("JPEG", "MPO"):
        # The marker of a scan cannot occur in compressed data, where a 0 follows each 0xFF.
        cost += pixels * _COST_PER_PIXEL_AND_SCAN * (data.count(b"\xff\xda") - 1)
        if _is_arithmetically_coded(data):
            cost *= _ARITHMETIC_CODING_FACTOR
    elif file_format == "PNG":
        if image.info.get("interlace"):
            cost *= _INTERLACING_FACTOR
        if data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 1] == b"\x10":
            cost *= _16_BITS_FACTOR
    elif file_format == "TIFF" and _compression(image) == _TIFF_LZMA:
        cost *= _LZMA_FACTOR
    if image.mode.startswith(("I", "F")):
        cost *= _DEEP_GRAY_FACTOR
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        cost *= _TRANSPARENCY_FACTOR
    if image.info.get("icc_profile"):
        cost += pixels
    return int(cost)


def cost_of_bytes(image: Image.Image, data: bytes) -> int:
    """Estimate the time to read the bytes and the metadata of a file, in pixels of a PNG file.

    Args:
        image: opened, not loaded.
        data: the file.
    """
    file_format = image.format or ""
    cost_per_byte = _COST_PER_BYTE.get(file_format, DEFAULT_COST_PER_BYTE)
    if file_format == "PPM" and data[:2] in (b"P1", b"P2", b"P3"):
        cost_per_byte = _COST_PER_BYTE_OF_PLAIN_TEXT
    if file_format in ("JPEG", "MPO") and _is_arithmetically_coded(data):
        cost_per_byte *= _ARITHMETIC_CODING_FACTOR
    return cost_per_byte * len(data) + _COST_PER_TAG * number_of_tags(image)


def _is_arithmetically_coded(jpeg: bytes) -> bool:
    return b"\xff\xc9" in jpeg or b"\xff\xca" in jpeg


def _compression(image: Image.Image) -> int | None:
    value = getattr(image, "tag_v2", {}).get(_TIFF_COMPRESSION)
    return value if isinstance(value, int) else None
