"""From decoded images to members' inputs: each distinct preprocessing once for a whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import SpecError
from .parallel import SERIAL, ThreadPool
from .spec import Color, EnsembleSpec, Interpolation, Preprocessing
from .strict_yaml import nearest
from .vision import ImageClassification, InterpolationMode, functional, models

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
        preprocessing = _of_weights(preprocessing.weights)
    channels = preprocessing.channels
    resizes = preprocessing.resize is not None
    filtered = resizes and preprocessing.interpolation not in _UNFILTERED
    return dataclasses.replace(
        preprocessing,
        crop=None if preprocessing.crop is None else preprocessing.size,
        interpolation=preprocessing.interpolation if resizes else Interpolation.BILINEAR,
        antialias=preprocessing.antialias if filtered else True,
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
    spec: EnsembleSpec, device: torch.device, pool: ThreadPool = SERIAL
) -> tuple[list[Preprocessor], list[int]]:
    """Each distinct preprocessing of an ensemble, and for each member the position of its own.

    Raises:
        SpecError: a preprocessing that does not exist.
    """
    groups, positions = group([resolve(spec.preprocessing_of(member)) for member in spec.members])
    return [Preprocessor(settings, device, pool) for settings in groups], positions


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
        self, settings: Preprocessing, device: torch.device, pool: ThreadPool = SERIAL
    ) -> None:
        """Prepare.

        Args:
            settings: need not be resolved.
            device: where the batches are wanted.
            pool: does the work on single images.

        Raises:
            SpecError: as `resolve`; or images of different sizes would not end alike.
        """
        self.settings = resolve(settings)
        self.device = device
        self._pool = pool
        size = self.settings.size
        if size is None:
            raise SpecError(
                "preprocessing: images of every size must end alike: set crop, or "
                "resize: [height, width]"
            )
        self.shape = (self.settings.channels, *size)
        """Channels, height and width of the result."""
        low, high = self.settings.value_range
        mean = torch.tensor(self.settings.mean, dtype=torch.float64)
        std = torch.tensor(self.settings.std, dtype=torch.float64)
        # ((x / 255) * (high - low) + low - mean) / std as one multiplication and one addition.
        self._scale = self._constant((high - low) / 255 / std)
        self._shift = self._constant((low - mean) / std)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Preprocess a batch.

        Args:
            images: N uint8 tensors (3, height, width), of any sizes; N may be 0.

        Returns:
            float32 (N, channels, height, width) on the device.
        """
        if not images:
            return torch.zeros((0, *self.shape), device=self.device)
        if self.device.type != "cpu":
            # Bytes travel; the arithmetic is done there.
            batch = torch.stack(self._pool.map(self._geometry, images)).to(self.device)
            return batch.to(torch.float32).mul_(self._scale).add_(self._shift)
        batch = torch.empty((len(images), *self.shape))
        # While an image is in the processor's cache.
        self._pool.map(self._fill, zip(images, batch, strict=True))
        return batch

    def _fill(self, image_and_place: tuple[Tensor, Tensor]) -> None:
        image, place = image_and_place
        # Threads of a pool do not inherit it.
        with torch.inference_mode():
            place.copy_(self._geometry(image)).mul_(self._scale).add_(self._shift)

    def _constant(self, values: Tensor) -> Tensor:
        return values.to(torch.float32).view(-1, 1, 1).to(self.device)

    def _geometry(self, image: Tensor) -> Tensor:
        settings = self.settings
        if settings.color is Color.GRAYSCALE:
            # torchvision's weights sum to 0.9999 and it rounds down, so that every gray level but
            # black would lose one; an image that is gray already is taken as it is.
            gray = torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
            image = image[:1] if gray else functional.rgb_to_grayscale(image)
        if settings.resize is not None:
            size = settings.resize
            image = functional.resize(
                image,
                [size] if isinstance(size, int) else list(size),
                interpolation=InterpolationMode(settings.interpolation.value),
                antialias=settings.antialias,
            )
        if settings.crop is not None:
            image = functional.center_crop(image, list(self.shape[1:]))
        return image
