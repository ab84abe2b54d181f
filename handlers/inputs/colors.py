"""Pillow's many kinds of image to 8-bit sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from .image_header import orientation

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_DEEP = {"I", "F"} | _SIXTEEN_BIT
# Tags of EXIF and TIFF.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_SAMPLE_FORMAT = 339
_UNSIGNED = (1,)
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

_TURNED = range(5, 9)
"""Orientations whose rows are stored as columns."""

_PIXELS_IN_BAND = 1 << 20
"""Pixels that are converted at once: more would need several times the memory of the image."""

_MAX_CACHED_BYTES = 1 << 16
"""Larger ICC profiles are read anew for each image: a cache of them could be filled by clients."""

_MAX_PROFILE_BYTES = 4 << 20
"""Larger ICC profiles are ignored, as broken ones are; printing profiles have 0.5 to 3 MB."""

_LAB: Final = "LAB"


def rgb_pixels(image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """A loaded image as 8-bit sRGB on white, the right way up.

    Large images are converted band by band, so that the intermediate images of a conversion never
    have the size of the whole.

    Args:
        image: of any mode, loaded.
        data: the file that it comes from.

    Returns:
        uint8 (height, width, 3), in memory of its own.
    """
    width, height = image.size
    turned = orientation(image)
    shape = (width, height, 3) if turned in _TURNED else (height, width, 3)
    pixels = np.empty(shape, dtype=np.uint8)
    stored = _AS_STORED.get(turned, _unchanged)(pixels)
    rows = max(1, _PIXELS_IN_BAND // max(width, 1))
    levels = _Levels.of(image, rows) if image.mode in _DEEP else None
    profile = _Profile.of(image.info.get("icc_profile"))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        # A copy of its own: a conversion may change what an image says of itself.
        info, band.info = image.info, dict(image.info)
        stored[top:bottom] = np.asarray(_band_to_rgb(band, data, levels, profile))
        band.info = info
    return pixels


def _unchanged(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels


def _band_to_rgb(
    image: Image.Image, data: bytes, levels: _Levels | None, profile: _Profile | None
) -> Image.Image:
    alpha: Image.Image | None = None
    if levels is not None:
        image, alpha = levels.eight_bits(image)
    elif image.has_transparency_data:
        image, alpha = _split_alpha(image, data)
    image = _to_srgb(image, profile)
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _split_alpha(image: Image.Image, data: bytes) -> tuple[Image.Image, Image.Image]:
    """The colours, L or RGB, and the opacity, L."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The key of a 16-bit PNG, of whose pixels Pillow keeps the high byte.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and isinstance(key, int) and data[12:16] == b"IHDR":
        # The key counts in the PNG's bit depth; the pixels are already spread over 0 to 255.
        image.info["transparency"] = min(key * 255 // (2 ** data[24] - 1), 255)
    if image.mode in {"La", "RGBa"}:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LA":
        gray, alpha = image.split()
        return gray, alpha
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


@dataclass(frozen=True)
class _Levels:
    """How the values of a gray image of more than 8 bits become 0 to 255.

    Attributes:
        low: the value that becomes black.
        high: the value that becomes white.
        unsigned: 32-bit integers are to be read without a sign.
        inverted: black and white are exchanged.
    """

    low: float
    high: float
    unsigned: bool
    inverted: bool

    @classmethod
    def of(cls, image: Image.Image, rows: int) -> _Levels:
        """Those of a loaded image, which is looked at in bands of some rows."""
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE)
        unsigned = (
            image.mode == "I" and bits == (32,) and tags.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
        )
        if bits == (12,):
            low, high = 0.0, 4095.0
        else:
            low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
        levels = cls(low, high, unsigned, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
        lowest, highest = np.inf, -np.inf
        if image.mode in {"I", "F"} or bits == (12,):
            for top in range(0, image.height, rows):
                bottom = min(top + rows, image.height)
                values = levels._values(image.crop((0, top, image.width, bottom)))
                finite = values[np.isfinite(values)]
                if finite.size:
                    lowest = min(lowest, float(finite.min()))
                    highest = max(highest, float(finite.max()))
        if lowest <= highest and (lowest < low or highest > high):
            levels = replace(levels, low=lowest, high=highest)
        return levels

    def eight_bits(self, band: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """A band as L, where Pillow would clip at 255, and its opacity."""
        raw = self._values(band)
        if raw.dtype.kind in "ui" and raw.dtype.itemsize == 2:
            table = self._scaled(np.arange(2**16, dtype=np.float64))
            gray = table[raw]
        else:
            gray = self._scaled(raw.astype(np.float64))
        key = band.info.get("transparency")
        opaque = None if key is None else np.where(raw == key, 0, 255).astype(np.uint8)
        return Image.fromarray(gray), None if opaque is None else Image.fromarray(opaque)

    def _values(self, image: Image.Image) -> NDArray[Any]:
        raw = np.asarray(image)
        return raw.view(np.uint32) if self.unsigned else raw

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        # The widest of Pillow's pixels is a float32, so that no range overflows here.
        finite = np.isfinite(values)
        scaled = np.where(finite, values - self.low, 0.0) * (
            255.0 / ((self.high - self.low) or 1.0)
        )
        if self.inverted:
            scaled = 255.0 - scaled
        return np.rint(scaled).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: _Profile | None) -> Image.Image:
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == _LAB:
        transform = _LAB_PROFILE.transform(_LAB)
        if transform is not None:
            return _apply(transform, image)
    if profile is not None and image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("RGB")
    if profile is not None:
        if image.mode == "L":
            curve = profile.gray_curve
            image = image if curve is None else image.point(curve)
        else:
            transform = profile.transform(image.mode)
            image = image if transform is None else _apply(transform, image)
    return image if image.mode == "RGB" else image.convert("RGB")


class _Profile:
    """An ICC profile, and what converts pixels from it to sRGB, made when it is first needed."""

    def __init__(self, content: bytes | None) -> None:
        """Take a profile as it is.

        Args:
            content: the profile's bytes; None stands for CIE LAB itself.
        """
        self._content = content
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}

    @classmethod
    def of(cls, content: bytes | None) -> _Profile | None:
        """The profile of an image; None if it has none or one of a size that no profile has."""
        if not content or len(content) > _MAX_PROFILE_BYTES:
            return None
        return _small_profile(content) if len(content) <= _MAX_CACHED_BYTES else cls(content)

    def transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        """From pixels of a mode to sRGB; None where nothing can or need be done."""
        if mode not in self._transforms:
            self._transforms[mode] = self._build(mode)
        return self._transforms[mode]

    def _build(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        content = self._content
        try:
            source = ImageCms.ImageCmsProfile(
                ImageCms.createProfile(_LAB) if content is None else io.BytesIO(content)
            )
            target = ImageCms.createProfile("sRGB")
            # Exact rather than fast for gray, of which only the 256 levels are ever converted.
            flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
            transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=flags)
            return None if mode == "RGB" and _is_identity(transform) else transform
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            # A profile that is broken, or for another number of channels.
            return None

    @cached_property
    def gray_curve(self) -> list[int] | None:
        """What each gray level becomes in sRGB: one number, so that gray stays exactly gray."""
        transform = self.transform("L")
        if transform is None:
            return None
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
        levels = np.asarray(_apply(transform, ramp))[0].astype(np.float64)
        curve: list[int] = np.rint(levels.mean(axis=1)).astype(int).tolist()
        return curve


_LAB_PROFILE = _Profile(None)
_small_profile = lru_cache(maxsize=16)(_Profile)


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = Image.new("RGB", image.size)
    return transform.apply(image, converted)


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than one level: the profile is sRGB, as most are.

    Such pixels are left as they are, so that they stay exact and cost nothing.
    """
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(_apply(transform, Image.fromarray(probe))).astype(np.int16)
    return bool(np.abs(moved - probe).max() <= 1)
