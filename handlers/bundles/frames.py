"""The frames of an animation, and the pages of a TIFF."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import RequestError, TooLargeError
from .items import BundleLimits, Item

_ANIMATED = ["GIF", "PNG", "TIFF", "WEBP"]


def split(data: bytes, name: str, limits: BundleLimits) -> list[Item] | None:
    """One sample for each frame, as a viewer shows it; None if there is only one.

    Raises:
        RequestError: a frame cannot be decoded.
        TooLargeError: too many frames, or too large ones.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_ANIMATED)
    except Exception:  # No animation: the image decoder will tell what it is.
        return None
    # Pillow's decoders raise almost anything on damaged files (IndexError, struct.error, ...).
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception as error:
        raise RequestError(f"{name}: its frames cannot be counted: {error}") from None
    if count < 2:
        return None
    limits.check_entries(count, name)
    items = []
    unpacked = 0
    for frame in range(count):
        try:
            image.seek(frame)
            size = image.width * image.height
        except Exception as error:
            raise _undecodable(name, frame, count, error) from None
        if size > limits.max_pixels:
            raise TooLargeError(
                f"{name}: frame {frame} has {image.width} x {image.height} pixels; the limit is "
                f"{limits.max_pixels} (limits.max_pixels in the spec)"
            )
        unpacked += 3 * size
        if unpacked > limits.max_unpacked_bytes:
            raise limits.too_large(name)
        try:
            items.append(Item(f"{name}[{frame}]", _pixels(image)))
        except Exception as error:
            raise _undecodable(name, frame, count, error) from None
    return items


def _pixels(image: Image.Image) -> Tensor:
    """uint8 (3, height, width); transparency on white, as for single images."""
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _undecodable(name: str, frame: int, count: int, error: Exception) -> RequestError:
    return RequestError(
        f"{name}: frame {frame} of {count} cannot be decoded ({error}); send the file whole"
    )
