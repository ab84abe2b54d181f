"""Bounds on the metadata and the tiles of an image file, which Pillow reads slowly and in Python.

Ordinary files stay far below all of them. Without a bound, a small file with many tags, segments or
tiles would keep the worker busy for minutes.
"""

from __future__ import annotations

import struct

from PIL import Image

ORIENTATION = 0x0112
"""The tag of EXIF and TIFF that says how an image is turned."""

_MAX_TIFF_VALUES = 3 << 16
"""Largest number of values in one tag of a TIFF file: those of a palette of 16 bits."""

_MAX_TAGS = 1000
"""Largest number of tags of a TIFF page or of EXIF metadata; cameras write fewer than a hundred."""

_MAX_EXIF_SEGMENTS = 16
"""Largest number of EXIF segments in a JPEG file. Pillow joins them in quadratic time; cameras
write one."""

_MAX_TILES = 1 << 14
"""Largest number of tiles in a TIFF or JPEG 2000 file. Even an empty tile takes memory."""

_TIFF_TAGS_OF_BYTES = frozenset({1, 2, 6, 7})
"""Types of tags that hold bytes or text, which are not taken apart."""

_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_JPEG, _EXIF = b"\xff\xd8", b"Exif\0\0"
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"


class TooManyPartsError(Exception):
    """A file consists of so many parts that reading all of them would take too long."""


def check_exif_segments(data: bytes) -> None:
    """Check that a JPEG file has few EXIF segments; files of other formats pass.

    Raises:
        TooManyPartsError: the file has more than `_MAX_EXIF_SEGMENTS`.
    """
    if data.startswith(_JPEG) and data.count(_EXIF) > _MAX_EXIF_SEGMENTS:
        raise TooManyPartsError(
            f"it has more than {_MAX_EXIF_SEGMENTS} segments of EXIF metadata; save it anew"
        )


def check_tiff_tags(data: bytes, max_pages: int) -> None:
    """Check that the pages of a TIFF file have few tags with few values.

    Files of other formats, and damaged ones, pass: Pillow reports what is wrong with them. The
    layout is that of TIFF 6.0, section 2; BigTIFF has wider fields.

    Args:
        data: the file.
        max_pages: number of pages that will be read.

    Raises:
        TooManyPartsError: a page has more than `_MAX_TAGS` tags, or a tag more than
            `_MAX_TIFF_VALUES` values.
    """
    order = _BYTE_ORDERS.get(data[:2])
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
    pages: set[int] = set()
    (page,) = offset.unpack_from(data, start)
    while 0 < page <= len(data) - number.size and page not in pages and len(pages) < max_pages:
        pages.add(page)
        (num_tags,) = number.unpack_from(data, page)
        end = page + number.size + num_tags * entry.size
        if num_tags > _MAX_TAGS:
            raise TooManyPartsError(
                f"it has {num_tags} tags, and the limit is {_MAX_TAGS}; save it anew"
            )
        if end + offset.size > len(data):
            return
        for tag, kind, num_values in entry.iter_unpack(data[page + number.size : end]):
            if num_values > _MAX_TIFF_VALUES and kind not in _TIFF_TAGS_OF_BYTES:
                raise TooManyPartsError(
                    f"tag {tag} has {num_values} numbers, and the limit is {_MAX_TIFF_VALUES}; "
                    "save it anew"
                )
        (page,) = offset.unpack_from(data, end)


def orientation(image: Image.Image) -> int:
    """Return how an image is turned, as a number from 1 to 8 (Exif 2.32, tag 0x0112).

    The number is 1, upright, if the metadata are damaged or have more tags than any camera writes.
    """
    if number_of_tags(image) > _MAX_TAGS:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Damaged metadata does not make the pixels unreadable.
        return 1


def number_of_tags(image: Image.Image) -> int:
    """Return the number of tags of a TIFF page, or the number that EXIF metadata says it has."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return len(tags)
    exif = image.info.get("exif") or b""
    start = len(_EXIF) if exif.startswith(_EXIF) else 0
    order = _BYTE_ORDERS.get(exif[start : start + 2])
    if order is None or len(exif) < start + 8:
        return 0
    (offset,) = struct.unpack_from(f"{order}I", exif, start + 4)
    if start + offset + 2 > len(exif):
        return 0
    return int(struct.unpack_from(f"{order}H", exif, start + offset)[0])


def pixels_with_padding(image: Image.Image) -> int:
    """Return the number of pixels of a TIFF page with those that fill the tiles at its edges.

    Raises:
        TooManyPartsError: the page is divided into more than `_MAX_TILES` tiles.
    """
    tile_width, tile_height = _tag(image, _TIFF_TILE_WIDTH), _tag(image, _TIFF_TILE_HEIGHT)
    if tile_width <= 0 or tile_height <= 0:
        return image.width * image.height
    columns, rows = -(-image.width // tile_width), -(-image.height // tile_height)
    _check_number_of_tiles(columns * rows)
    return columns * tile_width * rows * tile_height


def check_jpeg2000_tiles(data: bytes) -> None:
    """Check that a JPEG 2000 file has few tiles times components.

    OpenJPEG keeps a record of each tile of each component (ISO/IEC 15444-1, A.5.1).

    Raises:
        TooManyPartsError: the product is more than `_MAX_TILES`.
    """
    start = data.find(_JPEG2000_SIZE)
    if start < 0 or len(data) < start + 42:
        return
    width, height, left, top, tile_width, tile_height, tile_left, tile_top, components = (
        struct.unpack_from(">8IH", data, start + 8)
    )
    if not tile_width or not tile_height or width <= left or height <= top:
        return
    columns = -(-max(width - tile_left, 0) // tile_width)
    rows = -(-max(height - tile_top, 0) // tile_height)
    _check_number_of_tiles(int(columns * rows * max(components, 1)))


def _tag(image: Image.Image, tag: int) -> int:
    """Return a whole number from the tags of a TIFF page; 0 if the tag is missing or no number."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value if isinstance(value, int) else 0


def _check_number_of_tiles(num_tiles: int) -> None:
    if num_tiles > _MAX_TILES:
        raise TooManyPartsError(
            f"it is divided into {num_tiles} tiles, and the limit is {_MAX_TILES}; save it anew"
        )
