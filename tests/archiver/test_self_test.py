"""A build records how the saved members answer probes, and the archive's members pass the test."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
from member_files import net, write_code, write_ensemble
from probe_ensemble import image, probes
from safetensors.torch import save_file

from torchserve_ensemble.archiver import self_test
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.ensemble import Ensemble
from torchserve_ensemble.handlers.base.archive_layout import SELF_TEST
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError
from torchserve_ensemble.handlers.self_testing import answer_probes, run_self_test

TASKS = ["classification", "presence", "multilabel", "regression"]


def self_test_of(archive: Path) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as opened:
        content: dict[str, Any] = json.loads(opened.read(SELF_TEST))
    return content


def names(archive: Path) -> list[str]:
    return [probe["name"] for probe in self_test_of(archive)["probes"]]


@pytest.mark.parametrize("task", TASKS)
def test_the_archive_passes_its_own_self_test(task: str, tmp_path: Path) -> None:
    probes(tmp_path, task=task, policies={"default": "median", "lazy": True})
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store")
    content = self_test_of(archive)
    assert names(archive) == ["pattern-1.png", "pattern-2.png", "pattern-3.jpg"]
    assert content["tolerance"] == 0.01
    assert all(list(each["scores"]) == ["a", "b", "c"] for each in content["probes"])
    ensemble = Ensemble.load(archive)
    run_self_test(ensemble._service)
    assert json.loads(json.dumps(ensemble.description["self_test"])) == content


@pytest.mark.parametrize("task", TASKS)
def test_other_weights_do_not_pass(task: str, tmp_path: Path) -> None:
    probes(tmp_path, task=task)
    service = Ensemble.load(build_archive(tmp_path / "ensemble.yaml", tmp_path))._service
    (tmp_path / "more").mkdir()
    changed = probes(tmp_path / "more", task=task, bounds=(0.25, 0.5005, 0.75))
    changed.self_test = service.self_test
    run_self_test(changed)
    changed = probes(tmp_path / "more", task=task, bounds=(0.25, 0.6, 0.75))
    changed.self_test = service.self_test
    with pytest.raises(MemberError, match=r"member 'b' differs by \S+ from .* probe pattern-"):
        run_self_test(changed)


def test_a_decision_at_a_threshold_is_not_compared(tmp_path: Path) -> None:
    # The first pattern has the score 0.5024, so its decision depends on rounding.
    probes(tmp_path, task="presence", bounds=(0.5,))
    stable = [
        each["decision_is_stable"]
        for each in self_test_of(build_archive(tmp_path / "ensemble.yaml", tmp_path))["probes"]
    ]
    assert stable == [False, True, True]


def test_another_policy_does_not_pass(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bounds": (0.1, 0.9), "task": "presence"}
    probes(tmp_path, policies={"default": "any"}, **settings)
    service = Ensemble.load(build_archive(tmp_path / "ensemble.yaml", tmp_path))._service
    (tmp_path / "other").mkdir()
    changed = probes(tmp_path / "other", policies={"default": "all"}, **settings)
    changed.self_test = service.self_test
    with pytest.raises(MemberError, match="decides dark, and at build it decided bright"):
        run_self_test(changed)


def test_a_deadline_drops_no_member_from_the_self_test(tmp_path: Path) -> None:
    probes(tmp_path, failures={"deadline_ms": 0.001, "on_failure": "drop"})
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path)
    assert len(names(archive)) == 3
    run_self_test(Ensemble.load(archive)._service)


def test_a_lower_precision_is_compared_with_the_members_as_they_were_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes(tmp_path, runtime={"precision": "auto"})
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path)
    assert len(names(archive)) == 3

    def another_answer(*arguments: Any) -> dict[str, dict[str, Any]]:
        services.append(arguments[0])
        answers = answer_probes(*arguments)
        if len(services) == 2:
            answers["pattern-2.png"]["members"]["b"]["scores"]["dark"] += 0.02
        return answers

    services: list[Any] = []
    monkeypatch.setattr(self_test, "answer_probes", another_answer)
    with pytest.raises(MemberError, match=r"member 'b' differs by 0\.02 .* probe pattern-2.png"):
        build_archive(tmp_path / "ensemble.yaml", tmp_path)
    assert services[0].spec.runtime.precision == "float32"
    assert services[1].spec.runtime.precision == "auto"


def test_limits_that_no_probe_keeps_are_reported(tmp_path: Path) -> None:
    probes(tmp_path, limits={"max_pixels": 100})
    reports: list[str] = []
    archive = build_archive(tmp_path / "ensemble.yaml", tmp_path, report=reports.append)
    assert "the archive gets none, because no probe is answered by every member" in reports[-1]
    with zipfile.ZipFile(archive) as opened:
        assert SELF_TEST not in opened.namelist()


def test_the_score_cache_neither_answers_nor_keeps_probes(tmp_path: Path) -> None:
    probes(tmp_path, runtime={"score_cache_mb": 1})
    service = Ensemble.load(build_archive(tmp_path / "ensemble.yaml", tmp_path))._service
    run_self_test(service)
    assert service.cache is not None
    assert service.cache.hits == service.cache.misses == 0


def test_a_sample_on_which_a_member_fails_cannot_be_kept(tmp_path: Path) -> None:
    probes(tmp_path, arguments={"a": {"raises_above": 0.9}}, failures={"on_failure": "drop"})
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.png").write_bytes(image(0.95))
    with pytest.raises(ArchiveError, match="sample-1 of --samples cannot be kept"):
        build_archive(
            tmp_path / "ensemble.yaml", tmp_path, samples=tmp_path / "samples", kept_samples=1
        )


def test_the_example_of_an_own_decoder_is_a_probe(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    write_code(
        tmp_path,
        """
        import numpy

        def decode(content):
            if content[:3] != b"TOY":
                raise ValueError("no toy file")
            return numpy.frombuffer(content, "u1", offset=3).reshape(4, 4, 3)
        """,
        "toy.py",
    )
    (tmp_path / "example.toy").write_bytes(b"TOY" + bytes(range(48)))
    spec = write_ensemble(
        tmp_path,
        [{"name": "a", "architecture": "net.py:Net", "weights": "w.safetensors"}],
        preprocessing={
            "toy": {"resize": [4, 4], "decode": "toy.py:decode", "example": "example.toy"}
        },
    )
    reports: list[str] = []
    archive = build_archive(spec, tmp_path / "store", report=reports.append)
    assert names(archive) == ["example.toy"]
    assert [text.split()[1] for text in reports] == [
        "pattern-1.png",
        "pattern-2.png",
        "pattern-3.jpg",
    ]
    run_self_test(Ensemble.load(archive)._service)


def test_samples_are_kept_only_if_the_user_says_so(tmp_path: Path) -> None:
    probes(tmp_path)
    samples = tmp_path / "samples"
    samples.mkdir()
    for brightness in (0.2, 0.8):
        (samples / f"patient-{brightness}.png").write_bytes(image(brightness))
    spec, store = tmp_path / "ensemble.yaml", tmp_path / "store"
    assert len(names(build_archive(spec, store, samples=samples))) == 3
    archive = build_archive(spec, store, samples=samples, kept_samples=2)
    assert names(archive)[3:] == ["sample-1", "sample-2"]
    assert b"patient" not in archive.read_bytes()
    first = archive.read_bytes()
    assert build_archive(spec, store, samples=samples, kept_samples=2).read_bytes() == first
    with pytest.raises(ArchiveError, match="--keep-samples 3: --samples has 2 images"):
        build_archive(spec, store, samples=samples, kept_samples=3)
    (samples / "a.png").write_bytes(b"no image")
    with pytest.raises(ArchiveError, match="sample-1 of --samples cannot be kept"):
        build_archive(spec, store, samples=samples, kept_samples=1)


def test_without_a_check_there_is_no_self_test(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probes(tmp_path)
    spec = tmp_path / "ensemble.yaml"
    archive = build_archive(spec, tmp_path, check=False)
    with zipfile.ZipFile(archive) as opened:
        assert SELF_TEST not in opened.namelist()
    with caplog.at_level(logging.WARNING):
        run_self_test(Ensemble.load(archive)._service)
    assert "no self-test: the archive was built without one" in caplog.text
    with pytest.raises(ArchiveError, match="leave --no-check out"):
        build_archive(spec, tmp_path, check=False, samples=tmp_path, kept_samples=1)


def test_no_file_of_the_user_may_have_the_name(tmp_path: Path) -> None:
    (tmp_path / "selftest.json").write_text("{}")
    with pytest.raises(Exception, match="is a name that the archive itself needs"):
        probes(tmp_path, extra_files=["selftest.json"])
