"""Encoded image bytes to RGB pixels, as a person sees them."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import SampleError, TooLargeError

_SIGNATURES = {
    b"<": "markup such as HTML or XML",
    b"{": "JSON",
    b"[": "JSON",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"\x93NUMPY": "a NumPy array",
}
_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_EXIF_ORIENTATION = 0x0112


def decode_image(data: bytes, *, max_pixels: int, name: str = "", index: int = 0) -> Tensor:
    """Decode one image.

    EXIF orientation is applied; transparency is put on white; 16-bit gray is scaled to 8 bits; 32-bit
    integer and float images are taken as 0..65535 and 0..1, wider ranges as minimum to maximum;
    CMYK, LAB and other colour spaces, and an embedded ICC profile, become sRGB; of an animation or a
    file of several pages the first frame is taken.

    Args:
        data: the file's bytes, in any format that Pillow reads.
        max_pixels: width times height; checked before pixels are decoded.
        name: the sample's name, for messages.
        index: the sample's position in its request, for messages.

    Returns:
        uint8 (3, height, width).

    Raises:
        SampleError: not an image that can be read.
        TooLargeError: more pixels than the limit.
    """
    where = f"sample {index} ({name})" if name else f"sample {index}"
    if not data:
        raise SampleError(
            f"{where} is empty: send the image's bytes (curl -F file=@image.png, with the @)",
            sample=name,
            index=index,
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own limits are replaced by ours, which is checked before decoding.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > max_pixels:
                raise TooLargeError(
                    f"{where}: {width} x {height} pixels; the limit is {max_pixels} pixels "
                    "(limits.max_pixels in the spec): send a smaller image"
                )
            image.load()
            return _to_tensor(_to_rgb(image))
    except TooLargeError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{where}: {error}: send a smaller image") from None
    except UnidentifiedImageError:
        raise SampleError(
            f"{where} is not an image that can be read{_seen(data)}; send PNG, JPEG, WebP, BMP, "
            "TIFF or GIF",
            sample=name,
            index=index,
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage.
        raise SampleError(
            f"{where}: the image is damaged or incomplete ({error}); send it again",
            sample=name,
            index=index,
        ) from None


def _seen(data: bytes) -> str:
    start = data.lstrip()[:8]
    for signature, description in _SIGNATURES.items():
        if start.startswith(signature):
            return f" (it looks like {description})"
    return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.info:
        return image
    image = _upright(image)
    image = _eight_bits(image)
    profile = image.info.get("icc_profile")
    if "transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else _convert_to_rgb(image)


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(
            image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        if converted is not None:
            return converted
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged metadata does not make the pixels unreadable.
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow would clip deep gray images at 255 instead of scaling them."""
    if image.mode not in {"I", "F"} | _SIXTEEN_BIT:
        return image
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, posinf=np.nan, neginf=np.nan, nan=0.0)
    low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if image.size and values.size and (values.min() < low or values.max() > high):
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / (high - low or 1.0))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode not in {"RGB", "L", "CMYK"}:
            image = image.convert("RGB")
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        # A profile that is broken or for other channels is ignored, as viewers do.
        return image
    return image if converted is None else converted


def _to_tensor(image: Image.Image) -> Tensor:
    # A copy, since Pillow's buffer is read-only.
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous()
