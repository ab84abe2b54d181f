"""Mistakes in deployment.yaml are reported with their line and key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import jsonschema
import pytest
import yaml
from probe_archives import build_probe

from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.archive.trusted_keys import TrustedKeys
from torchserve_ensemble.handlers.base.errors import ArchiveError, SpecError
from torchserve_ensemble.operations.deployment_file import deployment_schema, load_deployment
from torchserve_ensemble.operations.desired import ArchiveFinder, desired_state
from torchserve_ensemble.operations.plan import DesiredState

GOOD = """
models:
  presence:
    default: "1.1"
    versions:
      - archive: presence-1.0.mar
      - archive: registry://presence:stable
        workers: 2
        batch_size: 8
        max_batch_delay_ms: 5
        device: cpu
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(text)
    return path


def test_a_deployment_is_read(tmp_path: Path) -> None:
    deployment = load_deployment(written(tmp_path, GOOD))
    first, second = deployment.models["presence"].versions
    assert first.changes() == {}
    assert second.changes() == {"runtime": {"device": "cpu"}}
    jsonschema.validate(yaml.safe_load(GOOD), deployment_schema())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {m: {versions: []}}", "models.m.versions"),
        ("models: {m: {versions: [{archive: a.mar, worker: 1}]}}", "did you mean 'workers'"),
        ("models: {m: {versions: [{archive: a.mar, workers: 0}]}}", "models.m.versions[0].workers"),
        ("models: {m: {versions: [{archive: a.mar}, {archive: a.mar}]}}", "listed twice"),
        ('models: {"m/n": {versions: [{archive: a.mar}]}}', "letters, digits"),
        ("modles: {}", "did you mean 'models'"),
    ],
)
def test_mistakes_have_a_line_and_a_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_deployment(written(tmp_path, text))
    assert message in caught.value.message
    assert "deployment.yaml:1: " in caught.value.message


def test_archives_must_fit_what_the_deployment_says(tmp_path: Path) -> None:
    archive = build_probe(tmp_path / "spec", tmp_path, "1.0")
    finder = ArchiveFinder(tmp_path, tmp_path, lambda _: archive)

    def desired(text: str) -> DesiredState:
        return desired_state(load_deployment(written(tmp_path, text)), finder, "d.yaml")

    with pytest.raises(SpecError, match="holds the model 'probes': list it under that name"):
        desired(f"models: {{other: {{versions: [{{archive: {archive.name}}}]}}}}")
    with pytest.raises(SpecError, match=r"is a second archive of version 1\.0"):
        desired(
            "models: {probes: {versions: [{archive: probes-1.0.mar}, {archive: registry://p:1}]}}"
        )
    with pytest.raises(SpecError, match=r"default: no listed archive has the version 1\.1"):
        desired('models: {probes: {default: "1.1", versions: [{archive: probes-1.0.mar}]}}')
    with pytest.raises(ArchiveError, match="has no archive none.mar"):
        desired("models: {m: {versions: [{archive: none.mar}]}}")
    with pytest.raises(ArchiveError, match="no such archive"):
        desired("models: {m: {versions: [{archive: ./none.mar}]}}")


def test_replaced_settings_make_another_archive(tmp_path: Path) -> None:
    build_probe(tmp_path / "spec", tmp_path, "1.0")
    finder = ArchiveFinder(tmp_path, tmp_path, lambda _: tmp_path)
    text = "models: {probes: {versions: [{archive: probes-1.0.mar, batch_size: 4, device: cpu}]}}"
    deployment = load_deployment(written(tmp_path, text))
    (version,) = desired_state(deployment, finder, "d.yaml").models["probes"].versions
    assert version.contents.batch_size == 4
    assert version.source is not None
    for as_version in ("1.0", "1.0.0"):
        version.source.place(tmp_path, "placed.mar", as_version)
        record = verify_archive(tmp_path / "placed.mar")
        assert (record.digest == version.contents.digest) == (as_version == "1.0")
    trusting = replace(finder, trusted=cast("TrustedKeys", AnyKey()))
    with pytest.raises(ArchiveError, match="replacing device would make another, unsigned"):
        desired_state(deployment, trusting, "d.yaml")


class AnyKey:
    """Stands for keys that have signed everything."""

    source = "keys"

    def check(self, *_: object, **__: object) -> None:
        return
