"""Windows: which values of gray images of more than 8 bits become black to white."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import GRAY, encoded, gray_tiff, png
from PIL import Image
from probe_ensemble import ask, probes
from torch import Tensor
from torchvision.transforms import v2

from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.inputs import colors
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.inputs.preprocessing import Preprocessor
from torchserve_ensemble.handlers.spec import (
    Color,
    Interpolation,
    Preprocessing,
    ResizeLibrary,
    Window,
    load_spec,
)

CPU = torch.device("cpu")


def decode(data: bytes, center: float, width: float) -> Tensor:
    found = decode_image(data, max_pixels=1_000_000, window=Window(center=center, width=width))
    assert found.dtype is torch.float32
    assert len(found) == 1
    return found


def levels(data: bytes, center: float, width: float) -> list[float]:
    values: list[float] = decode(data, center, width).flatten().tolist()
    return values


class TestDecoding:
    def test_sixteen_bit_png(self) -> None:
        row = struct.pack(">6H", 0, 100, 150, 200, 300, 65535)
        expected = pytest.approx([0, 0, 0.25, 0.5, 1, 1])
        assert levels(png(6, 16, GRAY, row), center=200, width=200) == expected

    def test_tiff_of_every_kind(self) -> None:
        row = struct.pack("<3H", 100, 200, 300)
        assert levels(gray_tiff(3, 16, row), 200, 200) == [0, 0.5, 1]
        assert levels(gray_tiff(3, 16, row, white_is_zero=True), 200, 200) == pytest.approx(
            [1, 0.5, 0]
        )
        signed = struct.pack("<3i", -1000, 40, 240)
        assert levels(gray_tiff(3, 32, signed, sample_format=2), 40, 400) == [0, 0.5, 1]
        unsigned = struct.pack("<2I", 3_000_000_000, 4_000_000_000)
        assert levels(gray_tiff(2, 32, unsigned), 3.5e9, 1e9) == [0, 1]
        floats = struct.pack("<4f", -1, 0, 1, float("nan"))
        assert levels(gray_tiff(4, 32, floats, sample_format=3), 0, 2) == [0, 0.5, 1, 0]
        assert levels(gray_tiff(2, 12, b"\xff\xf8\x00"), 2048, 4094) == [1, 0.5]

    def test_a_transparent_level_is_white(self) -> None:
        row = struct.pack(">2H", 100, 120)
        data = png(2, 16, GRAY, row, transparency=struct.pack(">H", 100))
        assert levels(data, 120, 100) == [1, 0.5]

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
    def test_images_of_eight_bits_stay_as_they_are(self, mode: str) -> None:
        data = encoded(Image.linear_gradient("L").convert(mode), "PNG")
        found = decode_image(data, max_pixels=100_000, window=Window(center=5, width=2))
        assert torch.equal(found, decode_image(data, max_pixels=100_000))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_bands_and_orientation(self, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.arange(35, dtype=np.uint16).reshape(7, 5)
        exif = Image.Exif()
        exif[0x0112] = orientation
        eight_bits = encoded(Image.fromarray(values.astype(np.uint8)), "TIFF", exif=exif)
        upright = decode_image(eight_bits, max_pixels=100)[:1]
        data = encoded(Image.fromarray(values), "TIFF", exif=exif)
        for pixels in (1 << 20, 5):
            monkeypatch.setattr(colors, "_PIXELS_PER_BAND", pixels)
            assert torch.allclose(decode(data, 17.0, 34.0) * 34, upright.float(), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    color=st.sampled_from(Color),
    resize=st.one_of(st.integers(2, 30), st.tuples(st.integers(1, 30), st.integers(2, 30))),
    interpolation=st.sampled_from([Interpolation.BILINEAR, Interpolation.BICUBIC]),
)
def test_equals_plain_torchvision_code_on_floats(
    height: int, width: int, color: Color, resize: Any, interpolation: Interpolation
) -> None:
    values = np.random.default_rng(0).integers(0, 5000, (height, width)).astype(np.uint16)
    keys = {"color": color, "mean": (0.4,), "std": (0.2,), "interpolation": interpolation}
    preprocessing = Preprocessing(
        resize=resize, crop=12, window=Window(center=2000, width=3000), **keys
    )
    image = decode(encoded(Image.fromarray(values), "PNG"), 2000, 3000)
    (found,) = Preprocessor(preprocessing, CPU)([image])
    from_zero_to_one = ((values.astype(np.float32) - 500) / 3000).clip(0, 1)
    plain = v2.Compose(
        [
            v2.Resize(resize, interpolation=v2.InterpolationMode(interpolation.value)),
            v2.CenterCrop(12),
            v2.Normalize([0.4], [0.2]),
        ]
    )
    expected = plain(torch.from_numpy(from_zero_to_one)[None])
    assert found.shape == (preprocessing.channels, 12, 12)
    assert (found - expected).abs().max() <= 1e-4


def test_pillow_resizes_the_floats() -> None:
    values = np.random.default_rng(0).integers(0, 5000, (30, 40)).astype(np.uint16)
    window = Window(center=2500, width=5000)
    settings = Preprocessing(
        resize=(12, 16), window=window, resize_library=ResizeLibrary.PILLOW, color=Color.GRAYSCALE
    )
    image = decode(encoded(Image.fromarray(values), "PNG"), 2500, 5000)
    (found,) = Preprocessor(settings, CPU)([image])
    plain = Image.fromarray(values.astype(np.float32) / 5000).resize((16, 12), Image.BILINEAR)
    assert np.abs(found[0].numpy() - np.asarray(plain)).max() <= 1e-5


def test_a_letterbox_around_floats() -> None:
    settings = Preprocessing(resize=(4, 4), letterbox=51, window=Window(center=5, width=10))
    (found,) = Preprocessor(settings, CPU)([torch.ones((1, 2, 4))])
    assert found.shape == (3, 4, 4)
    assert torch.allclose(found[:, [0, 3]], torch.tensor(0.2))
    assert torch.allclose(found[:, 1:3], torch.tensor(1.0))


def test_images_of_eight_and_of_sixteen_bits_share_a_batch() -> None:
    settings = Preprocessing(resize=(2, 2), window=Window(center=5, width=10))
    images = [torch.full((1, 3, 3), 0.2), torch.full((3, 3, 3), 51, dtype=torch.uint8)]
    assert torch.allclose(Preprocessor(settings, CPU)(images), torch.tensor(0.2))
    on_device = Preprocessor(settings, torch.device("meta"))(images)
    assert on_device.shape == (2, 3, 2, 2)


def dark(value: int) -> bytes:
    """A 16-bit PNG that is nearly black without a window."""
    return encoded(Image.fromarray(np.full((4, 4), value, np.uint16)), "PNG")


def windowed_probes(folder: Path, **keys: Any) -> Path:
    probes(folder)
    path = folder / "ensemble.yaml"
    content = json.loads(path.read_text())
    content["preprocessing"] = {"small": {"window": {"center": 500, "width": 1000}, **keys}}
    path.write_text(json.dumps(content))
    return path


def test_the_ensemble_sees_the_window(tmp_path: Path) -> None:
    (without,) = Ensemble(probes(tmp_path)).predict(dark(900))
    assert without.label == "dark"
    loaded = Ensemble.load(windowed_probes(tmp_path, resize=[2, 2]))
    for images in ([dark(900), dark(100)], [Image.open(io.BytesIO(dark(v))) for v in (900, 100)]):
        assert [each.label for each in loaded.predict(images)] == ["bright", "dark"]


def test_pages_of_a_tiff_have_the_window_too(tmp_path: Path) -> None:
    path = windowed_probes(tmp_path, resize=[2, 2])
    pages = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (900, 100, 800)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    service = load_service(load_spec(path), tmp_path)
    content = ask(service, file.getvalue(), frames="true")
    assert [each["label"] for each in content["predictions"]] == ["bright", "dark", "bright"]


def test_members_with_and_without_a_window_see_every_frame(tmp_path: Path) -> None:
    path = windowed_probes(tmp_path, resize=[2, 2])
    content = json.loads(path.read_text())
    content["members"][0]["preprocessing"] = "small"
    for member in content["members"][1:]:
        member["preprocessing"] = {"resize": [2, 2]}
    path.write_text(json.dumps(content))
    pages = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (900, 60_000, 100)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    service = load_service(load_spec(path), tmp_path)
    content = ask(service, file.getvalue(), frames="true")
    labels = [[each["members"][name]["label"] for name in "ab"] for each in content["predictions"]]
    assert labels == [["bright", "dark"], ["bright", "bright"], ["dark", "dark"]]


def test_an_own_function_gets_floats_of_three_channels(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def prepare(pixels):\n"
        "    assert pixels.is_floating_point() and len(pixels) == 3 and pixels.max() <= 1\n"
        "    return pixels.mul_(1)[:, :2, :2]\n"
    )
    path = windowed_probes(tmp_path, function="own.py:prepare", shape=[3, 2, 2])
    eight_bits = encoded(Image.new("RGB", (4, 4), "white"), "PNG")
    labels = [each.label for each in Ensemble.load(path).predict([dark(900), dark(9), eight_bits])]
    assert labels == ["bright", "dark", "bright"]
