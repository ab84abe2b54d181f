"""Reads the header of an image file, which says what decoding the file will take.

A file of a few hundred bytes can demand minutes of work and gigabytes of memory. Its header shows
that before any pixel is decoded. Two numbers follow from it: how many pixels decoding holds in
memory, and a cost in pixels, in which a pixel of a slow format counts several times.
"""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass

from PIL import Image

from .decoding_cost import cost_of_bytes, cost_of_pixels, memory_factor
from .metadata_bounds import (
    TooManyPartsError,
    check_exif_segments,
    check_jpeg2000_tiles,
    check_tiff_tags,
    pixels_with_padding,
)

Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
]
"""Pillow's names of the formats that are read."""

MAX_SIDE_PIXELS = 65_535
"""Largest width and height, as in JPEG. Resizing takes 16 bytes for each pixel of a side."""

_BASE_READS = 4096
_BYTES_PER_READ = 64
"""How often Pillow may read while it opens a file: `_BASE_READS` times, and once more for every
`_BYTES_PER_READ` bytes of the file.

Pillow parses headers in Python. An ordinary file takes one read for some thousand bytes. Without a
bound, a megabyte of empty PNG chunks, or of bytes between JPEG markers, takes seconds.
"""

# `warnings.catch_warnings` changes settings of the whole process.
_warnings_lock = threading.Lock()


def too_large(
    width: int, height: int, max_pixels: int, *, pixels: int | None = None, remark: str = ""
) -> str | None:
    """Describe what is too large about an image, and name the limit; None if nothing is.

    Args:
        width: width in pixels.
        height: height in pixels.
        max_pixels: `Limits.max_pixels`.
        pixels: number of pixels that decoding holds in memory; left out: width times height.
        remark: explains why `pixels` is more than width times height.
    """
    size = f"{width} x {height} pixels{remark}"
    if (width * height if pixels is None else pixels) > max_pixels:
        return (
            f"{size}; the limit is {max_pixels} pixels (limits.max_pixels in the spec): send a "
            "smaller image"
        )
    if max(width, height) > MAX_SIDE_PIXELS:
        return f"{size}; a side may have {MAX_SIDE_PIXELS} pixels: send a smaller image"
    return None


class _BoundedFile(io.BytesIO):
    """A file in memory that may be read only as often as ordinary files of its size are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _BASE_READS + len(data) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooManyPartsError("it consists of too many pieces; save it anew")
        return super().read(size)


@dataclass(frozen=True)
class ImageHeader:
    """A file whose header was read.

    Attributes:
        image: Pillow's image, not loaded.
        pixels: number of pixels that decoding holds in memory, the padding of tiles included; a
            pixel of a format that takes more memory counts several times.
        pixel_cost: time to decode the pixels, in pixels of a PNG file that take as long.
        byte_cost: time to read the bytes of the file, in the same unit. That of an animation is
            for all of its frames together.
    """

    image: Image.Image
    pixels: int
    pixel_cost: int
    byte_cost: int

    def excess(self, max_pixels: int) -> str | None:
        """Describe what is too large about the image, and name the limit; None if nothing is."""
        width, height = self.image.size
        factor = memory_factor(self.image.format or "")
        remark = ""
        if factor > 1:
            remark = f", each of which counts {factor} times in {self.image.format}"
        elif self.pixels > width * height:
            remark = ", with the padding of its tiles"
        return too_large(width, height, max_pixels, pixels=self.pixels, remark=remark)

    @property
    def cost(self) -> int:
        """Time to decode the whole file, in pixels of a PNG file that take as long."""
        return self.pixel_cost + self.byte_cost


def read_header(data: bytes, formats: list[str] = FORMATS, *, max_pages: int = 1) -> ImageHeader:
    """Read the header of an image file.

    Args:
        data: the file.
        formats: Pillow's names of the formats that are allowed.
        max_pages: number of pages that will be read if it is a TIFF file.

    Raises:
        PIL.UnidentifiedImageError: the file has none of the formats.
        TooManyPartsError: reading the metadata would take too long.
        Exception: an error of Pillow, of one of many kinds, if the file is damaged.
    """
    check_exif_segments(data)
    if "TIFF" in formats:
        check_tiff_tags(data, max_pages)
    # Pillow warns of many pixels; the caller compares their number with the limit right after.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(_BoundedFile(data), formats=formats)
    return measure(image, data)


def measure(image: Image.Image, data: bytes) -> ImageHeader:
    """Estimate what decoding an opened image takes; of an animation, its current frame.

    Args:
        image: opened, not loaded.
        data: the file.

    Raises:
        TooManyPartsError: the image is divided into too many tiles.
    """
    pixels = image.width * image.height
    if image.format == "TIFF":
        pixels = pixels_with_padding(image)
    elif image.format == "JPEG2000":
        check_jpeg2000_tiles(data)
    return ImageHeader(
        image,
        pixels * memory_factor(image.format or ""),
        cost_of_pixels(image, data, pixels),
        cost_of_bytes(image, data),
    )
