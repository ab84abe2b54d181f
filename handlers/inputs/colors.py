"""Loaded images of all of Pillow's modes become pixels of one kind: 8-bit sRGB on white, upright.

Only gray images of more than 8 bits with a `Window` stay floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from torch import Tensor

from ..spec import Window
from .color_profiles import ColorProfile, to_srgb
from .deep_gray import DEEP_GRAY_MODES, GrayRange
from .metadata_bounds import orientation

_AS_STORED: Final[Mapping[int, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}
"""For each orientation (Exif 2.32) a view of upright pixels in the order of the file."""

_SIDEWAYS = range(5, 9)
"""Orientations whose rows are stored as columns."""

_PIXELS_PER_BAND = 1 << 20
"""Pixels that are converted at once: more would need several times the memory of the image."""


def pixels_of(image: Image.Image, content: bytes, window: Window | None = None) -> Tensor:
    """Convert a loaded image to pixels.

    Large images are converted band by band, so that the intermediate images of a conversion never
    have the size of the whole.

    Args:
        image: of any mode, loaded.
        content: the file that the image comes from.
        window: the values that become black to white, for gray images of more than 8 bits.

    Returns:
        uint8 (3, height, width), whose channels are innermost in memory. Or, for a gray image of
        more than 8 bits and a window, float32 (1, height, width) from 0 to 1.
    """
    rows = max(1, _PIXELS_PER_BAND // max(image.width, 1))
    gray_range = GrayRange.of(image, rows, window) if image.mode in DEEP_GRAY_MODES else None
    if gray_range is not None and window is not None:
        gray = _in_bands(image, rows, gray_range.zero_to_one, (), np.float32)
        return torch.from_numpy(gray).unsqueeze(0)
    profile = ColorProfile.of(image.info.get("icc_profile"))

    def to_rgb(band: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(_band_to_rgb(band, content, gray_range, profile))

    rgb = _in_bands(image, rows, to_rgb, (3,), np.uint8)
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _in_bands(
    image: Image.Image,
    rows: int,
    convert: Callable[[Image.Image], NDArray[Any]],
    channels: tuple[int, ...],
    dtype: DTypeLike,
) -> NDArray[Any]:
    """Convert an image in bands of some rows, and put them together upright.

    Args:
        image: loaded.
        rows: number of rows of a band.
        convert: converts a band to an array (rows, width, *channels).
        channels: the last dimensions of the result.
        dtype: type of the result's numbers.

    Returns:
        An array (height, width, *channels), in memory of its own.
    """
    width, height = image.size
    turned = orientation(image)
    shape = (width, height) if turned in _SIDEWAYS else (height, width)
    pixels = np.empty((*shape, *channels), dtype=dtype)
    stored = _AS_STORED.get(turned, _unchanged)(pixels)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        # A conversion may change the metadata in `info`, which all bands share.
        info, band.info = image.info, dict(image.info)
        stored[top:bottom] = convert(band)
        band.info = info
    return pixels


def _unchanged(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels


def _band_to_rgb(
    image: Image.Image, content: bytes, gray_range: GrayRange | None, profile: ColorProfile | None
) -> Image.Image:
    opacity: Image.Image | None = None
    if gray_range is not None:
        image, opacity = gray_range.eight_bits(image)
    elif image.has_transparency_data:
        image, opacity = _split_opacity(image, content)
    image = to_srgb(image, profile)
    if opacity is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), opacity)


def _split_opacity(image: Image.Image, content: bytes) -> tuple[Image.Image, Image.Image]:
    """Return an image's colours, of mode L or RGB, and its opacity, of mode L."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The transparent colour of a 16-bit PNG file, of whose pixels Pillow keeps the high byte.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and isinstance(key, int) and content[12:16] == b"IHDR":
        # The transparent level counts in the PNG's bit depth; the pixels are spread over 0 to 255.
        image.info["transparency"] = min(key * 255 // (2 ** content[24] - 1), 255)
    if image.mode in {"La", "RGBa"}:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LA":
        gray, alpha = image.split()
        return gray, alpha
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")
