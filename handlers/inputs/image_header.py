"""Read the header of an image file, and estimate from it what decoding the file will take.

A file of a few hundred bytes can demand minutes of work and gigabytes of memory. Its header says so
before any pixel is decoded. Two numbers follow from it: how many pixels decoding holds in memory,
and a cost in pixels, in which a pixel of a slow format counts several times.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from dataclasses import dataclass

from PIL import Image

Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
]

MAX_SIDE = 65_535
"""Largest width and height, as in JPEG. Resizing takes 16 bytes for each pixel of a side."""

_BASE_READS = 4096
_BYTES_PER_READ = 64
"""How often Pillow may read while it opens a file: `_BASE_READS` times, and once more for every
`_BYTES_PER_READ` bytes of the file.

Pillow parses headers in Python. An ordinary file takes one read for some thousand bytes. Without a
bound, a megabyte of empty PNG chunks, or of bytes between JPEG markers, takes seconds.
"""

_MEMORY_OF_PIXEL = {"JPEG2000": 3, "WEBP": 3, "AVIF": 2}
"""Memory that decoding a pixel takes, as a multiple of the 7 bytes of other formats (measured).

OpenJPEG keeps four bytes for each component, WebP's decoder two canvases, libavif one.
"""

_COST_OF_PIXEL = {"JPEG2000": 6, "WEBP": 2, "AVIF": 2, "TIFF": 2}
_COST_OF_BYTE = {"JPEG2000": 16, "AVIF": 10, "WEBP": 8}
"""Time to decode one pixel, and one byte of the file, as a multiple of the time for one pixel of a
PNG file (of which 200 million are decoded in a second).

Measured on 2000 x 2000 pixels of noise, of smooth colours and of black, with Pillow 13 on an
AMD EPYC: the slowest of the three, rounded up.
"""

_USUAL_COST_OF_BYTE = 2
_COST_OF_SCAN = 0.3
_COST_OF_ARITHMETIC_CODING = 4
_COST_OF_INTERLACING = 2
_COST_OF_TRANSPARENCY = 2
_TRANSPARENT = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_COST_OF_LZMA = 8
_COST_OF_16_BITS = 2
_COST_OF_DEEP_PIXEL = 2
_PNG_DEPTH_AT = 24
_COST_OF_PLAIN_TEXT_BYTE = 40

_MAX_TILES = 1 << 14
"""Largest number of tiles in a TIFF or JPEG 2000 file. Even an empty tile takes memory."""

_MAX_TIFF_VALUES = 3 << 16
"""Largest number of values in one tag of a TIFF file: those of a palette of 16 bits."""

_MAX_TAGS = 1000
"""Largest number of tags of a TIFF page or of EXIF metadata; cameras write fewer than a hundred."""

_COST_OF_TAG = 1600
"""Cost of one tag in pixels: Pillow takes 4 microseconds to read it, and reads it twice."""

_MAX_EXIF_SEGMENTS = 16
"""Largest number of EXIF segments in a JPEG file. Pillow joins them in quadratic time; cameras
write one."""

ORIENTATION = 0x0112
"""The tag of EXIF and TIFF that says how an image is turned."""

_TIFF_TAGS_OF_BYTES = frozenset({1, 2, 6, 7})
"""Types of tags that hold bytes or text, which are not taken apart."""

_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_TIFF_COMPRESSION, _TIFF_LZMA = 259, 34925
_JPEG, _EXIF = b"\xff\xd8", b"Exif\0\0"
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"

# `warnings.catch_warnings` swaps state of the whole process.
_warnings_lock = threading.Lock()


def too_large(
    width: int, height: int, max_pixels: int, *, pixels: int | None = None, remark: str = ""
) -> str | None:
    """Say what is too large about an image, and name the limit; None if nothing is.

    Args:
        width: in pixels.
        height: in pixels.
        max_pixels: `Limits.max_pixels`.
        pixels: where decoding takes more than width times height.
        remark: why it does.
    """
    size = f"{width} x {height} pixels{remark}"
    if (width * height if pixels is None else pixels) > max_pixels:
        return (
            f"{size}; the limit is {max_pixels} pixels (limits.max_pixels in the spec): send a "
            "smaller image"
        )
    if max(width, height) > MAX_SIDE:
        return f"{size}; a side may have {MAX_SIDE} pixels: send a smaller image"
    return None


class TooManyPiecesError(Exception):
    """A file is made of so many pieces that reading over them would take too long."""


class _BoundedFile(io.BytesIO):
    """A file in memory that may be read only as often as ordinary files of its size are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _BASE_READS + len(data) // _BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise TooManyPiecesError("it consists of too many pieces; save it anew")
        return super().read(size)


@dataclass(frozen=True)
class ImageHeader:
    """A file whose header was read.

    Attributes:
        image: Pillow's, not loaded.
        data: the file.
        pixels: that decoding has to hold; those of some formats count several times.
        pixel_cost: time for these pixels, in pixels of a PNG file.
        byte_cost: time for the bytes of the file, in the same unit; that of an animation is for all
            of its frames.
    """

    image: Image.Image
    data: bytes
    pixels: int
    pixel_cost: int
    byte_cost: int

    def excess(self, max_pixels: int) -> str | None:
        """What is too large about the image, and the limit; None if nothing is."""
        width, height = self.image.size
        memory = _MEMORY_OF_PIXEL.get(self.image.format or "", 1)
        remark = ""
        if memory > 1:
            remark = f", each of which counts {memory} times in {self.image.format}"
        elif self.pixels > width * height:
            remark = ", with the padding of its tiles"
        return too_large(width, height, max_pixels, pixels=self.pixels, remark=remark)

    @property
    def cost(self) -> int:
        """Of decoding the whole file, in pixels of a PNG file."""
        return self.pixel_cost + self.byte_cost


def read_header(data: bytes, formats: list[str] = FORMATS, *, max_pages: int = 1) -> ImageHeader:
    """Read the header of an image file.

    Args:
        data: the file.
        formats: Pillow's names of those that may be read.
        max_pages: of a TIFF file that will be looked at.

    Raises:
        PIL.UnidentifiedImageError: none of the formats.
        TooManyPiecesError: reading it would take too long.
        Exception: whatever Pillow raises on damaged files.
    """
    if data.startswith(_JPEG) and data.count(_EXIF) > _MAX_EXIF_SEGMENTS:
        raise TooManyPiecesError(
            f"it has more than {_MAX_EXIF_SEGMENTS} segments of EXIF metadata; save it anew"
        )
    if "TIFF" in formats:
        _check_tiff(data, max_pages)
    # Pillow's warning of many pixels is void: the caller's limit comes right after.
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(_BoundedFile(data), formats=formats)
    return measure(image, data)


def measure(image: Image.Image, data: bytes) -> ImageHeader:
    """What decoding an opened image, or the frame that it stands at, takes.

    Raises:
        TooManyPiecesError: it is divided into too many tiles or scans.
    """
    pixels = image.width * image.height
    file_format = image.format or ""
    if file_format == "TIFF":
        pixels = _with_padding(image)
    cost = float(_COST_OF_PIXEL.get(file_format, 1) * pixels)
    bytes_cost = float(_COST_OF_BYTE.get(file_format, _USUAL_COST_OF_BYTE) * len(data))
    if file_format in ("JPEG", "MPO"):
        # The marker cannot occur within compressed data, where each 0xFF is followed by a 0.
        cost += pixels * _COST_OF_SCAN * (data.count(b"\xff\xda") - 1)
        if b"\xff\xc9" in data or b"\xff\xca" in data:
            cost *= _COST_OF_ARITHMETIC_CODING
            bytes_cost *= _COST_OF_ARITHMETIC_CODING
    elif file_format == "PNG":
        if image.info.get("interlace"):
            cost *= _COST_OF_INTERLACING
        if data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 1] == b"\x10":
            cost *= _COST_OF_16_BITS
    elif file_format == "JPEG2000":
        _check_tiles(_jpeg2000_tiles(data))
    elif file_format == "PPM" and data[:2] in (b"P1", b"P2", b"P3"):
        bytes_cost = float(_COST_OF_PLAIN_TEXT_BYTE * len(data))
    elif file_format == "TIFF" and _tag(image, _TIFF_COMPRESSION) == _TIFF_LZMA:
        cost *= _COST_OF_LZMA
    if image.mode.startswith(("I", "F")):
        cost *= _COST_OF_DEEP_PIXEL
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        cost *= _COST_OF_TRANSPARENCY
    if image.info.get("icc_profile"):
        cost += pixels
    bytes_cost += _COST_OF_TAG * _tag_count(image)
    held = pixels * _MEMORY_OF_PIXEL.get(file_format, 1)
    return ImageHeader(image, data, held, int(cost), int(bytes_cost))


def _check_tiff(data: bytes, max_pages: int) -> None:
    """Check that a TIFF file has no more tags and numbers in them than Pillow can read soon.

    Files of other formats, and damaged ones, are left to Pillow. TIFF 6.0, section 2; BigTIFF has
    wider fields.

    Raises:
        TooManyPiecesError: it has more.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    if version == 42:
        number, entry, start = struct.Struct(f"{order}H"), struct.Struct(f"{order}HHI4x"), 4
        offset = struct.Struct(f"{order}I")
    elif version == 43:
        number, entry, start = struct.Struct(f"{order}Q"), struct.Struct(f"{order}HHQ8x"), 8
        offset = struct.Struct(f"{order}Q")
    else:
        return
    seen: set[int] = set()
    (place,) = offset.unpack_from(data, start)
    while 0 < place <= len(data) - number.size and place not in seen and len(seen) < max_pages:
        seen.add(place)
        (count,) = number.unpack_from(data, place)
        end = place + number.size + count * entry.size
        if count > _MAX_TAGS:
            raise TooManyPiecesError(
                f"it has {count} tags, and the limit is {_MAX_TAGS}; save it anew"
            )
        if end + offset.size > len(data):
            return
        for tag, kind, values in entry.iter_unpack(data[place + number.size : end]):
            if values > _MAX_TIFF_VALUES and kind not in _TIFF_TAGS_OF_BYTES:
                raise TooManyPiecesError(
                    f"tag {tag} has {values} numbers, and the limit is {_MAX_TIFF_VALUES}; "
                    "save it anew"
                )
        (place,) = offset.unpack_from(data, end)


def orientation(image: Image.Image) -> int:
    """How an image is turned, as EXIF has it.

    Returns:
        1 to 8; 1, upright, where the metadata are damaged or have more tags than any camera writes.
    """
    if _tag_count(image) > _MAX_TAGS:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Damaged metadata does not make the pixels unreadable.
        return 1


def _tag_count(image: Image.Image) -> int:
    """Tags of a TIFF page, or of the metadata of another file by its own word."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return len(tags)
    exif = image.info.get("exif") or b""
    start = len(_EXIF) if exif.startswith(_EXIF) else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None or len(exif) < start + 8:
        return 0
    (place,) = struct.unpack_from(f"{order}I", exif, start + 4)
    if start + place + 2 > len(exif):
        return 0
    return int(struct.unpack_from(f"{order}H", exif, start + place)[0])


def _with_padding(image: Image.Image) -> int:
    """The pixels of a TIFF file, and those beyond its edges with which its tiles are filled."""
    across, down = (int(_tag(image, tag) or 0) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT))
    if across <= 0 or down <= 0:
        return image.width * image.height
    columns, rows = -(-image.width // across), -(-image.height // down)
    _check_tiles(columns * rows)
    return columns * across * rows * down


def _tag(image: Image.Image, tag: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(tag)
    return value if isinstance(value, int) else None


def _jpeg2000_tiles(data: bytes) -> int:
    """Tiles times components (ISO/IEC 15444-1, A.5.1); the decoder keeps a record of each."""
    start = data.find(_JPEG2000_SIZE)
    if start < 0 or len(data) < start + 42:
        return 0
    width, height, left, top, across, down, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", data, start + 8
    )
    if not across or not down or width <= left or height <= top:
        return 0
    columns = -(-max(width - tile_left, 0) // across)
    rows = -(-max(height - tile_top, 0) // down)
    return int(columns * rows * max(components, 1))


def _check_tiles(count: int) -> None:
    if count > _MAX_TILES:
        raise TooManyPiecesError(
            f"it is divided into {count} tiles, and the limit is {_MAX_TILES}; save it anew"
        )
