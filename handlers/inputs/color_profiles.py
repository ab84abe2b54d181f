"""Conversion of pixels to sRGB by the ICC profile that is embedded in an image file."""

from __future__ import annotations

import io
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

_MAX_CACHED_BYTES = 1 << 16
"""Larger ICC profiles are read anew for each image: a cache of them could be filled by clients."""

_MAX_PROFILE_BYTES = 4 << 20
"""Larger ICC profiles are ignored, as broken ones are; printing profiles have 0.5 to 3 MB."""

_LAB: Final = "LAB"


class ColorProfile:
    """An ICC profile, and the conversions to sRGB that are made of it when they are first needed.

    A profile that is broken, or that is for another number of channels, converts nothing.
    """

    def __init__(self, content: bytes | None) -> None:
        """Take the bytes of a profile, which are not read yet.

        Args:
            content: the profile; None stands for CIE LAB itself.
        """
        self._content = content
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}

    @classmethod
    def of(cls, content: bytes | None) -> ColorProfile | None:
        """Return the profile with this content; None if it is empty or too large for a profile."""
        if not content or len(content) > _MAX_PROFILE_BYTES:
            return None
        return _cached_profile(content) if len(content) <= _MAX_CACHED_BYTES else cls(content)

    def transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        """Return the conversion of pixels of a Pillow mode; None if they stay as they are."""
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
            return None

    @cached_property
    def gray_curve(self) -> list[int] | None:
        """The sRGB level of each of the 256 gray levels; None if gray stays as it is.

        One number for all three channels, so that gray stays exactly gray.
        """
        transform = self.transform("L")
        if transform is None:
            return None
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
        levels = np.asarray(_apply(transform, ramp))[0].astype(np.float64)
        curve: list[int] = np.rint(levels.mean(axis=1)).astype(int).tolist()
        return curve


_LAB_PROFILE = ColorProfile(None)
_cached_profile = lru_cache(maxsize=16)(ColorProfile)


def to_srgb(image: Image.Image, profile: ColorProfile | None) -> Image.Image:
    """Convert an image without transparency to mode RGB, in sRGB.

    Args:
        image: of any mode of at most 8 bits per channel, loaded.
        profile: the profile that is embedded in its file, if one is.
    """
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


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = Image.new("RGB", image.size)
    return transform.apply(image, converted)


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than one level, as with the profile of sRGB itself.

    Most embedded profiles are sRGB. Their pixels are left alone, so that they stay exact and cost
    nothing.
    """
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(_apply(transform, Image.fromarray(probe))).astype(np.int16)
    return bool(np.abs(moved - probe).max() <= 1)
