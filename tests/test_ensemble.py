"""Tests of `Ensemble`, which predicts in the caller's own process."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.base.errors import (
    ArchiveError,
    MemberError,
    RequestError,
    ServerError,
    SpecError,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    probes(folder)
    return folder


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> Ensemble:
    return Ensemble.load(folder / "ensemble.yaml")


def test_every_kind_of_image_gives_the_same_prediction(ensemble: Ensemble, tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    path.write_bytes(image(0.6))
    pillow = Image.open(io.BytesIO(image(0.6)))
    pixels = np.asarray(pillow)
    kinds = [
        path,
        str(path),
        image(0.6),
        pillow,
        pillow.convert("L"),
        pixels,
        pixels[:, :, 0],
        torch.from_numpy(pixels[:, :, 0].copy()),
        np.repeat(pixels, 2, axis=1).transpose(2, 0, 1),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
    ]
    together = ensemble.predict(kinds)
    assert len(together) == len(kinds)
    assert {each.label for each in together} == {"bright"}
    assert {each.score for each in together} == {together[0].score}
    assert [ensemble.predict(kind)[0].score for kind in kinds] == [each.score for each in together]
    assert together[0].raw["sample"] == str(path)
    assert together[2].raw["sample"] == "image 2"


def test_a_batch_has_a_prediction_for_each_of_its_rows(ensemble: Ensemble) -> None:
    batch = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    batch[1] = 255
    assert [each.label for each in ensemble.predict(batch)] == ["dark", "bright", "dark"]


def test_samples_in_files_are_named_by_file_and_entry(ensemble: Ensemble, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image(0.9))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("x/1.png", "2.png"):
            archive.writestr(name, image(0.1))
    np.save(tmp_path / "c.npy", np.zeros((2, 4, 4, 3), dtype=np.uint8))
    files = [str(tmp_path / name) for name in ("a.png", "b.zip", "c.npy", "a.png")]
    samples = [each.raw["sample"] for each in ensemble.predict(files)]
    assert samples == [
        files[0],
        f"{files[1]}/x/1.png",
        f"{files[1]}/2.png",
        f"{files[2]}[0]",
        f"{files[2]}[1]",
        files[3],
    ]


def test_a_photograph_turned_by_its_exif_data_is_turned_upright(ensemble: Ensemble) -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 4:] = 255
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(file.getvalue()))
    first, second = ensemble.predict([file.getvalue(), opened], include=["scores"])
    assert first.scores == second.scores


def test_options_are_those_of_a_request(ensemble: Ensemble) -> None:
    (alone,) = ensemble.predict(image(0.3), members=["a"])
    assert list(alone.members) == ["a"]
    (voted,) = ensemble.predict(
        image(0.6), policy="majority", weights={"a": 0.0}, include=["scores"]
    )
    assert voted.label == "bright"
    with pytest.raises(RequestError, match="did you mean 'policy'"):
        ensemble.predict(image(0.3), polcy="any")
    with pytest.raises(RequestError, match="answers are Python objects"):
        ensemble.predict(image(0.3), response="csv")


def test_more_images_than_a_request_may_have(ensemble: Ensemble) -> None:
    count = ensemble._service.spec.limits.max_samples + 10
    predictions = ensemble.predict([image(0.9)] * count, batch_size=100)
    assert len(predictions) == count
    assert predictions[-1].raw["sample"] == f"image {count - 1}"


def test_predictions_come_before_all_images_were_read(ensemble: Ensemble) -> None:
    taken = []

    def images() -> object:
        for position in range(10):
            taken.append(position)
            yield image(0.9)

    first = next(ensemble.predict_each(images(), batch_size=2))  # type: ignore[arg-type]
    assert first.label == "bright"
    assert len(taken) == 2


def test_a_sequence_is_one_request(ensemble: Ensemble) -> None:
    images = [image(0.9)] * 3 + [image(0.1)] * 2
    smoothed = ensemble.predict(images, batch_size=2, smooth="majority", smooth_window=5)
    assert smoothed[-1].raw["smoothed"]["label"] == "bright"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("no-such.png", "no-such.png: cannot be read"),
        (b"not an image", "sample 0"),
        ([3], "int is no image"),
        (np.zeros((4, 4, 3), dtype=np.int64), "int64"),
    ],
)
def test_what_is_no_image(ensemble: Ensemble, images: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ensemble.predict(images)  # type: ignore[arg-type]


def test_an_unreadable_image_may_be_skipped(ensemble: Ensemble) -> None:
    bad, good = ensemble.predict([b"not an image", image(0.9)], on_error="skip")
    assert bad.error is not None
    assert good.label == "bright"


def test_an_archive_predicts_as_its_spec_does(folder: Path, ensemble: Ensemble) -> None:
    archive = build_archive(folder / "ensemble.yaml", folder / "store")
    packaged = Ensemble.load(archive)
    images = [image(brightness / 10) for brightness in range(10)]
    assert [each.raw for each in packaged.predict(images)] == [
        each.raw for each in ensemble.predict(images)
    ]
    assert packaged.description["model"]["archive"].startswith("sha256:")


def test_an_archive_of_another_release_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = build_archive(folder / "ensemble.yaml", folder / "store")
    monkeypatch.setattr("torchserve_ensemble.ensemble.metadata.version", lambda _: "99.0")
    with caplog.at_level(logging.WARNING):
        Ensemble.load(archive)
    assert "99.0" in caplog.text


def test_what_cannot_be_loaded(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SpecError, match="ensemble.yaml"):
        Ensemble.load(tmp_path / "ensemble.yaml")
    damaged = tmp_path / "a.mar"
    damaged.write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match="a.mar"):
        Ensemble.load(damaged)
    with pytest.raises(ArchiveError, match="b.mar"):
        Ensemble.load(tmp_path / "b.mar")


def test_members_that_fail_are_no_mistake_of_the_caller(tmp_path: Path) -> None:
    probes(
        tmp_path,
        arguments={name: {"raises_above": 0.95} for name in "abc"},
    )
    failing = Ensemble.load(tmp_path / "ensemble.yaml")
    with pytest.raises((ServerError, MemberError), match="too bright"):
        failing.predict(image(1.0))
