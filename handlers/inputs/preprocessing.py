"""Decoded images become the inputs of members: each distinct preprocessing once for a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import EnsembleError, PreprocessingError, SpecError
from ..base.own_code import OwnFunction
from ..base.threads import SERIAL, ThreadPool
from ..base.torchvision_imports import functional
from ..spec import Color, EnsembleSpec, Preprocessing
from .example_inputs import example_images, mirrored_images
from .image_decoding import ImageDecoding
from .resizing import middle, resize, resized_pixels, to_gray
from .resolving import group, resolve
from .sample_errors import SampleErrors

_MAX_MEMORY_RATIO = 4
"""A cropped image is copied, and the uncropped one freed, if that one takes more than this many
times its memory."""


@dataclass(frozen=True)
class Resized:
    """An image at the size that a preprocessing asks for.

    Attributes:
        pixels: (channels, height, width), uint8 or float32 levels, 0 (black) to 255 (white); or
            float32 of any values from a function of the user's own.
    """

    pixels: Tensor


class Preprocessor:
    """One preprocessing on one device.

    Geometry runs on each image by itself; the arithmetic runs once on the whole batch. The steps
    and their order are those of torchvision's classification presets, after the conversion to gray.
    Results equal those of ``torchvision.transforms.v2`` on the same tensor to 1e-5, and those of a
    preset on a PIL image, as used in training, to one level of 255 before normalisation (where
    torch resizes uint8 natively, fewer than 1 % of the values differ at all).
    Images are resized one by one: a stack of equal sizes took no less time, and more memory.
    """

    def __init__(
        self,
        settings: Preprocessing,
        device: torch.device,
        pool: ThreadPool = SERIAL,
        *,
        decoding: ImageDecoding | None = None,
        function: OwnFunction | None = None,
        example: Tensor | None = None,
    ) -> None:
        """Compute the constants of a preprocessing.

        Args:
            settings: the preprocessing; need not be resolved.
            device: the device on which batches are made.
            pool: the threads that prepare single images.
            decoding: how the preprocessing's image files are decoded; left out: by the server.
            function: the function that ``settings.function`` names.
            example: decoded pixels of the file that ``settings.example`` names.

        Raises:
            SpecError: torchvision has no weights of that name; or images of different sizes would
                become inputs of different sizes.
        """
        self.settings = resolve(settings)
        self.device = device
        self.decoding = decoding or ImageDecoding(window=settings.window)
        self._pool = pool
        self._function = function
        size = self.settings.size
        if size is None:
            raise SpecError(
                "preprocessing: images of all sizes must become inputs of one size: set crop, or "
                "resize: [height, width]"
            )
        self.shape = (self.settings.channels, *size)
        """Channels, height and width of an input."""
        # The numbers that a function of the user's own returns are left as they are.
        low, high = (0.0, 255.0) if function is not None else self.settings.value_range
        mean = torch.tensor(self.settings.mean, dtype=torch.float64)
        std = torch.tensor(self.settings.std, dtype=torch.float64)
        # ((x / 255) * (high - low) + low - mean) / std as one multiplication and one addition.
        self._scale = self._constant((high - low) / 255 / std)
        self._shift = self._constant((low - mean) / std)
        self._examples = (
            [] if example is None else [self.resize(each) for each in mirrored_images(example)]
        )

    def __call__(self, images: Sequence[Tensor | Resized]) -> Tensor:
        """Preprocess a batch.

        Args:
            images: N decoded images (channels, height, width) of any sizes, or what `resize` made
                of them; N may be 0.

        Returns:
            float32 (N, channels, height, width) on the device.
        """
        if not images:
            return torch.zeros((0, *self.shape), device=self.device)
        if self.device.type != "cpu":
            # Bytes are copied to the device, a quarter of what floats would take.
            batch = torch.stack(self._pool.map(self._resized, images)).to(self.device)
            return batch.to(torch.float32).mul_(self._scale).add_(self._shift)
        batch = torch.empty((len(images), *self.shape))
        # Each image is normalised right after it was resized, while the processor's cache holds it.
        self._pool.map(self._fill, zip(images, batch, strict=True))
        return batch

    def examples(self, count: int) -> list[Resized]:
        """Return images on which the members of this preprocessing are tried.

        Args:
            count: number of images. Those made of the spec's `example` repeat after the fourth.
        """
        if not self._examples:
            return [self.resize(image) for image in example_images(count)]
        return [self._examples[index % len(self._examples)] for index in range(count)]

    def resized_pixels(self, width: int, height: int) -> int:
        """Return how many pixels preparing an image makes, before the crop.

        Args:
            width: width of the image in pixels.
            height: height of the image in pixels.
        """
        if self.settings.function is not None:
            return math.prod(self.shape[1:])
        return resized_pixels(self.settings, width, height)

    def resize(self, image: Tensor) -> Resized:
        """Change colour and size of one image; the time and memory that it takes are bounded.

        Args:
            image: as `decoding` decodes it; or uint8 (3, height, width).

        Raises:
            PreprocessingError: a function of the user's own failed, or returned a wrong tensor.
        """
        pixels = self._prepare(image)
        if pixels.untyped_storage().nbytes() > _MAX_MEMORY_RATIO * pixels.nbytes:
            pixels = pixels.clone()
        return Resized(pixels)

    def _resized(self, image: Tensor | Resized) -> Tensor:
        return image.pixels if isinstance(image, Resized) else self._prepare(image)

    def _fill(self, image_and_place: tuple[Tensor | Resized, Tensor]) -> None:
        image, place = image_and_place
        # Threads of a pool do not inherit inference mode.
        with torch.inference_mode():
            place.copy_(self._resized(image)).mul_(self._scale).add_(self._shift)

    def _constant(self, values: Tensor) -> Tensor:
        return values.to(torch.float32).view(-1, 1, 1).to(self.device)

    def _prepare(self, image: Tensor) -> Tensor:
        """Bring one decoded image to `shape`; see `Resized.pixels` for the result's values."""
        settings = self.settings
        if self._function is not None:
            return self._call_function(self._function, image)
        if isinstance(settings.resize, int) and settings.crop is not None:
            image = middle(image, settings.resize, max(self.shape[1:]))
        if settings.color is Color.GRAYSCALE:
            image = to_gray(image)
        if settings.resize is not None:
            image = resize(image, settings)
        if settings.crop is not None:
            image = functional.center_crop(image, list(self.shape[1:]))
        if image.is_floating_point():
            image = image * 255
        # A gray image of one channel has three equal ones if the member takes colour.
        return image if len(image) == self.shape[0] else image.expand(self.shape)

    def _call_function(self, function: OwnFunction, image: Tensor) -> Tensor:
        if self.settings.window is not None:
            image = image / 255 if image.dtype is torch.uint8 else image
            if self.settings.decode is None:
                image = image.expand(3, -1, -1)
        try:
            # Threads of a pool do not inherit inference mode.
            with torch.inference_mode():
                # The function may write into its argument, which other preprocessings see too.
                result = function.function(image.clone())
        except Exception as error:
            raise PreprocessingError(f"preprocessing {function.failure(error)}") from error
        where = f"preprocessing {function.name}"
        if not isinstance(result, Tensor) or tuple(result.shape) != self.shape:
            returned = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise PreprocessingError(
                f"{where}: it returned {returned}, not a tensor of shape {self.shape}; correct it, "
                "or the spec's shape"
            )
        result = result.to("cpu", torch.float32)
        if not bool(result.isfinite().all()):
            raise PreprocessingError(f"{where}: it returned NaN or infinite numbers")
        return result


def preprocessors_of(
    spec: EnsembleSpec, folder: Path, device: torch.device, pool: ThreadPool = SERIAL
) -> tuple[list[Preprocessor], list[int]]:
    """Make a preprocessor for each distinct preprocessing of an ensemble.

    Functions of the user's own are imported, and those that decode are tried on their example.

    Args:
        spec: the ensemble.
        folder: contains the files that the spec names.
        device: the device on which batches are made.
        pool: the threads that prepare single images.

    Returns:
        The preprocessors, and for each member the position of its own.

    Raises:
        SpecError: the spec names torchvision weights that do not exist.
        MemberError: a file with a function of the user's own cannot be imported.
        PreprocessingError: a function that decodes fails on its example.
    """
    groups, positions = group([resolve(spec.preprocessing_of(member)) for member in spec.members])
    max_pixels = spec.limits.max_pixels
    return [_load(settings, folder, device, pool, max_pixels) for settings in groups], positions


def _load(
    settings: Preprocessing, folder: Path, device: torch.device, pool: ThreadPool, max_pixels: int
) -> Preprocessor:
    decode, function = (
        None if name is None else OwnFunction.load(folder, name)
        for name in (settings.decode, settings.function)
    )
    keeps_values = decode is not None and function is not None
    decoding = ImageDecoding(decode, settings.window, keeps_values, settings.min_jpeg_size)
    example = None
    if settings.example is not None:
        example = _decode_example(decoding, folder, settings.example, max_pixels)
    return Preprocessor(
        settings, device, pool, decoding=decoding, function=function, example=example
    )


def _decode_example(decoding: ImageDecoding, folder: Path, example: str, max_pixels: int) -> Tensor:
    """Decode the example of a preprocessing with a function that decodes.

    Raises:
        PreprocessingError: the file cannot be read, or the function fails on it.
    """
    try:
        content = (folder / example).read_bytes()
        errors = SampleErrors(example, 0, content[:1], where=f"the example {example}")
        return decoding.decode(content, errors, max_pixels=max_pixels)
    except OSError as error:
        raise PreprocessingError(f"{example} cannot be read: {error.strerror}") from error
    except EnsembleError as error:
        raise PreprocessingError(f"preprocessing: {error}") from error
