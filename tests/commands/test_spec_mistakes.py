"""Mistakes in a spec that show only when members are loaded name file, line, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from probe_ensemble import probes

from torchserve_ensemble.cli import main

MISTAKES = [
    (
        {"members": {0: {"architecture": "torchvision.models.resnet99", "arguments": {}}}},
        "members[0].architecture",
        "has no image classification model 'resnet99'; did you mean",
    ),
    (
        {"members": {1: {"architecture": "probe.py:Prob"}}},
        "members[1].architecture",
        "has no class or function 'Prob'; did you mean 'Probe'?",
    ),
    (
        {"labels": ["dark", "bright", "brightest"]},
        "labels",
        "gives (3, 2) for 3 samples, where the spec's labels ask for (3, 3)",
    ),
    ({"policies": {"default": "meen"}}, "policies.default", "did you mean 'mean'?"),
    (
        {"policies": {"default": "mean", "named": {"strict": "at_least(k=9)"}}},
        "policies.named.strict",
        "parameter k=9 exceeds the number of members, 3",
    ),
    ({"policies": {"default": "mean", "allowed": ["meen"]}}, "policies.allowed", "'mean'?"),
]


@pytest.mark.parametrize(("changes", "key", "words"), MISTAKES, ids=[key for _, key, _ in MISTAKES])
@pytest.mark.parametrize("verb", ["build", "predict"])
def test_it_is_located(
    verb: str,
    changes: dict[str, object],
    key: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probes(tmp_path)
    path = tmp_path / "ensemble.yaml"
    spec = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        if name == "members":
            for index, member in value.items():  # type: ignore[attr-defined]
                spec["members"][index] |= member
        else:
            spec[name] = value
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    arguments = {
        "build": ["build", str(path), "--output", str(tmp_path)],
        "predict": ["predict", "--local", str(path), str(path)],
    }[verb]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    prefix, separator, rest = message.partition(f": {key}: ")
    assert separator, message
    assert words in rest
    number = int(prefix.rpartition(":")[2])
    assert prefix == f"ts-ensemble: {path}:{number}"
    last = key.rpartition(".")[2]
    assert f"{last}:" in path.read_text().splitlines()[number - 1]
