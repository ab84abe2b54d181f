"""From decoded images to members' inputs: each distinct preprocessing once for a whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models import get_model_weights, get_weight, list_models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2 import functional

from .errors import SpecError
from .spec import Color, Interpolation, Preprocessing
from .strict_yaml import nearest


def resolve(preprocessing: Preprocessing) -> Preprocessing:
    """Explicit settings in one normal form, so that equal preprocessings compare equal.

    The name of torchvision weights becomes the settings of their ``transforms()``.

    Raises:
        SpecError: no such weights, or weights whose transforms are not for image classification.
    """
    if preprocessing.weights is not None:
        preprocessing = _of_weights(preprocessing.weights)
    channels = preprocessing.channels
    changes: dict[str, object] = {}
    if isinstance(preprocessing.crop, int):
        changes["crop"] = (preprocessing.crop, preprocessing.crop)
    for key in ("mean", "std"):
        values = getattr(preprocessing, key)
        if values is not None and len(values) != channels:
            changes[key] = values * channels
    return dataclasses.replace(preprocessing, **changes) if changes else preprocessing


def _of_weights(name: str) -> Preprocessing:
    try:
        transforms = get_weight(name).transforms()
    except (ValueError, KeyError, AttributeError):
        known = [str(weights) for model in list_models() for weights in get_model_weights(model)]
        known += [f"{get_model_weights(model).__name__}.DEFAULT" for model in list_models()]
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


def group(settings: Sequence[Preprocessing]) -> tuple[list[Preprocessing], list[int]]:
    """Distinct settings in order of first use, and for each member the one that it uses."""
    distinct = list(dict.fromkeys(settings))
    return distinct, [distinct.index(each) for each in settings]


class Preprocessor:
    """One preprocessing on one device.

    Geometry runs per image, on uint8; the arithmetic runs once on the whole batch. The steps and
    their order are those of torchvision's classification presets.
    """

    def __init__(self, settings: Preprocessing, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        low, high = settings.value_range
        mean = torch.tensor(settings.mean or (0.0,) * settings.channels)
        std = torch.tensor(settings.std or (1.0,) * settings.channels)
        # ((x / 255) * (high - low) + low - mean) / std as one multiplication and one addition.
        self._scale = ((high - low) / 255 / std).view(-1, 1, 1).to(device)
        self._shift = ((low - mean) / std).view(-1, 1, 1).to(device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the result."""
        size = self.settings.size
        if size is None:
            raise SpecError("preprocessing without a fixed size")
        return (self.settings.channels, *size)

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Preprocess a batch.

        Args:
            images: N uint8 tensors (3, height, width), of any sizes.

        Returns:
            float32 (N, channels, height, width) on the device.
        """
        if not images:
            return torch.zeros((0, *self.shape), device=self.device)
        batch = torch.stack([self._geometry(image) for image in images]).to(self.device)
        return batch.to(torch.float32).mul_(self._scale).add_(self._shift)

    def _geometry(self, image: Tensor) -> Tensor:
        settings = self.settings
        if settings.color is Color.GRAYSCALE:
            # Exact for gray images, whose three channels are equal.
            equal = torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
            image = image[:1] if equal else functional.rgb_to_grayscale(image)
        if settings.resize is not None:
            size = settings.resize
            image = functional.resize(
                image,
                [size] if isinstance(size, int) else list(size),
                interpolation=InterpolationMode(settings.interpolation.value),
                antialias=settings.antialias,
            )
        if settings.crop is not None:
            crop = settings.crop
            image = functional.center_crop(image, [crop] if isinstance(crop, int) else list(crop))
        return image
