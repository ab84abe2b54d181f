"""How image files become pixels: by the server's own decoder, or by a function of the user's own.

Most members share one way. A member with `window` or `decode` in its preprocessing sees other
pixels of the same file, so a file is decoded once for each distinct way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..base.errors import EnsembleError, PreprocessingError, TooLargeError
from ..base.own_code import OwnFunction
from ..spec import Window
from .colors import pixels_of
from .decoding_cost import DEFAULT_COST_PER_BYTE
from .image_header import read_header, too_large
from .images import open_image
from .sample_errors import SampleErrors


class OpenedImage(Protocol):
    """An image file that lies within the limits as far as its header tells."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; estimated if the server cannot read the header."""

    @property
    def pixels(self) -> int:
        """Number of pixels that decoding holds in memory."""

    @property
    def cost(self) -> int:
        """Time to decode the file, in pixels of a PNG file that take as long."""

    def decode(self) -> Tensor:
        """Decode the pixels, (channels, height, width).

        Raises:
            SampleError: the file cannot be decoded.
            TooLargeError: the image has more pixels than the limit.
            PreprocessingError: a function of the user's own returned something other than an image.
        """


@dataclass(frozen=True)
class ImageDecoding:
    """One way to decode image files.

    Attributes:
        function: the user's own function, which decodes the bytes of a file; None if the server's
            decoder does.
        window: the values of an image of more than 8 bits that become black to white.
        keeps_values: whether the tensor that `function` returns goes to another function of the
            user's own, so that its type and its values need not be those of an image.
        min_jpeg_size: height and width; larger JPEG files may be decoded at a fraction of their
            size, but not below it. None: they are decoded at their size.
    """

    function: OwnFunction | None = None
    window: Window | None = None
    keeps_values: bool = False
    min_jpeg_size: tuple[int, int] | None = None

    def open(self, content: bytes, errors: SampleErrors, *, max_pixels: int) -> OpenedImage:
        """Read the header of an image file, and hold it to the limits; no pixel is decoded.

        Args:
            content: the file.
            errors: makes the errors of the image's sample.
            max_pixels: `Limits.max_pixels`.

        Raises:
            SampleError: the file is empty, or not an image that the server can read.
            TooLargeError: the image has more pixels than the limit.
        """
        if self.function is None:
            return open_image(
                content,
                errors,
                max_pixels=max_pixels,
                window=self.window,
                min_jpeg_size=self.min_jpeg_size,
            )
        errors.check_not_empty()
        try:
            header = read_header(content)
        except Image.DecompressionBombError:
            raise errors.too_little_memory() from None
        except Exception:
            # A format that only the function knows: a byte is taken for a pixel.
            side = math.isqrt(len(content)) + 1
            size, pixels, cost = (side, side), len(content), DEFAULT_COST_PER_BYTE * len(content)
        else:
            excess = header.excess(max_pixels)
            if excess is not None:
                raise TooLargeError(f"{errors.where}: {excess}")
            size, pixels, cost = header.image.size, header.pixels, header.cost
        return _ImageForFunction(
            self.function, self, content, errors, max_pixels, size, pixels, cost
        )

    def decode(self, content: bytes, errors: SampleErrors, *, max_pixels: int) -> Tensor:
        """Open and decode an image file; arguments and errors are those of the two methods."""
        return self.open(content, errors, max_pixels=max_pixels).decode()


@dataclass(frozen=True)
class _ImageForFunction:
    """An image file that a function of the user's own decodes. See `OpenedImage`.

    Attributes:
        function: the user's own.
        decoding: says what becomes of the function's result.
        content: the file.
        errors: makes the errors of the image's sample.
        max_pixels: `Limits.max_pixels`.
    """

    function: OwnFunction
    decoding: ImageDecoding
    content: bytes
    errors: SampleErrors
    max_pixels: int
    size: tuple[int, int]
    pixels: int
    cost: int

    def decode(self) -> Tensor:
        """Call the function and check what it returned.

        Returns:
            (channels, height, width): uint8, or float32 from 0 to 1; of any type if the decoding
            keeps values.
        """
        try:
            # Threads of a pool do not inherit inference mode.
            with torch.inference_mode():
                result = self.function.function(self.content)
                if isinstance(result, Image.Image):
                    self._check_size(*result.size)
                    result.load()
        except EnsembleError:
            raise
        except MemoryError:
            raise self.errors.too_little_memory() from None
        except Exception as error:
            raise self.errors.unreadable(
                f"cannot be decoded by {self.function.failure(error)}"
            ) from error
        if isinstance(result, Image.Image):
            with self.errors.of_decoding():
                return pixels_of(result, self.content, self.decoding.window)
        image = self._as_tensor(result)
        self._check_size(image.shape[2], image.shape[1])
        return self._as_pixels(image)

    def _as_tensor(self, result: Any) -> Tensor:
        """Convert what the function returned to a tensor (channels, height, width)."""
        if isinstance(result, np.ndarray):
            result = self._array_as_tensor(result)
        if not isinstance(result, Tensor):
            raise self._wrong(f"{type(result).__name__}, not an image, a tensor or an array")
        image = result.detach().cpu()
        if image.dim() == 2:
            image = image.unsqueeze(0)
        any_channels = self.decoding.keeps_values
        if image.dim() != 3 or 0 in image.shape or not (any_channels or len(image) in (1, 3)):
            channels = "" if any_channels else " with 1 or 3 channels"
            raise self._wrong(
                f"the shape {tuple(result.shape)}; a tensor has the shape (channels, height, "
                f"width), an array (height, width, channels){channels}"
            )
        return image

    def _array_as_tensor(self, array: NDArray[Any]) -> Tensor:
        """Convert a NumPy array, in which the channels come last."""
        try:
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise self._wrong(f"an array of {array.dtype}") from None
        return tensor.permute(2, 0, 1) if tensor.dim() == 3 else tensor

    def _as_pixels(self, image: Tensor) -> Tensor:
        """Bring the values of an image to uint8, or to float32 from 0 to 1."""
        window = self.decoding.window
        if image.dtype is torch.uint8:
            return image
        if window is None and self.decoding.keeps_values:
            return image
        if window is None and not image.is_floating_point():
            raise self._wrong(
                f"numbers of {image.dtype}; return uint8, or floats from 0 to 1, or set window"
            )
        values = image.to(torch.float32)
        if not bool(values.isfinite().all()):
            raise self._wrong("NaN or infinite numbers")
        if window is not None:
            return values.sub(window.low).div_(window.width).clamp_(0, 1)
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise self._wrong(
                f"floats from {low:g} to {high:g}; they must lie between 0 (black) and 1 (white): "
                "divide them, or set window"
            )
        return values

    def _check_size(self, width: int, height: int) -> None:
        excess = too_large(width, height, self.max_pixels)
        if excess is not None:
            raise TooLargeError(f"{self.errors.where}: {excess}")

    def _wrong(self, result: str) -> PreprocessingError:
        """Make the error of a function that returned something other than an image."""
        return PreprocessingError(f"decode {self.function.name} returned {result}")
