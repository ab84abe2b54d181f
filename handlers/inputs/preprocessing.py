"""From decoded images to members' inputs: each distinct preprocessing once for a whole batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.errors import PreprocessingError, SpecError
from ..base.own_code import described, file_of, imports_from, load_own
from ..base.suggestions import nearest
from ..base.threads import SERIAL, ThreadPool
from ..base.torchvision_imports import ImageClassification, InterpolationMode, functional, models
from ..spec import Color, EnsembleSpec, Interpolation, Preprocessing, ResizeLibrary

_MAX_ASPECT = 16
_MAX_RESIZED_PIXELS = 1 << 20
"""Images that are longer for their width, and would become larger than this, are cut to their
middle before they are resized."""

_MARGIN = 8
"""Pixels of the resized image that are computed beyond the crop, so that no edge shows in it."""

_MAX_IDLE_SHARE = 4
"""A resized image may keep so many times its own memory, of what it was cropped from."""

_PIXELS_IN_BAND = 1 << 20
"""Pixels that become gray at once; the arithmetic takes 12 bytes for each."""

_ONE_PIXEL = (1, (1, 1))
"""Values of ``resize`` that can make an image one pixel: 1 does so to a square one."""

_PILLOW_FILTERS = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}

# torchvision ignores antialias for these.
_UNFILTERED = {Interpolation.NEAREST, Interpolation.NEAREST_EXACT}


def resolve(preprocessing: Preprocessing) -> Preprocessing:
    """Explicit settings in one normal form, so that equal preprocessings compare equal.

    The name of torchvision weights becomes the settings of their ``transforms()``; a side becomes a
    pair, one number becomes one for each channel, and what has no effect takes its default.

    Raises:
        SpecError: no such weights, or weights whose transforms are not for image classification.
    """
    if preprocessing.weights is not None:
        of_weights = _of_weights(preprocessing.weights)
        preprocessing = dataclasses.replace(of_weights, resize_library=preprocessing.resize_library)
    channels = preprocessing.channels
    resizes = preprocessing.resize is not None
    filtered = resizes and preprocessing.interpolation not in _UNFILTERED
    return dataclasses.replace(
        preprocessing,
        crop=None if preprocessing.crop is None else preprocessing.size,
        interpolation=preprocessing.interpolation if resizes else Interpolation.BILINEAR,
        antialias=preprocessing.antialias if filtered else True,
        resize_library=preprocessing.resize_library if resizes else ResizeLibrary.TORCH,
        mean=_per_channel(preprocessing.mean or (0.0,), channels),
        std=_per_channel(preprocessing.std or (1.0,), channels),
    )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _of_weights(name: str) -> Preprocessing:
    try:
        transforms = models.get_weight(name).transforms()
    except (ValueError, KeyError, AttributeError):
        known = []
        for builder in models.list_models():
            weights = models.get_model_weights(builder)
            known += [f"{weights.__name__}.DEFAULT", *map(str, weights)]
        raise SpecError(f"torchvision has no weights '{name}'{nearest(name, known)}") from None
    if not isinstance(transforms, ImageClassification):
        raise SpecError(
            f"the transforms of {name} are {type(transforms).__name__}, not for image "
            "classification: write the settings (resize, crop, mean, std) out instead"
        )
    resize, crop = list(transforms.resize_size), list(transforms.crop_size)
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=(crop[0], crop[-1]),
        interpolation=Interpolation(transforms.interpolation.value),
        antialias=bool(transforms.antialias),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def preprocessors_of(
    spec: EnsembleSpec, folder: Path, device: torch.device, pool: ThreadPool = SERIAL
) -> tuple[list[Preprocessor], list[int]]:
    """Each distinct preprocessing of an ensemble, and for each member the position of its own.

    Args:
        spec: the ensemble.
        folder: where the files that the spec names are.
        device: where the batches are wanted.
        pool: does the work on single images.

    Raises:
        SpecError: a preprocessing that does not exist.
        MemberError: a file with a function of the user's own cannot be imported.
    """
    groups, positions = group([resolve(spec.preprocessing_of(member)) for member in spec.members])
    with imports_from(folder):
        functions = [
            None if settings.function is None else load_own(folder, settings.function)
            for settings in groups
        ]
    preprocessors = [
        Preprocessor(settings, device, pool, function)
        for settings, function in zip(groups, functions, strict=True)
    ]
    return preprocessors, positions


def group(settings: Sequence[Preprocessing]) -> tuple[list[Preprocessing], list[int]]:
    """Share equal preprocessings.

    Args:
        settings: each member's, from `resolve`.

    Returns:
        The distinct ones in order of first use, and for each member the position of its own.
    """
    distinct = list(dict.fromkeys(settings))
    position = {each: index for index, each in enumerate(distinct)}
    return distinct, [position[each] for each in settings]


@dataclasses.dataclass(frozen=True)
class Resized:
    """An image at the size that a preprocessing asks for.

    Attributes:
        pixels: uint8 (channels, height, width), or float32 from a function of the user's own.
    """

    pixels: Tensor


class Preprocessor:
    """One preprocessing on one device.

    Geometry runs per image, on uint8; the arithmetic runs once on the whole batch. The steps and
    their order are those of torchvision's classification presets, after the conversion to gray.
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
        function: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Prepare.

        Args:
            settings: need not be resolved.
            device: where the batches are wanted.
            pool: does the work on single images.
            function: the user's own, which ``settings.function`` names.

        Raises:
            SpecError: as `resolve`; or images of different sizes would not end alike.
        """
        self.settings = resolve(settings)
        self.device = device
        self._pool = pool
        self._function = function
        size = self.settings.size
        if size is None:
            raise SpecError(
                "preprocessing: images of all sizes must become inputs of one size: set crop, or "
                "resize: [height, width]"
            )
        self.shape = (self.settings.channels, *size)
        """Channels, height and width of the result."""
        # What a function of the user's own returns is taken as it is.
        low, high = (0.0, 255.0) if function is not None else self.settings.value_range
        mean = torch.tensor(self.settings.mean, dtype=torch.float64)
        std = torch.tensor(self.settings.std, dtype=torch.float64)
        # ((x / 255) * (high - low) + low - mean) / std as one multiplication and one addition.
        self._scale = self._constant((high - low) / 255 / std)
        self._shift = self._constant((low - mean) / std)

    def __call__(self, images: Sequence[Tensor | Resized]) -> Tensor:
        """Preprocess a batch.

        Args:
            images: N uint8 tensors (3, height, width), of any sizes, or what `resize` made of
                them; N may be 0.

        Returns:
            float32 (N, channels, height, width) on the device.
        """
        if not images:
            return torch.zeros((0, *self.shape), device=self.device)
        if self.device.type != "cpu":
            # Bytes travel; the arithmetic is done there.
            batch = torch.stack(self._pool.map(self._pixels, images)).to(self.device)
            return batch.to(torch.float32).mul_(self._scale).add_(self._shift)
        batch = torch.empty((len(images), *self.shape))
        # While an image is in the processor's cache.
        self._pool.map(self._fill, zip(images, batch, strict=True))
        return batch

    def resized_pixels(self, width: int, height: int) -> int:
        """How many pixels resizing an image makes, before the crop.

        Args:
            width: of the image.
            height: of the image.
        """
        if self.settings.function is not None:
            return math.prod(self.shape[1:])
        size = self.settings.resize
        if size is None:
            return 0
        if not isinstance(size, int):
            return size[0] * size[1]
        shorter, longer = min(width, height), max(width, height)
        whole = size * size * longer // max(shorter, 1)
        # Beyond this an image is cut to its middle.
        return min(whole, max(_MAX_RESIZED_PIXELS, _MAX_ASPECT * size * size))

    def resize(self, image: Tensor) -> Resized:
        """Change colour and size of one image; the time and memory that it takes are bounded.

        Args:
            image: uint8 (3, height, width).
        """
        pixels = self._geometry(image)
        if pixels.untyped_storage().nbytes() > _MAX_IDLE_SHARE * pixels.nbytes:
            # A crop of something large, which can go.
            pixels = pixels.clone()
        return Resized(pixels)

    def _pixels(self, image: Tensor | Resized) -> Tensor:
        return image.pixels if isinstance(image, Resized) else self._geometry(image)

    def _fill(self, image_and_place: tuple[Tensor | Resized, Tensor]) -> None:
        image, place = image_and_place
        # Threads of a pool do not inherit it.
        with torch.inference_mode():
            place.copy_(self._pixels(image)).mul_(self._scale).add_(self._shift)

    def _constant(self, values: Tensor) -> Tensor:
        return values.to(torch.float32).view(-1, 1, 1).to(self.device)

    def _geometry(self, image: Tensor) -> Tensor:
        settings = self.settings
        if self._function is not None:
            return self._from_function(self._function, image)
        if isinstance(settings.resize, int) and settings.crop is not None:
            image = _middle(image, settings.resize, max(self.shape[1:]))
        if settings.color is Color.GRAYSCALE:
            image = _gray(image)
        if settings.resize is not None:
            image = self._resized(image)
        if settings.crop is not None:
            image = functional.center_crop(image, list(self.shape[1:]))
        return image

    def _from_function(self, function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        text = str(self.settings.function)
        try:
            # Threads of a pool do not inherit it.
            with torch.inference_mode():
                # A copy, since other preprocessings see the same pixels.
                result = function(image.clone())
        except Exception as error:
            message = described(error, file_of(text) or text)
            raise PreprocessingError(f"preprocessing {text}: {message}") from error
        if not isinstance(result, Tensor) or tuple(result.shape) != self.shape:
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise PreprocessingError(
                f"preprocessing {text}: it returned {found}, not a tensor of shape {self.shape}; "
                "correct it, or the spec's shape"
            )
        result = result.to("cpu", torch.float32)
        if not bool(result.isfinite().all()):
            raise PreprocessingError(f"preprocessing {text}: it returned NaN or infinite numbers")
        return result

    def _resized(self, image: Tensor) -> Tensor:
        settings = self.settings
        assert settings.resize is not None
        if settings.letterbox is None:
            return _resize(image, settings.resize, settings)
        height, width = self.settings.resize  # type: ignore[misc]
        scale = min(height / image.shape[1], width / image.shape[2])
        inner = tuple(max(1, round(side * scale)) for side in image.shape[1:])
        framed = image.new_full((image.shape[0], height, width), settings.letterbox)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        inside = framed[:, top : top + inner[0], left : left + inner[1]]
        inside.copy_(_resize(image, (inner[0], inner[1]), settings))
        return framed


def _resize(image: Tensor, size: int | tuple[int, int], settings: Preprocessing) -> Tensor:
    """The image with its shorter side of `size` pixels, or of the given height and width."""
    if settings.resize_library is ResizeLibrary.PILLOW:
        return _resize_by_pillow(image, size, settings.interpolation)
    # PyTorch 2.14 takes one pixel of several channels for channels in another order, and
    # fails; as a batch of images with one channel each the channels give the same pixel.
    by_channel = size in _ONE_PIXEL
    resized: Tensor = functional.resize(
        image.unsqueeze(1) if by_channel else image,
        [size] if isinstance(size, int) else list(size),
        interpolation=InterpolationMode(settings.interpolation.value),
        antialias=settings.antialias,
    )
    return resized.squeeze(1) if by_channel else resized


def _resize_by_pillow(
    image: Tensor, size: int | tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Resize as torchvision resizes a PIL image: the same sizes, and Pillow's arithmetic."""
    height, width = image.shape[1:]
    if isinstance(size, int):
        shorter, longer = min(height, width), max(height, width)
        new_longer = int(size * longer / shorter)
        size = (size, new_longer) if height <= width else (new_longer, size)
    # Pillow wants the channels last; a gray image has none.
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    resized = Image.fromarray(array).resize((size[1], size[0]), _PILLOW_FILTERS[interpolation])
    pixels = torch.from_numpy(np.array(resized))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def _middle(image: Tensor, resize: int, crop: int) -> Tensor:
    """What a centred crop keeps of a very long image, and a margin around it.

    When the shorter side becomes `resize`, the longer one of such an image would have any length:
    65,000 x 1 pixels would become 16 million x 256. The result is that of resizing the whole to
    within a twentieth of a pixel.

    Args:
        image: (channels, height, width).
        resize: pixels that the shorter side will have.
        crop: pixels of the longer side of the crop.
    """
    height, width = image.shape[1:]
    shorter, longer = min(height, width), max(height, width)
    resized_pixels = resize * resize * longer // shorter
    if longer <= _MAX_ASPECT * shorter or resized_pixels <= _MAX_RESIZED_PIXELS:
        return image
    kept = math.ceil((crop + 2 * _MARGIN) * shorter / resize) + 2 * _MARGIN
    # Of equal parity, so that the middle stays the middle.
    kept = max(kept + (longer - kept) % 2, _MAX_ASPECT * shorter + longer % 2)
    if kept >= longer:
        return image
    start = (longer - kept) // 2
    dimension = 1 if height > width else 2
    return image.narrow(dimension, start, kept)


def _gray(image: Tensor) -> Tensor:
    """(1, height, width).

    torchvision's weights sum to 0.9999 and it rounds down, so that every gray level but black would
    lose one; an image that is gray already is taken as it is.
    """
    if torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]):
        return image[:1]
    rows = max(1, _PIXELS_IN_BAND // max(image.shape[2], 1))
    bands = [image[:, top : top + rows] for top in range(0, image.shape[1], rows)]
    return torch.cat([functional.rgb_to_grayscale(band) for band in bands], dim=1)
