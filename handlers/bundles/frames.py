"""The frames of an animation, and the pages of a TIFF."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..colors import to_rgb
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
        if image.format == "TIFF" and _has_frame(image, limits.max_entries):
            limits.check_entries(limits.max_entries + 1, name)
        count = int(getattr(image, "n_frames", 1))
    except TooLargeError:
        raise
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
            items.append(Item(f"{name}[{frame}]", _pixels(image, data)))
        except Exception as error:
            raise _undecodable(name, frame, count, error) from None
    return items


def _has_frame(image: Image.Image, frame: int) -> bool:
    """Whether a TIFF has so many pages; Pillow's count of them all takes quadratic time."""
    try:
        while image.tell() < frame:  # In single steps: past its end, Pillow miscounts.
            image.seek(image.tell() + 1)
    except EOFError:
        return False
    return True


def _pixels(image: Image.Image, data: bytes) -> Tensor:
    """uint8 (3, height, width); colours and transparency as for single images."""
    image.load()
    info = dict(image.info)
    pixels = np.asarray(to_rgb(image, data))
    image.info = info  # Which `to_rgb` adapts, and which the next frame inherits.
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _undecodable(name: str, frame: int, count: int, error: Exception) -> RequestError:
    return RequestError(
        f"{name}: frame {frame} of {count} cannot be decoded ({error}); send the file whole"
    )
