"""Writing an operating point back into ensemble.yaml, with its comments and order kept."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ...handlers.policies import FittedModel, save_fitted
from ...handlers.service import catalogue
from ...handlers.spec import EnsembleSpec, parse_spec
from .fitting import Learned
from .policy_text import has_limits, lacks_model, weighs_members, with_model

_FITTED_FOLDER = "fitted"
_LONG_LINE = 4096


def write_operating_point(
    spec_path: Path,
    *,
    name: str,
    policy: str,
    learned: Learned,
    figures: Mapping[str, float],
    data_name: str,
    data_digest: str,
    expected: Mapping[str, float] | None = None,
) -> str:
    """Change the spec's file: a named policy, temperatures, weights, fitted models, provenance.

    The temperatures multiply those of the spec, as they were fitted on top of them. The file is
    replaced in one step, and only if what it would hold is a good spec.

    Args:
        spec_path: ensemble.yaml.
        name: of the policy in ``policies.named``.
        policy: its text.
        learned: what goes with it.
        figures: measured out of fold; written to ``provenance.metrics``.
        data_name: under which they are written.
        data_digest: written to ``provenance.tuning_data``.
        expected: figures to expect of new images, which the choice among candidates did not see.

    Returns:
        The policy's text as it stands there, with the name of its fitted model.

    Raises:
        SpecError: the result would be no good spec, or its policies would not fit together.
    """
    yaml, content = _read(spec_path)
    for member, temperature in zip(content["members"], learned.temperatures, strict=True):
        if temperature != 1:
            member["temperature"] = round(float(member.get("temperature", 1.0)) * temperature, 6)
    if weighs_members(policy):
        for member, weight in zip(content["members"], learned.weights.tolist(), strict=True):
            member["voting_weight"] = round(weight, 6)
    policies = _section(content, "policies")
    named = _section(policies, "named")
    named[name] = policy
    for kind, model in learned.models.items():
        if lacks_model(policy, kind):
            # Under the policy's own name, as other policies may have models of that kind.
            written = f"{name}-{kind}"
            _section(policies, "fitted")[written] = _write_model(spec_path.parent, written, model)
            named[name] = with_model(policy, kind, written)
    provenance = _section(content, "provenance")
    metrics = _section(provenance, "metrics")
    metrics[f"{name} on {data_name}"] = _rounded(figures)
    if expected is not None:
        metrics[f"{name}, expected on new images"] = _rounded(expected)
    provenance["tuning_data"] = data_digest
    _replace(spec_path, yaml, content)
    return str(named[name])


def write_serving(spec_path: Path, serving: Mapping[str, int], threads: int | None) -> None:
    """Change the spec's file: how TorchServe is to serve the ensemble.

    Args:
        spec_path: ensemble.yaml; comments and order stay.
        serving: keys of ``serving``.
        threads: ``runtime.threads``; None removes the key, which means cores divided by workers.

    Raises:
        SpecError: the result would be no good spec.
    """
    yaml, content = _read(spec_path)
    _section(content, "serving").update(serving)
    if threads is not None:
        _section(content, "runtime")["threads"] = threads
    elif "threads" in (content.get("runtime") or {}):
        del content["runtime"]["threads"]
    _replace(spec_path, yaml, content)


def _read(spec_path: Path) -> tuple[YAML, Any]:
    """The spec's content with its comments, and what writes it as it was written."""
    before = spec_path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _LONG_LINE
    if _indents_lists(before):
        yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(before)
    return yaml, content


def _replace(spec_path: Path, yaml: YAML, content: Any) -> None:
    """Write in one step, if it is a good spec."""
    text = io.StringIO()
    yaml.dump(content, text)
    spec = parse_spec(text.getvalue(), source=str(spec_path), folder=spec_path.parent)
    catalogue(spec, spec_path.parent)
    # Beside the file itself, also where the path is a link to it.
    target = spec_path.resolve()
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.chmod(target.stat().st_mode)
    partial.replace(target)


def side_effects(spec: EnsembleSpec, name: str, learned: Learned) -> list[str]:
    """What writing changes for others, or leaves undone, in words; to be told to people.

    Args:
        spec: as it was before.
        name: of the policy that is written.
        learned: what is written with it.
    """
    found = []
    policies = spec.policies
    if policies.allowed is not None and name not in policies.allowed:
        found.append(f"clients cannot choose '{name}' until policies.allowed lists it")
    texts = {key: text for key, text in policies.named.items() if key != name}
    texts["the default"] = policies.default
    moved = [key for key, text in texts.items() if has_limits(text)]
    if any(threshold != 0.5 for m in (None, *spec.members) for threshold in spec.thresholds(m)):
        moved.append("every policy without a threshold of its own")
    if moved and any(temperature != 1 for temperature in learned.temperatures):
        found.append(
            f"new temperatures move the members' scores: the thresholds of {', '.join(moved)} "
            "were set for the old ones; tune again, or tune with --no-calibration"
        )
    return found


def _indents_lists(text: str) -> bool:
    """Whether the first list below a key is indented, as ``key:`` and then ``  - item``."""
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    for key, item in itertools.pairwise(lines):
        if item.lstrip().startswith("- ") and key.partition(" #")[0].rstrip().endswith(":"):
            return _depth(item) > _depth(key)
    return False


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in figures.items() if not math.isnan(value)}


def _section(content: Any, key: str) -> Any:
    if content.get(key) is None:
        content[key] = {}
    return content[key]


def _write_model(folder: Path, name: str, model: FittedModel) -> str:
    (folder / _FITTED_FOLDER).mkdir(exist_ok=True)
    file = f"{_FITTED_FOLDER}/{name}.safetensors"
    save_fitted(model, folder / file)
    return file
