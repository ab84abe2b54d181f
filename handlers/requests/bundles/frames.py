"""The frames of an animation, and the pages of a TIFF."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ...base.errors import RequestError, TooLargeError, reason
from ...inputs.colors import pixels_of
from ...inputs.image_header import ImageHeader, measure, read_header
from ...spec import Window
from ..budget import RequestBudget
from .items import Item

_ANIMATED = ["GIF", "PNG", "TIFF", "WEBP"]


class Animation:
    """A file of several frames, which is open only while they are decoded, one after the other."""

    def __init__(self, data: bytes, count: int) -> None:
        """Take a file as it is.

        Args:
            data: the file.
            count: its frames.
        """
        self._data = data
        self._count = count
        self._image: Image.Image | None = None

    def decode(self, number: int, max_pixels: int, window: Window | None) -> Tensor:
        """Decode one frame, as `decode_image` decodes single images.

        Args:
            number: number of the frame, from 0; decoding the last one closes the file.
            max_pixels: number of pixels that the frame's header promised.
            window: the values of a gray frame of more than 8 bits that become black to white.
        """
        if self._image is None:
            self._image = read_header(self._data, _ANIMATED).image
        image = self._image
        if number == self._count - 1:
            self._image = None
        image.seek(number)
        if image.width * image.height > max_pixels:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than it said")
        image.load()
        return pixels_of(image, self._data, window)


@dataclass(frozen=True)
class AnimationFrame:
    """One frame, as a viewer shows it. See `items.Frame`.

    Attributes:
        animation: the file.
        number: the frame's, from 0.
    """

    animation: Animation
    number: int
    pixels: int
    cost: int

    def decode(self, window: Window | None = None) -> Tensor:
        """Decode the frame, as `decode_image` decodes single images."""
        return self.animation.decode(self.number, self.pixels, window)


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
    animation = Animation(data, len(headers))
    byte_cost = header.byte_cost // len(headers)
    return [
        Item(
            f"{name}[{number}]",
            AnimationFrame(animation, number, frame.pixels, frame.pixel_cost + byte_cost),
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
