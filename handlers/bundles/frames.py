"""The frames of an animation, and the pages of a TIFF."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..budget import RequestBudget
from ..colors import rgb_pixels
from ..errors import RequestError, TooLargeError, reason
from ..image_header import ImageHeader, measure, read_header
from .items import Item

_ANIMATED = ["GIF", "PNG", "TIFF", "WEBP"]


@dataclass(frozen=True)
class AnimationFrame:
    """One frame, as a viewer shows it. See `items.Frame`.

    Attributes:
        animation: Pillow's image of the whole file, which stands at one frame at a time.
        data: the file.
        number: the frame's, from 0.
    """

    animation: Image.Image
    data: bytes
    number: int
    pixels: int
    cost: int

    def decode(self) -> Tensor:
        """uint8 (3, height, width); colours and transparency as for single images."""
        image = self.animation
        image.seek(self.number)
        if image.width * image.height > self.pixels:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than it said")
        image.load()
        return torch.from_numpy(rgb_pixels(image, self.data)).permute(2, 0, 1)


def split(data: bytes, name: str, budget: RequestBudget) -> list[Item] | None:
    """One sample for each frame; None if there is only one. No pixels are decoded here.

    Raises:
        RequestError: the frames cannot be counted.
        TooLargeError: too many frames, or too large ones.
    """
    try:
        header = read_header(data, _ANIMATED, max_pages=budget.limits.max_samples + 1)
    except Exception:  # No animation: the image decoder will tell what it is.
        return None
    image = header.image
    limits = budget.limits
    # Pillow's decoders raise almost anything on damaged files (IndexError, struct.error, ...).
    try:
        if image.format == "TIFF":
            headers = _pages(image, data, limits.max_samples)
        else:
            headers = [header] * min(int(getattr(image, "n_frames", 1)), limits.max_samples + 1)
    except Exception as error:
        raise RequestError(f"{name}: its frames cannot be counted: {reason(error)}") from None
    if len(headers) < 2:
        return None
    budget.take_samples(len(headers), name)
    for number, frame in enumerate(headers):
        excess = frame.excess(limits.max_pixels)
        if excess is not None:
            raise TooLargeError(f"{name}: frame {number} has {excess}")
    byte_cost = header.byte_cost // len(headers)
    return [
        Item(
            f"{name}[{number}]",
            AnimationFrame(image, data, number, frame.pixels, frame.pixel_cost + byte_cost),
        )
        for number, frame in enumerate(headers)
    ]


def _pages(image: Image.Image, data: bytes, max_samples: int) -> list[ImageHeader]:
    """Each page's header, and no more than tell that there are too many.

    In single steps: Pillow's own count takes quadratic time, and past the end it miscounts.
    """
    headers = [measure(image, data)]
    try:
        while len(headers) <= max_samples:
            image.seek(image.tell() + 1)
            headers.append(measure(image, data))
    except EOFError:
        pass
    return headers
