"""Splits animations into frames, and TIFF files into pages."""

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

_FORMATS_WITH_FRAMES = ["GIF", "PNG", "TIFF", "WEBP"]


class Animation:
    """An image file with several frames, which must be decoded one after the other.

    The file is opened for the first frame and closed after the last one.
    """

    def __init__(self, data: bytes, num_frames: int) -> None:
        """Keep the bytes of the file; nothing is opened yet.

        Args:
            data: the encoded file.
            num_frames: number of frames in the file.
        """
        self._data = data
        self._num_frames = num_frames
        self._image: Image.Image | None = None

    def decode(self, number: int, max_pixels: int, window: Window | None) -> Tensor:
        """Decode one frame, as `decode_image` decodes single images.

        Args:
            number: number of the frame, from 0; decoding the last one closes the file.
            max_pixels: number of pixels that the frame's header promised.
            window: the values of a gray frame of more than 8 bits that become black to white.
        """
        if self._image is None:
            self._image = read_header(self._data, _FORMATS_WITH_FRAMES).image
        image = self._image
        if number == self._num_frames - 1:
            self._image = None
        image.seek(number)
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, more than its header said"
            )
        image.load()
        return pixels_of(image, self._data, window)


@dataclass(frozen=True)
class AnimationFrame:
    """One frame as a viewer shows it, that is, drawn over the frames before it.

    Attributes:
        animation: the file that contains the frame.
        number: number of the frame, from 0.
        pixels: width times height of the frame.
        cost: time to decode the frame, in pixels of a PNG file that take as long.
    """

    animation: Animation
    number: int
    pixels: int
    cost: int

    def decode(self, window: Window | None = None) -> Tensor:
        """Decode the frame, as `decode_image` decodes single images."""
        return self.animation.decode(self.number, self.pixels, window)


def split(data: bytes, name: str, budget: RequestBudget) -> list[Item] | None:
    """Make a sample of each frame, without decoding it; return None if there is only one frame.

    Args:
        data: the encoded file.
        name: name of the part, for messages and samples.
        budget: budget of the request, in which each frame counts as a sample.

    Raises:
        RequestError: the frames cannot be counted.
        TooLargeError: the file has too many frames, or a frame has too many pixels.
    """
    try:
        header = read_header(data, _FORMATS_WITH_FRAMES, max_pages=budget.limits.max_samples + 1)
    except Exception:  # Not an animation. If it is no image at all, the image decoder reports that.
        return None
    image = header.image
    limits = budget.limits
    # Pillow's decoders raise almost anything on damaged files (IndexError, struct.error, ...).
    try:
        if image.format == "TIFF":
            headers = _page_headers(image, data, limits.max_samples)
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


def _page_headers(image: Image.Image, data: bytes, max_samples: int) -> list[ImageHeader]:
    """Read the headers of all pages, but of at most one page more than there may be samples.

    The pages are visited one by one, because Pillow's own count of them takes quadratic time and is
    wrong after a step past the end.
    """
    headers = [measure(image, data)]
    try:
        while len(headers) <= max_samples:
            image.seek(image.tell() + 1)
            headers.append(measure(image, data))
    except EOFError:
        pass
    return headers
