"""Preprocessing settings in one normal form, so that members with equal settings share the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..base.errors import SpecError
from ..base.suggestions import nearest
from ..base.torchvision_imports import ImageClassification, models
from ..spec import Interpolation, Preprocessing, ResizeLibrary

_IMAGENET = "imagenet"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels from 0 to 1, as in torchvision's presets."""

_UNFILTERED = {Interpolation.NEAREST, Interpolation.NEAREST_EXACT}
"""Interpolations for which torchvision ignores ``antialias``."""


def resolve(preprocessing: Preprocessing) -> Preprocessing:
    """Write settings out in their normal form, so that equal preprocessings compare equal.

    The name of torchvision weights becomes the settings of their ``transforms()``, and the name of
    a normalisation its mean and std. A side becomes a pair, one number becomes one for each
    channel, and what has no effect takes its default.

    Raises:
        SpecError: torchvision has no such weights, or their transforms are not for image
            classification.
    """
    if preprocessing.weights is not None:
        of_weights = _settings_of_weights(preprocessing.weights)
        beside_weights = ("decode", "example", "window", "resize_library", "scaled_jpeg")
        preprocessing = dataclasses.replace(
            of_weights, **{key: getattr(preprocessing, key) for key in beside_weights}
        )
    if preprocessing.normalize is not None:
        mean, std = _normalization(preprocessing.normalize)
        preprocessing = dataclasses.replace(preprocessing, normalize=None, mean=mean, std=std)
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


def group(settings: Sequence[Preprocessing]) -> tuple[list[Preprocessing], list[int]]:
    """Find the distinct settings among those of the members.

    Args:
        settings: one for each member, from `resolve`.

    Returns:
        The distinct settings in order of first use, and for each member the position of its own.
    """
    distinct = list(dict.fromkeys(settings))
    position = {each: index for index, each in enumerate(distinct)}
    return distinct, [position[each] for each in settings]


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std that a name stands for: imagenet, or torchvision weights."""
    if name == _IMAGENET:
        return _IMAGENET_MEAN, _IMAGENET_STD
    transforms = _transforms_of(name, further_names=(_IMAGENET,))
    return tuple(transforms.mean), tuple(transforms.std)


def _settings_of_weights(name: str) -> Preprocessing:
    transforms = _transforms_of(name)
    resize, crop = list(transforms.resize_size), list(transforms.crop_size)
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=(crop[0], crop[-1]),
        interpolation=Interpolation(transforms.interpolation.value),
        antialias=bool(transforms.antialias),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _transforms_of(name: str, further_names: tuple[str, ...] = ()) -> ImageClassification:
    """Return the transforms of torchvision weights.

    Args:
        name: name of the weights, e.g. ``ResNet18_Weights.DEFAULT``.
        further_names: other names that are allowed there, for the suggestion in the message.

    Raises:
        SpecError: torchvision has no such weights, or they are not for image classification.
    """
    try:
        transforms = models.get_weight(name).transforms()
    except (ValueError, KeyError, AttributeError):
        names = list(further_names)
        for builder in models.list_models():
            weights = models.get_model_weights(builder)
            names += [f"{weights.__name__}.DEFAULT", *map(str, weights)]
        raise SpecError(f"torchvision has no weights '{name}'{nearest(name, names)}") from None
    if not isinstance(transforms, ImageClassification):
        raise SpecError(
            f"the transforms of {name} are {type(transforms).__name__}, not for image "
            "classification: write the settings (resize, crop, mean, std) out instead"
        )
    return transforms
