"""Image files that a function of the user's own decodes."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import GRAY, encoded, png
from PIL import Image
from probe_ensemble import ask, image, probes, refusal

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.errors import EnsembleError, MemberError, SpecError
from torchserve_ensemble.handlers.base.own_code import OwnFunction
from torchserve_ensemble.handlers.base.threads import ThreadPool
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.inputs.image_decoding import ImageDecoding
from torchserve_ensemble.handlers.inputs.sample_errors import SampleErrors
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import Window, load_spec

OWN = """
from pathlib import Path
import numpy
import torch
from PIL import Image


def decode(content):
    Path(__file__).with_name("calls").open("a").write("x")
    if content[:3] != b"TOY":
        raise ValueError("no toy file")
    return numpy.frombuffer(content, ">u2", offset=3).reshape(4, -1)


def damaged(content):
    return [1, 2, 3]


def two(content, more):
    return content


def mean(values):
    assert values.dtype is torch.uint16 and tuple(values.shape) == (1, 4, 4)
    return (values.float() / 65535).mean().expand(3, 2, 2)
"""
PILLOW = """
import io
from PIL import Image


def decode(content):
    return Image.open(io.BytesIO(content))
"""
WHOLE_RANGE = {"center": 32767.5, "width": 65535}


def toy(brightness: float, columns: int = 4) -> bytes:
    """A file of 4 rows in a format that only the function knows."""
    return b"TOY" + struct.pack(f">{4 * columns}H", *[round(65535 * brightness)] * 4 * columns)


def spec(folder: Path, own: str = OWN, members: str = "abc", **keys: Any) -> Path:
    """Write an ensemble some of whose members decode files by their own function."""
    probes(folder)
    (folder / "own.py").write_text(own)
    (folder / "example.toy").write_bytes(toy(0.5))
    content = json.loads((folder / "ensemble.yaml").read_text())
    preprocessing = {
        "decode": "own.py:decode",
        "example": "example.toy",
        "window": WHOLE_RANGE,
        "resize": [2, 2],
        **keys,
    }
    content["preprocessing"]["own"] = {k: v for k, v in preprocessing.items() if v is not None}
    for member in content["members"]:
        member["preprocessing"] = "own" if member["name"] in members else "small"
    (folder / "ensemble.yaml").write_text(json.dumps(content))
    return folder / "ensemble.yaml"


def service_of(path: Path) -> EnsembleService:
    return load_service(load_spec(path), path.parent)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> EnsembleService:
    return service_of(spec(tmp_path_factory.mktemp("own")))


def test_members_see_what_the_function_decodes(service: EnsembleService, tmp_path: Path) -> None:
    usual = probes(tmp_path)
    for level in (51, 102, 153, 204):
        found, expected = ask(service, toy(level / 255)), ask(usual, image(level / 255))
        (one,), (other,) = found["predictions"], expected["predictions"]
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_failure_names_file_and_line_and_stays_with_its_sample(service: EnsembleService) -> None:
    content = ask(service, toy(0.9), b"something else", toy(0.1), on_error="skip")
    good, bad, other = content["predictions"]
    assert (good["label"], other["label"]) == ("bright", "dark")
    assert (
        "sample 1 (file[1]) cannot be decoded by own.py:decode: own.py, line 11: ValueError: no toy"
        in bad["error"]["message"]
    )
    assert refusal(service, b"something else")["code"] == 400
    assert "is empty" in refusal(service, b"")["message"]


def test_pixels_that_a_client_sends_as_numbers_are_not_decoded(tmp_path: Path) -> None:
    loaded = Ensemble.load(spec(tmp_path))
    (prediction,) = loaded.predict(np.full((4, 4, 3), 230, np.uint8))
    assert prediction.label == "bright"


def test_members_of_one_request_may_decode_its_files_in_different_ways(tmp_path: Path) -> None:
    """One member takes a 16-bit PNG from 0 to 1000, the others as every viewer does."""
    probes(tmp_path)
    dark_16_bit = png(4, 16, GRAY, *[struct.pack(">4H", *[900] * 4)] * 4)
    path = spec(tmp_path, PILLOW, "b", window={"center": 500, "width": 1000})
    (tmp_path / "example.toy").write_bytes(dark_16_bit)
    for loaded in (Ensemble.load(path), Ensemble(load_service(load_spec(path), tmp_path))):
        (found,) = loaded.predict(dark_16_bit)
        assert [member.label for member in found.members.values()] == ["dark", "bright", "dark"]


def test_a_file_is_decoded_once_for_preprocessings_that_decode_alike(tmp_path: Path) -> None:
    path = spec(tmp_path, members="ab")
    content = json.loads(path.read_text())
    content["preprocessing"]["larger"] = content["preprocessing"]["own"] | {"resize": [3, 3]}
    content["members"][1]["preprocessing"] = "larger"
    content["members"][2]["preprocessing"] = "larger"
    path.write_text(json.dumps(content))
    service = service_of(path)
    calls = tmp_path / "calls"
    calls.unlink()
    ask(service, toy(0.2), toy(0.7))
    assert len(calls.read_text()) == 2


def test_another_function_may_take_what_the_first_returned(tmp_path: Path) -> None:
    own = OWN.replace(
        "return numpy.frombuffer(content", 'return torch.frombuffer(bytearray(content[3:]), dtype='
        "torch.uint16).reshape(4, -1)\n    return numpy.frombuffer(content"
    )  # fmt: skip
    keys = {"function": "own.py:mean", "shape": [3, 2, 2], "resize": None, "window": None}
    service = service_of(spec(tmp_path, own, **keys))
    little_endian = b"TOY" + struct.pack("<16H", *[60_000] * 16)
    (prediction,) = ask(service, little_endian)["predictions"]
    assert prediction["label"] == "bright"


def test_frames_are_refused_since_the_function_takes_whole_files(service: EnsembleService) -> None:
    pages = [Image.new("L", (4, 4), level) for level in (0, 255)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    message = refusal(service, data, frames="true")["message"]
    assert "own.py:decode decodes whole files: send the request without the option" in message


class TestBuild:
    def test_the_archive_carries_the_function_and_the_example(self, tmp_path: Path) -> None:
        path = spec(tmp_path)
        archive = build_archive(path, tmp_path / "store")
        with zipfile.ZipFile(archive) as opened:
            assert {"ensemble/own.py", "ensemble/example.toy"} <= set(opened.namelist())
        assert {"ensemble/own.py", "ensemble/example.toy"} <= set(verify_archive(archive).files)
        (found,) = Ensemble.load(archive).predict(toy(0.6))
        (expected,) = Ensemble.load(path).predict(toy(0.6))
        assert found == expected

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"decode": "own.py:damaged"},
                "preprocessing: decode own.py:damaged returned list, not an image",
            ),
            ({"window": None}, "returned numbers of torch.uint16; return uint8"),
            (
                {"example": "own.py"},
                "example own.py cannot be decoded by own.py:decode: own.py, line 11",
            ),
        ],
    )
    def test_a_function_that_fails_on_its_example(
        self, tmp_path: Path, keys: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(EnsembleError, match=message):
            build_archive(spec(tmp_path, **keys), tmp_path / "store")

    def test_a_function_of_two_arguments(self, tmp_path: Path) -> None:
        message = r"own.py:two is called with one argument, and takes \(content, more\)"
        with pytest.raises(MemberError, match=message):
            service_of(spec(tmp_path, decode="own.py:two"))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"example": None}, "preprocessing.own.decode: needs example"),
            ({"decode": None}, "preprocessing.own.example: belongs to decode"),
            ({"decode": "own.py"}, "preprocessing.own.decode"),
            ({"example": "example.toi"}, "did you mean 'example.toy'"),
            ({"example": "../example.toy"}, "must lie in the spec's folder"),
            ({"decode": "../own.py:decode"}, "must lie in the spec's folder"),
            ({"window": {"center": 3}}, "preprocessing.own.window.width: this key is missing"),
            ({"window": {"center": 3, "width": 0}}, "preprocessing.own.window.width"),
            ({"window": {"center": 3, "wide": 1}}, "did you mean 'width'"),
        ],
    )
    def test_mistakes_in_the_spec(self, tmp_path: Path, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            load_spec(spec(tmp_path, **keys))

    def test_weights_of_torchvision_may_stand_beside_it(self, tmp_path: Path) -> None:
        path = spec(tmp_path, resize=None, weights="ResNet18_Weights.DEFAULT")
        (found,) = Ensemble.load(path).predict(toy(0.9))
        assert found.label == "bright"


class TestResults:
    """What a function may return, and what becomes of it."""

    def decode(self, result: Any, window: Window | None = None, **keys: Any) -> torch.Tensor:
        decoding = ImageDecoding(OwnFunction("own.py:decode", lambda _: result), window, **keys)
        return decoding.decode(b"any", SampleErrors.of("a", 0, b"any"), max_pixels=100)

    @pytest.mark.parametrize(
        "result",
        [
            torch.full((3, 2, 5), 51, dtype=torch.uint8),
            np.full((2, 5, 3), 51, np.uint8),
            Image.new("RGB", (5, 2), (51, 51, 51)),
            Image.new("L", (5, 2), 51),
            Image.fromarray(np.full((2, 5), 51 * 257, np.uint16)),
        ],
    )
    def test_eight_bits(self, result: Any) -> None:
        expected = torch.full((3, 2, 5), 51, dtype=torch.uint8)
        assert torch.equal(self.decode(result), expected)

    @pytest.mark.parametrize(
        ("result", "shape"),
        [
            (torch.full((2, 5), 0.25), (1, 2, 5)),
            (torch.full((1, 2, 5), 0.25, dtype=torch.float64), (1, 2, 5)),
            (np.full((2, 5, 3), 0.25, ">f4"), (3, 2, 5)),
            (np.full((2, 5), 0.25, np.float16), (1, 2, 5)),
        ],
    )
    def test_floats(self, result: Any, shape: tuple[int, ...]) -> None:
        assert torch.equal(self.decode(result), torch.full(shape, 0.25))

    @pytest.mark.parametrize(
        "result",
        [
            np.array([[-1000, 0, 40, 240, 3000]], np.int16),
            torch.tensor([[[-1000.0, 0, 40, 240, 3000]]]),
            Image.fromarray(np.array([[-1000, 0, 40, 240, 3000]], np.int32)),
        ],
    )
    def test_a_window_takes_numbers_of_any_kind(self, result: Any) -> None:
        found = self.decode(result, Window(center=40, width=400))
        assert torch.allclose(found, torch.tensor([[[0, 0.4, 0.5, 1, 1]]]))

    def test_eight_bits_stay_as_they_are_in_spite_of_a_window(self) -> None:
        levels = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
        assert torch.equal(self.decode(levels, Window(center=1, width=1)), levels)

    def test_another_function_gets_any_tensor(self) -> None:
        values = torch.full((7, 2, 2), -5)
        assert torch.equal(self.decode(values, keeps_values=True), values)

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (None, "returned NoneType, not an image, a tensor or an array"),
            (torch.zeros(4), r"returned the shape \(4,\); a tensor has the shape"),
            (torch.zeros((4, 2, 2)), "with 1 or 3 channels"),
            (torch.zeros((3, 0, 2)), r"the shape \(3, 0, 2\)"),
            (torch.zeros((2, 2), dtype=torch.int16), "numbers of torch.int16; return uint8"),
            (torch.full((2, 2), 200.0), "floats from 200 to 200; they must lie between 0"),
            (torch.full((2, 2), float("nan")), "NaN or infinite"),
            (np.array([["a"]]), "an array of <U1"),
        ],
    )
    def test_anything_else_is_named(self, result: Any, message: str) -> None:
        with pytest.raises(EnsembleError, match=message) as caught:
            self.decode(result)
        assert caught.value.status == 500
        assert "own.py:decode" in caught.value.message

    @pytest.mark.parametrize(
        "result", [torch.zeros((1, 9, 12)), np.zeros((9, 12)), Image.new("L", (12, 9))]
    )
    def test_too_many_pixels(self, result: Any) -> None:
        with pytest.raises(EnsembleError, match="12 x 9 pixels; the limit is 100") as caught:
            self.decode(result)
        assert caught.value.status == 413


def test_a_header_that_the_server_can_read_is_held_to_the_limits() -> None:
    calls = []
    decoding = ImageDecoding(OwnFunction("own.py:decode", calls.append))
    data = encoded(Image.new("L", (20, 20)), "PNG")
    with pytest.raises(EnsembleError, match="20 x 20 pixels; the limit is 100"):
        decoding.open(data, SampleErrors.of("a", 0, data), max_pixels=100)
    assert calls == []


def test_samples_are_decoded_on_several_threads(tmp_path: Path) -> None:
    path = spec(tmp_path)
    content = json.loads(path.read_text())
    content["runtime"] = {"threads": 3}
    path.write_text(json.dumps(content))
    service = service_of(path)
    assert isinstance(service._decoder._pool, ThreadPool)
    levels = [0.1 * step for step in range(1, 10)]
    content = ask(service, *map(toy, levels))
    labels = [prediction["label"] for prediction in content["predictions"]]
    assert labels == ["dark" if level < 0.5 else "bright" for level in levels[:4]] + (
        labels[4:5] + ["bright"] * 4
    )


def test_a_request_with_two_decodings_pays_for_both(tmp_path: Path) -> None:
    path = spec(tmp_path, PILLOW, "b", window=None)
    picture = encoded(Image.new("L", (20, 20)), "PNG")
    (tmp_path / "example.toy").write_bytes(picture)
    content = json.loads(path.read_text())
    content["limits"] = {"max_request_pixels": 800}
    path.write_text(json.dumps(content))
    service = service_of(path)
    assert ask(service, picture, members="a,c")["predictions"]
    assert refusal(service, picture)["code"] == 413
