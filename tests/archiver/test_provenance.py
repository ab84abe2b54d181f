"""The bill of materials and the model card of an archive, and the revision of its sources."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from probe_ensemble import probes

from torchserve_ensemble.archiver.bill_of_materials import SCHEMA
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.source_revision import source_revision
from torchserve_ensemble.handlers.archive.record import sha256_of_file
from torchserve_ensemble.handlers.base.archive_layout import BOM, MODEL_CARD
from torchserve_ensemble.handlers.base.errors import ArchiveError, SpecError
from torchserve_ensemble.handlers.spec import parse_spec

PROVENANCE: dict[str, Any] = {
    "owner": "the authors",
    "licence": "Apache-2.0",
    "training_data": "Digits",
    "training_data_version": "1.0",
    "url": "https://example.org/digits?v=1#card",
    "metrics": {"sharp on held-out": {"accuracy": 0.97, "F1 score": 0.5, "none": float("nan")}},
    "guarantees": {"sharp": "sensitivity >= 0.9 with 95 % confidence"},
}
HOSTILE = "a | b\n# c <script>*d*</script> [e](f) `g` \u00e9"


def build(folder: Path, **settings: Any) -> Path:
    """Build an archive without loading the members."""
    probes(folder, **settings)
    return build_archive(folder / "ensemble.yaml", folder / "store", check=False)


def read(archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name).decode()


def bom_of(archive: Path) -> dict[str, Any]:
    """Read an archive's bill of materials, which must be valid."""
    text = read(archive, BOM)
    assert JsonStrictValidator(SCHEMA).validate_str(text) is None
    content: dict[str, Any] = json.loads(text)
    return content


def card_of(archive: Path) -> ModelCard:
    return ModelCard(read(archive, MODEL_CARD))


def components(bom: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["bom-ref"]: each for each in bom["components"]}


def test_the_bill_lists_members_data_sets_files_and_packages(tmp_path: Path) -> None:
    bom = bom_of(build(tmp_path, provenance=PROVENANCE))
    listed = components(bom)
    assert {"member:a", "member:b", "member:c", "data:Digits@1.0", "file:probe.py"} < set(listed)
    member = listed["member:a"]
    digest = sha256_of_file(tmp_path / "a.safetensors")
    assert member["type"] == "machine-learning-model"
    assert member["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert member["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert any(name.startswith("pkg:pypi/torch@") for name in listed)
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert needs["member:a"] == ["data:Digits@1.0"]
    assert {"member:a", "file:probe.py"} < set(needs["ensemble"])
    ensemble = bom["metadata"]["component"]
    link = {"type": "website", "url": "https://example.org/digits?v=1#card"}
    assert ensemble["externalReferences"] == [link]
    assert (ensemble["name"], ensemble["version"]) == ("probes", "1.0")
    facts = {each["name"].partition(":")[2]: each["value"] for each in ensemble["properties"]}
    assert facts["metric:sharp on held-out:accuracy"] == "0.97"
    assert "metric:sharp on held-out:none" not in facts
    assert "timestamp" not in bom["metadata"]
    (tool,) = bom["metadata"]["tools"]["components"]
    assert tool["name"] == "torchserve-ensemble"


def test_each_member_may_have_its_own_licence_and_data_sets(tmp_path: Path) -> None:
    probes(tmp_path, provenance=PROVENANCE)
    spec = json.loads((tmp_path / "ensemble.yaml").read_text())
    spec["members"][1]["provenance"] = {
        "licence": "MIT OR BSD-3-Clause",
        "data_sets": ["ImageNet-1k@2012", "Own"],
        "url": "https://example.org/b",
    }
    spec["members"][2]["provenance"] = {"licence": "Ours alone"}
    (tmp_path / "ensemble.yaml").write_text(json.dumps(spec))
    reports: list[str] = []
    archive = build_archive(
        tmp_path / "ensemble.yaml", tmp_path, check=False, report=reports.append
    )
    assert [text for text in reports if "licence" in text] == [reports[0]]
    assert reports[0].startswith("the licence 'Ours alone' is no SPDX identifier or expression")
    bom = bom_of(archive)
    listed = components(bom)
    assert listed["member:b"]["licenses"] == [{"expression": "MIT OR BSD-3-Clause"}]
    assert listed["member:c"]["licenses"] == [{"license": {"name": "Ours alone"}}]
    assert listed["data:ImageNet-1k@2012"]["version"] == "2012"
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert needs["member:b"] == ["data:ImageNet-1k@2012", "data:Own"]
    card = card_of(archive)
    assert card.data.license == "other"
    assert card.data.datasets == ["Digits", "ImageNet-1k", "Own"]


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"licence": ""}, "licence"),
        ({"licence": " MIT"}, "licence"),
        ({"data_sets": "ImageNet"}, "data_sets"),
        ({"data_sets": ["a", "a"]}, "data_sets"),
        ({"data_sets": ["a\nb"]}, "data_sets"),
        ({"license": "MIT"}, "licence"),
    ],
)
def test_mistakes_in_a_members_provenance_are_named(
    tmp_path: Path, keys: dict[str, Any], where: str
) -> None:
    probes(tmp_path)
    spec = json.loads((tmp_path / "ensemble.yaml").read_text())
    spec["members"][0]["provenance"] = keys
    with pytest.raises(SpecError, match=f"provenance.*{where}"):
        parse_spec(json.dumps(spec))


def test_hugging_face_reads_the_card(tmp_path: Path) -> None:
    card = card_of(build(tmp_path, task="presence", provenance=PROVENANCE))
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "torchserve-ensemble"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["Digits"]
    results = {each.metric_name: each for each in card.data.eval_results or ()}
    assert results["accuracy"].metric_value == 0.97
    assert results["accuracy"].dataset_name == "sharp on held-out"
    assert set(results) == {"accuracy", "F1 score"}
    assert "sharp: sensitivity \\>= 0.9 with 95 % confidence" in card.text
    assert "## Speed" not in card.text


def test_the_card_has_the_measurements_of_profile(tmp_path: Path) -> None:
    profile = {
        "chosen": {
            "choice": {"workers": 1},
            "metrics": {"clients": 8, "images_per_second": 89.87, "p50_ms": 86.7, "p99_ms": 140.0},
        }
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    text = card_of(build(tmp_path, extra_files=["profile.json"])).text
    assert "measured 89.9 images a second with 8 clients, p50 86.7 ms and p99 140.0 ms" in text
    (tmp_path / "profile.json").write_text("[]")
    assert "## Speed" not in card_of(build(tmp_path, extra_files=["profile.json"])).text


@pytest.mark.parametrize("url", ["https://a/b c", "https://a/[", "https://a/%zz", "https://a#b#c"])
def test_a_url_that_is_no_link_is_only_a_property(url: str, tmp_path: Path) -> None:
    ensemble = bom_of(build(tmp_path, provenance={"url": url}))["metadata"]["component"]
    assert "externalReferences" not in ensemble
    assert {"name": "torchserve-ensemble:url", "value": url} in ensemble["properties"]


@pytest.mark.parametrize("task", ["classification", "presence", "multilabel", "regression"])
def test_any_text_gives_a_valid_bill_and_card(task: str, tmp_path: Path) -> None:
    text = " ".join(HOSTILE.split())
    archive = build(
        tmp_path,
        task=task,
        description=HOSTILE,
        provenance=PROVENANCE
        | {"owner": text, "licence": text, "url": text, "training_data": text}
        | {"metrics": {text: {text: 1.0}}, "guarantees": {"sharp": text}},
    )
    assert components(bom_of(archive))["member:a"]["licenses"] == [{"license": {"name": text}}]
    card = card_of(archive)
    assert card.data.license == "other"
    (result,) = card.data.eval_results or ()
    assert result.dataset_name == text
    assert "<script>" not in card.text.replace("\\<", "")
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    assert headings == ["# probes 1.0", "## Members", "## Answers", "## Quality", "## Origin"]


def test_nothing_but_the_contents_changes_the_bill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    first = build(tmp_path).read_bytes()
    serial = bom_of(tmp_path / "store" / "probes-1.0.mar")["serialNumber"]
    assert build(tmp_path).read_bytes() == first
    (tmp_path / "probe.py").write_text((tmp_path / "probe.py").read_text() + "\n")
    changed = build_archive(tmp_path / "ensemble.yaml", tmp_path / "other", check=False)
    assert bom_of(changed)["serialNumber"] != serial
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert bom_of(build(tmp_path))["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ArchiveError, match="SOURCE_DATE_EPOCH='yesterday' is no number"):
        build(tmp_path)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_of_the_sources_is_recorded(tmp_path: Path) -> None:
    assert source_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert source_revision(tmp_path, report=lambda text: None) is None, "nothing is committed yet"
    folder = tmp_path / "ensemble"
    folder.mkdir()
    probes(folder)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    archive = build_archive(folder / "ensemble.yaml", folder / "store", check=False)
    clean = archive.read_bytes()

    def recorded() -> dict[str, str]:
        return {each["name"]: each["value"] for each in bom_of(archive)["metadata"]["properties"]}

    prefix = "torchserve-ensemble:source-"
    assert recorded() == {f"{prefix}commit": commit, f"{prefix}dirty": "False"}
    # The archive itself now lies in the tree, and changes nothing.
    build_archive(folder / "ensemble.yaml", folder / "store", check=False)
    assert archive.read_bytes() == clean
    (folder / "probe.py").write_text((folder / "probe.py").read_text() + "\n")
    build_archive(folder / "ensemble.yaml", folder / "store", check=False)
    assert recorded() == {f"{prefix}commit": commit, f"{prefix}dirty": "True"}
    assert "with local changes" in card_of(archive).text


def test_a_repository_cannot_start_programs_by_its_configuration(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    monitor.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(monitor))
    assert source_revision(tmp_path) is not None
    assert not (tmp_path / "ran").exists()
    subprocess.run(["git", "status"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "ran").exists(), "otherwise this test shows nothing"


def test_without_git_no_revision_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.setitem(os.environ, "PATH", "")
    reports: list[str] = []
    assert source_revision(tmp_path, reports.append) is None
    assert reports == [
        "the archive does not name the revision of its sources: git is not installed"
    ]


def test_a_tree_that_git_refuses_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    reports: list[str] = []
    assert source_revision(tmp_path, reports.append) is None
    assert "not a git repository" in reports[0]
