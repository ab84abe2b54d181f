"""Preprocessing equals torchvision's own, and equal preprocessings are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights, get_weight, list_models
from torchvision.transforms import InterpolationMode, v2

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.inputs.preprocessing import Preprocessor
from torchserve_ensemble.handlers.inputs.resolving import group, resolve
from torchserve_ensemble.handlers.spec import Color, Interpolation, Preprocessing

CPU = torch.device("cpu")
# Normalised values reach about 2.6, and float32 has 24 bits.
TOLERANCE = 1e-5


def image(height: int, width: int, seed: int = 0, *, gray: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 1 if gray else 3, 5, 5), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    noise = torch.rand(smooth.shape, generator=generator) * 0.2
    return ((smooth * 0.8 + noise) * 255).to(torch.uint8).expand(3, -1, -1).contiguous()


def preprocess(preprocessing: Preprocessing, *images: Tensor) -> Tensor:
    batch = Preprocessor(preprocessing, CPU)(images)
    assert batch.dtype == torch.float32
    return batch


class TestResolve:
    def test_weights_become_their_settings(self) -> None:
        assert resolve(Preprocessing(weights="ResNet18_Weights.DEFAULT")) == Preprocessing(
            resize=256,
            crop=(224, 224),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )

    def test_every_classification_weight_of_torchvision_resolves(self) -> None:
        names = [
            str(weights)
            for model in list_models(module=torchvision.models)
            for weights in get_model_weights(model)
        ]
        assert len(names) > 100
        for name in names:
            resolved = resolve(Preprocessing(weights=name))
            preset = get_weight(name).transforms()
            assert resolved.size == (preset.crop_size[0], preset.crop_size[0]), name
            assert resolved.interpolation == preset.interpolation.value, name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("ResNet18_Weight.DEFAULT", r"did you mean 'ResNet18_Weights.DEFAULT'"),
            ("ResNet18_Weights.IMAGENET1K_V3", r"did you mean 'ResNet18_Weights.IMAGENET1K_V1'"),
            ("nothing.like.it", "torchvision has no weights 'nothing.like.it'"),
            ("FasterRCNN_ResNet50_FPN_Weights.DEFAULT", "ObjectDetection, not for image class"),
            ("DeepLabV3_ResNet50_Weights.DEFAULT", "SemanticSegmentation, not for image class"),
        ],
    )
    def test_other_names_are_refused(self, name: str, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            resolve(Preprocessing(weights=name))

    @pytest.mark.parametrize("name", ["imagenet", "ResNet18_Weights.DEFAULT"])
    def test_a_normalization_by_name(self, name: str) -> None:
        by_name = resolve(Preprocessing(crop=8, normalize=name))
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        assert by_name == resolve(Preprocessing(crop=8, mean=mean, std=std))

    def test_a_normalization_that_does_not_exist(self) -> None:
        with pytest.raises(SpecError, match="did you mean 'imagenet'"):
            resolve(Preprocessing(crop=8, normalize="imagenets"))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"crop": 8}, {"crop": (8, 8)}),
            ({"crop": 8, "mean": (0.5,)}, {"crop": 8, "mean": (0.5, 0.5, 0.5)}),
            ({"crop": 8, "mean": None, "std": None}, {"crop": 8, "mean": (0.0,), "std": (1.0,)}),
            ({"crop": 8}, {"crop": 8, "interpolation": "bicubic", "antialias": False}),
            (
                {"resize": (8, 8), "interpolation": "nearest"},
                {"resize": (8, 8), "interpolation": "nearest", "antialias": False},
            ),
        ],
    )
    def test_equal_settings_resolve_to_equal_ones(
        self, one: dict[str, Any], other: dict[str, Any]
    ) -> None:
        assert resolve(Preprocessing(**one)) == resolve(Preprocessing(**other))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"resize": 8, "crop": 8}, {"resize": (8, 8), "crop": 8}),
            ({"crop": 8}, {"crop": 8, "color": "grayscale"}),
            ({"resize": (8, 8)}, {"resize": (8, 8), "antialias": False}),
            ({"crop": 8}, {"crop": 8, "value_range": (-1.0, 1.0)}),
        ],
    )
    def test_different_settings_stay_apart(
        self, one: dict[str, Any], other: dict[str, Any]
    ) -> None:
        assert resolve(Preprocessing(**one)) != resolve(Preprocessing(**other))

    @given(st.builds(Preprocessing, crop=st.integers(1, 9), color=st.sampled_from(Color)))
    def test_resolving_twice_changes_nothing(self, preprocessing: Preprocessing) -> None:
        assert resolve(resolve(preprocessing)) == resolve(preprocessing)


def test_group_lists_equal_settings_once_in_order() -> None:
    small, large = Preprocessing(crop=8), Preprocessing(crop=9)
    same = Preprocessing(crop=(8, 8), std=(1.0,))
    resolved = [resolve(each) for each in (large, small, large, same)]
    assert group(resolved) == ([resolve(large), resolve(small)], [0, 1, 0, 1])
    assert group([]) == ([], [])


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18_Weights.IMAGENET1K_V1",
        "EfficientNet_B0_Weights.DEFAULT",  # bicubic
        "Inception_V3_Weights.DEFAULT",
        "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
    ],
)
@pytest.mark.parametrize(("height", "width"), [(300, 500), (700, 401), (64, 48)])
def test_equals_the_preset_of_torchvision(name: str, height: int, width: int) -> None:
    picture = image(height, width)
    preset = get_weight(name).transforms()
    actual = preprocess(Preprocessing(weights=name), picture)[0]
    # In levels of 0 to 255. Pillow, fixed-point and floating-point resizing round differently.
    levels = 255 * torch.tensor(preset.std).view(3, 1, 1)
    from_pillow = preset(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    for expected in (from_pillow, preset(picture)):
        assert ((actual - expected).abs() * levels).max() <= 1.001


def by_channel(resize: v2.Transform) -> v2.Transform:
    """Resize one channel at a time, because PyTorch 2.14 fails on one pixel of several channels."""
    return v2.Lambda(lambda picture: torch.cat([resize(channel[None]) for channel in picture]))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    gray=st.booleans(),
    color=st.sampled_from(Color),
    resize=st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    crop=st.one_of(st.integers(1, 50), st.tuples(st.integers(1, 50), st.integers(1, 50))),
    interpolation=st.sampled_from(Interpolation),
    antialias=st.booleans(),
    value_range=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (1.0, 0.0)]),
    mean=st.sampled_from([None, (0.4,)]),
    std=st.sampled_from([None, (0.3,)]),
)
def test_equals_a_composition_of_torchvision(
    height: int,
    width: int,
    gray: bool,
    color: Color,
    resize: Any,
    crop: Any,
    interpolation: Interpolation,
    antialias: bool,
    value_range: tuple[float, float],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    preprocessing = Preprocessing(
        color=color,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        antialias=antialias,
        value_range=value_range,
        mean=mean,
        std=std,
    )
    picture = image(height, width, gray=gray)
    low, high = value_range
    channels = preprocessing.channels
    steps = [
        by_channel(
            v2.Resize(
                resize, interpolation=InterpolationMode(interpolation.value), antialias=antialias
            )
        ),
        v2.CenterCrop(crop),
        v2.ToDtype(torch.float32, scale=True),
        v2.Lambda(lambda x: x * (high - low) + low),
        v2.Normalize(list((mean or (0.0,)) * channels), list((std or (1.0,)) * channels)),
    ]
    if color is Color.GRAYSCALE:
        steps.insert(0, v2.Lambda(lambda x: x[:1]) if gray else v2.Grayscale())
    expected = v2.Compose(steps)(picture)
    actual = preprocess(preprocessing, picture)
    assert torch.allclose(actual[0], expected, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize("color", Color)
@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("resize", [1, (1, 1), (1, 3), (3, 1)])
def test_one_pixel(
    resize: Any, gray: bool, color: Color, interpolation: Interpolation, antialias: bool
) -> None:
    """Preprocessing is torchvision's if the image, the resized image or the crop is one pixel."""
    mode = InterpolationMode(interpolation.value)
    resizing = by_channel(v2.Resize(resize, interpolation=mode, antialias=antialias))
    for crop in (1, (1, 4), 3):
        preprocessing = Preprocessing(
            color=color,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
            antialias=antialias,
            value_range=(0.0, 255.0),
        )
        for height, width in ((1, 1), (1, 7), (2, 2), (9, 4), (40, 40), (300, 200)):
            picture = image(height, width, gray=gray)
            colored = picture
            if color is Color.GRAYSCALE:
                colored = picture[:1] if gray else v2.Grayscale()(picture)
            expected = v2.CenterCrop(crop)(resizing(colored)).float()
            (actual,) = preprocess(preprocessing, picture)
            assert torch.allclose(actual, expected, atol=1e-4), (crop, height, width)


@pytest.mark.parametrize("interpolation", [Interpolation.BILINEAR, Interpolation.BICUBIC])
def test_one_pixel_is_that_of_the_same_resize_in_floating_point(
    interpolation: Interpolation,
) -> None:
    for picture in (image(30, 30), image(2, 2, 1), image(200, 300, 2)):
        settings = Preprocessing(
            resize=(1, 1), interpolation=interpolation, value_range=(0.0, 255.0)
        )
        mode = InterpolationMode(interpolation.value)
        expected = v2.Resize((1, 1), interpolation=mode, antialias=True)(picture.float())
        assert (preprocess(settings, picture)[0] - expected).abs().max() <= 1.001


@given(st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_gray_images_stay_exact(levels: list[int]) -> None:
    picture = torch.tensor(levels, dtype=torch.uint8).view(1, 2, 2).expand(3, 2, 2)
    settings = Preprocessing(color=Color.GRAYSCALE, crop=2, value_range=(0.0, 255.0))
    actual = preprocess(settings, picture)
    assert actual.shape == (1, 1, 2, 2)
    assert torch.allclose(actual.flatten(), torch.tensor(levels, dtype=torch.float32), atol=1e-4)


def test_black_and_white_become_the_value_range() -> None:
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2).expand(3, 1, 2)
    actual = preprocess(Preprocessing(crop=(1, 2), value_range=(-1.0, 3.0)), black_and_white)
    assert torch.allclose(actual[0, 0, 0], torch.tensor([-1.0, 3.0]), atol=1e-6)


def test_a_batch_of_mixed_sizes_equals_its_images_alone() -> None:
    pictures = [image(40, 30, 1), image(20, 50, 2), image(40, 30, 3, gray=True)]
    for color in Color:
        preprocessing = Preprocessing(color=color, resize=24, crop=20, mean=(0.5,), std=(0.2,))
        together = preprocess(preprocessing, *pictures)
        alone = torch.cat([preprocess(preprocessing, picture) for picture in pictures])
        assert torch.equal(together, alone)


def test_layout_in_memory_does_not_matter() -> None:
    picture = image(40, 30)
    channels_innermost = torch.from_numpy(
        np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    ).permute(2, 0, 1)
    for interpolation in Interpolation:
        preprocessing = Preprocessing(resize=24, crop=20, interpolation=interpolation)
        actual = preprocess(preprocessing, channels_innermost)
        assert torch.equal(actual, preprocess(preprocessing, picture))


def test_the_given_images_are_not_changed() -> None:
    picture = image(8, 8)
    before = picture.clone()
    preprocess(Preprocessing(crop=8, mean=(0.5,)), picture)
    assert torch.equal(picture, before)


@pytest.mark.parametrize(("color", "channels"), [(Color.RGB, 3), (Color.GRAYSCALE, 1)])
def test_without_images_the_batch_is_empty(color: Color, channels: int) -> None:
    preprocessor = Preprocessor(Preprocessing(color=color, crop=(4, 6)), CPU)
    assert preprocessor.shape == (channels, 4, 6)
    empty = preprocessor([])
    assert empty.shape == (0, channels, 4, 6)
    assert empty.dtype == torch.float32


def test_the_batch_is_made_on_the_device() -> None:
    batch = Preprocessor(Preprocessing(crop=4), torch.device("meta"))([image(8, 8)])
    assert batch.device.type == "meta"


@pytest.mark.parametrize("preprocessing", [Preprocessing(), Preprocessing(resize=8)])
def test_a_size_that_depends_on_the_image_is_refused(preprocessing: Preprocessing) -> None:
    with pytest.raises(SpecError, match="set crop"):
        Preprocessor(preprocessing, CPU)
