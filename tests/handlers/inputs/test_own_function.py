"""A function of the user can preprocess images; its mistakes are reported with file and line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_ensemble import ask, image, probes, refusal

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.base.errors import EnsembleError, MemberError, SpecError
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import load_spec

OWN = """
import torch
from helper import SCALE


def prepare(pixels):
    assert pixels.dtype is torch.uint8 and pixels.shape[0] == 3
    values = pixels.float() / SCALE
    if values.mean() > 0.95:
        raise ValueError("too bright for me")
    if values.mean() < 0.03:
        return values
    if values.mean() < 0.06:
        return torch.full((3, 2, 2), float("nan"))
    pixels.zero_()
    return values.mean(dim=(1, 2), keepdim=True).expand(3, 2, 2)


def lists(pixels):
    return [1, 2, 3]
"""


def spec(folder: Path, function: str = "own.py:prepare", **keys: Any) -> Path:
    """Write a spec in which all members but the first use the function; return its path."""
    probes(folder)
    (folder / "own.py").write_text(OWN)
    (folder / "helper.py").write_text("SCALE = 255\n")
    content = json.loads((folder / "ensemble.yaml").read_text())
    content["preprocessing"]["own"] = {"function": function, "shape": [3, 2, 2], **keys}
    content["extra_files"] = ["helper.py"]
    content["members"][0]["preprocessing"] = "small"
    for member in content["members"][1:]:
        member["preprocessing"] = "own"
    (folder / "ensemble.yaml").write_text(json.dumps(content))
    return folder / "ensemble.yaml"


def service_of(path: Path) -> EnsembleService:
    return load_service(load_spec(path), path.parent)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> EnsembleService:
    return service_of(spec(tmp_path_factory.mktemp("own")))


def test_members_get_what_the_function_returns(service: EnsembleService, tmp_path: Path) -> None:
    usual = probes(tmp_path)
    for brightness in (0.2, 0.4, 0.6, 0.8):
        actual, expected = ask(service, image(brightness)), ask(usual, image(brightness))
        assert actual["predictions"] == expected["predictions"]


def test_a_failure_names_sample_file_and_line_and_stays_with_its_sample(
    service: EnsembleService,
) -> None:
    content = ask(service, image(0.5), image(0.99), image(0.4), on_error="skip")
    good, bad, other = content["predictions"]
    assert good["label"] == "bright"
    assert other["label"] == "dark"
    message = bad["error"]["message"]
    where = "sample 1 (file[1]): preprocessing own.py:prepare: own.py, line 10: ValueError"
    assert where in message
    whole = refusal(service, image(0.5), image(0.99))
    assert whole["code"] == 500


@pytest.mark.parametrize(
    ("brightness", "message"), [(0.02, "(3, 4, 4)"), (0.05, "NaN or infinite")]
)
def test_a_wrong_result_is_named(service: EnsembleService, brightness: float, message: str) -> None:
    assert message in refusal(service, image(brightness))["message"]


def test_a_function_that_never_works_stops_the_build(tmp_path: Path) -> None:
    path = spec(tmp_path, "own.py:lists")
    with pytest.raises(EnsembleError, match="own.py:lists: it returned list"):
        build_archive(path, tmp_path / "store")


def test_a_missing_function_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="did you mean 'prepare'"):
        service_of(spec(tmp_path, "own.py:prepar"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shape": None}, "needs shape"),
        ({"resize": 8}, "no other key but shape"),
        ({"function": "own.py"}, "function"),
        ({"function": None}, "belongs to function"),
    ],
)
def test_mistakes_in_the_spec_are_refused(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(spec(tmp_path, **keys))


def test_the_archive_carries_the_file(tmp_path: Path) -> None:
    path = spec(tmp_path)
    archive = build_archive(path, tmp_path / "store")
    with zipfile.ZipFile(archive) as opened:
        assert "ensemble/own.py" in opened.namelist()
    (actual,) = Ensemble.load(archive).predict(image(0.6))
    (expected,) = Ensemble.load(path).predict(image(0.6))
    assert (actual.label, actual.score) == (expected.label, expected.score)


def test_floats_that_a_client_preprocessed_are_not_preprocessed_again(tmp_path: Path) -> None:
    path = spec(tmp_path)
    content = json.loads(path.read_text())
    content["members"][0]["preprocessing"] = "own"
    path.write_text(json.dumps(content))
    loaded = Ensemble.load(path)
    (prediction,) = loaded.predict(torch.full((3, 2, 2), 0.6))
    assert prediction.label == "bright"
