"""Images can be resized by Pillow as in training code, and with a frame that keeps proportions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.inputs.image_decoding import ImageDecoding
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.inputs.preprocessing import Preprocessor
from torchserve_ensemble.handlers.inputs.sample_errors import SampleErrors
from torchserve_ensemble.handlers.spec import (
    Color,
    Interpolation,
    Preprocessing,
    ResizeLibrary,
    parse_spec,
)

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def pixels(image: Tensor, **keys: Any) -> Tensor:
    """Preprocess an image to float32 (channels, height, width), in levels from 0 to 255."""
    return Preprocessor(Preprocessing(value_range=(0.0, 255.0), **keys), CPU)([image])[0]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    interpolation=st.sampled_from(
        [Interpolation.NEAREST, Interpolation.BILINEAR, Interpolation.BICUBIC]
    ),
)
def test_pillow_gives_the_pixels_of_a_preset_on_a_pil_image(
    height: int, width: int, resize: int | tuple[int, int], interpolation: Interpolation
) -> None:
    image = picture(height, width)
    preset = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=InterpolationMode(interpolation.value)),
            transforms.CenterCrop(12),
            transforms.PILToTensor(),
        ]
    )
    expected = preset(Image.fromarray(image.permute(1, 2, 0).numpy()))
    actual = pixels(
        image,
        resize=resize,
        crop=12,
        interpolation=interpolation,
        resize_library=ResizeLibrary.PILLOW,
    )
    assert torch.allclose(actual, expected.float(), atol=1e-4)


def test_a_file_gives_the_input_of_plain_torchvision_code() -> None:
    gradient = np.asarray(Image.linear_gradient("L").resize((500, 375)))
    photograph = Image.fromarray(np.stack([gradient, gradient[::-1], gradient[:, ::-1]], axis=2))
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=90)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    expected = plain(Image.open(io.BytesIO(file.getvalue())))
    image = decode_image(file.getvalue(), max_pixels=1_000_000, name="a.jpg")
    for library, largest in (
        (ResizeLibrary.PILLOW, 1e-5),
        (ResizeLibrary.TORCH, 1.01 / 255 / 0.22),
    ):
        settings = Preprocessing(resize=256, crop=224, mean=mean, std=std, resize_library=library)
        (actual,) = Preprocessor(settings, CPU)([image])
        assert (actual - expected).abs().max() <= largest, library


@pytest.mark.parametrize("library", ResizeLibrary)
@pytest.mark.parametrize("color", Color)
@pytest.mark.parametrize(
    ("height", "width", "inside"),
    [
        (20, 40, (8, 0, 16, 32)),
        (40, 20, (0, 8, 32, 16)),
        (10, 10, (0, 0, 32, 32)),
        (1, 1000, (15, 0, 1, 32)),
    ],
)
def test_a_letterbox_keeps_proportions(
    library: ResizeLibrary, color: Color, height: int, width: int, inside: tuple[int, ...]
) -> None:
    white = torch.full((3, height, width), 255, dtype=torch.uint8)
    actual = pixels(white, resize=(32, 32), letterbox=114, color=color, resize_library=library)
    top, left, inner_height, inner_width = inside
    expected = torch.full_like(actual, 114)
    expected[:, top : top + inner_height, left : left + inner_width] = 255
    assert torch.allclose(actual, expected, atol=1e-3)


def test_a_letterbox_is_the_stretched_image_where_proportions_fit() -> None:
    image = picture(40, 60)
    stretched = pixels(image, resize=(20, 30))
    assert torch.equal(pixels(image, resize=(20, 30), letterbox=0), stretched)


SPEC = """
name: a
version: "1.0"
task: classification
labels: [x, y]
preprocessing: {{small: {keys}}}
members: [{{name: m, weights: m.onnx}}]
"""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{resize: 8, crop: 8, letterbox: 0}", "letterbox"),
        ("{resize: [8, 8], letterbox: 256}", "letterbox"),
        ("{resize: [8, 8], resize_library: pillow, antialias: false}", "antialias"),
        ("{resize: [8, 8], resize_library: pillow, interpolation: nearest-exact}", "interpolation"),
        ("{resize: [8, 8], resize_library: pilow}", "did you mean 'pillow'"),
        ("{resize: [8, 8], normalize: imagenet, mean: [0.5]}", "normalize: sets mean and std"),
        ("{resize: [8, 8], normalize: imagenet, color: grayscale}", "normalize: is for color: rgb"),
        ("{resize: [8, 8], normalize: imagenet, value_range: [-1, 1]}", "normalize: is for"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    keys: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(SPEC.format(keys=keys))


def test_torchvision_weights_may_be_resized_by_pillow() -> None:
    keys = "{weights: ResNet18_Weights.DEFAULT, resize_library: pillow}"
    spec = parse_spec(SPEC.format(keys=keys))
    (preprocessing,) = spec.preprocessing.values()
    assert Preprocessor(preprocessing, CPU).settings.resize_library is ResizeLibrary.PILLOW


def photograph(width: int, height: int) -> bytes:
    """A smooth JPEG file, as photographs are at the scale of single pixels."""
    small = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "decoded"),
    [
        (1600, 1200, (150, 200)),  # an eighth
        (400, 300, (150, 200)),
        (250, 190, (190, 250)),  # half of it is less than twice the size of resize
    ],
)
def test_scaled_jpeg_files_are_decoded_at_a_fraction_of_their_size(
    width: int, height: int, decoded: tuple[int, int]
) -> None:
    settings_of = {
        scaled: Preprocessing(resize=64, crop=64, scaled_jpeg=scaled) for scaled in (False, True)
    }
    file = photograph(width, height)
    errors = SampleErrors.of("a", 0, file)
    inputs = {}
    for scaled, each in settings_of.items():
        decoding = ImageDecoding(min_jpeg_size=each.min_jpeg_size)
        image = decoding.decode(file, errors, max_pixels=10**7)
        assert tuple(image.shape[1:]) == (decoded if scaled else (height, width))
        (inputs[scaled],) = Preprocessor(each, CPU)([image])
    # Levels from 0 to 1.
    assert (inputs[True] - inputs[False]).abs().max() < 0.03
    assert (inputs[True] - inputs[False]).abs().mean() < 0.004


def test_scaled_jpeg_belongs_to_resize() -> None:
    text = """
name: a
version: "1"
task: presence
labels: [absent, present]
preprocessing: {small: {crop: 4, scaled_jpeg: true}}
members: [{name: a, weights: a.pt, format: torchscript}]
"""
    with pytest.raises(SpecError, match=r"scaled_jpeg: needs resize, which says how large"):
        parse_spec(text)
