"""Pillow's many kinds of image to 8-bit sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_DEEP = {"I", "F"} | _SIXTEEN_BIT
# Tags of EXIF and TIFF.
ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_SAMPLE_FORMAT = 339
_UNSIGNED = (1,)
# What turns an image of each orientation upright (Exif 2.32, tag Orientation).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LAB: Final = "LAB"


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded image as mode RGB: upright, in sRGB, on white.

    Args:
        image: of any mode, loaded.
        data: the file that it comes from.
    """
    profile = image.info.get("icc_profile")
    image = _upright(image)
    alpha: Image.Image | None = None
    if image.mode in _DEEP:
        image, alpha = _eight_bits(image)
    elif image.has_transparency_data:
        image, alpha = _split_alpha(image, data)
    image = _to_srgb(image, profile)
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        # Damaged metadata does not make the pixels unreadable.
        return image
    if method is None:
        return image
    upright = image.transpose(method)
    upright.info = image.info
    return upright


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


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A gray image of more than 8 bits as L, where Pillow would clip at 255; and its opacity."""
    values: NDArray[np.float64]
    raw = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE)
    if image.mode == "I" and bits == (32,) and tags.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        raw = raw.view(np.uint32)
    # The widest of Pillow's pixels is a float32, so that no range overflows here.
    values = raw.astype(np.float64)
    finite = np.isfinite(values)
    if bits == (12,):
        low, high = 0.0, 4095.0
    else:
        low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if finite.any():
        least, most = float(np.min(values[finite])), float(np.max(values[finite]))
        if least < low or most > high:
            low, high = least, most
    scaled = np.where(finite, values - low, 0.0) * (255.0 / ((high - low) or 1.0))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255.0 - scaled
    pixels = Image.fromarray(np.rint(scaled).astype(np.uint8))
    key = image.info.get("transparency")
    alpha = None if key is None else Image.fromarray(np.where(raw == key, 0, 255).astype(np.uint8))
    return pixels, alpha


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == _LAB:
        transform = _transform(None, _LAB)
        if transform is not None:
            return _apply(transform, image)
    if profile and image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("RGB")
    if profile:
        if image.mode == "L":
            curve = _gray_curve(profile)
            image = image if curve is None else image.point(curve)
        else:
            transform = _transform(profile, image.mode)
            image = image if transform is None else _apply(transform, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = Image.new("RGB", image.size)
    return transform.apply(image, converted)


@lru_cache(maxsize=16)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile (None: CIE LAB itself) to sRGB; None where nothing can or need be done."""
    try:
        source = ImageCms.ImageCmsProfile(
            ImageCms.createProfile(_LAB) if profile is None else io.BytesIO(profile)
        )
        target = ImageCms.createProfile("sRGB")
        # Exact rather than fast for gray, of which only the 256 levels are ever converted.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=flags)
        return None if mode == "RGB" and _is_identity(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        # A profile that is broken, or for another number of channels.
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether no colour moves by more than one level: the profile is sRGB, as most are.

    Such pixels are left as they are, so that they stay exact and cost nothing.
    """
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    moved = np.asarray(_apply(transform, Image.fromarray(probe))).astype(np.int16)
    return bool(np.abs(moved - probe).max() <= 1)


@lru_cache(maxsize=16)
def _gray_curve(profile: bytes) -> list[int] | None:
    """What each gray level becomes in sRGB: one number, so that gray stays exactly gray."""
    transform = _transform(profile, "L")
    if transform is None:
        return None
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
    levels = np.asarray(_apply(transform, ramp))[0].astype(np.float64)
    curve: list[int] = np.rint(levels.mean(axis=1)).astype(int).tolist()
    return curve
