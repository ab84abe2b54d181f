"""Writing an operating point back into ensemble.yaml, with its comments and order kept."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ...handlers.policies import FittedModel, save_fitted
from ...handlers.spec import parse_spec
from .fitting import Learned

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
) -> None:
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

    Raises:
        SpecError: the result would be no good spec.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _LONG_LINE
    content = yaml.load(spec_path.read_text(encoding="utf-8"))
    for member, temperature in zip(content["members"], learned.temperatures, strict=True):
        if temperature != 1:
            member["temperature"] = round(float(member.get("temperature", 1.0)) * temperature, 6)
    if "weighted" in policy:
        for member, weight in zip(content["members"], learned.weights.tolist(), strict=True):
            member["voting_weight"] = round(weight, 6)
    policies = _section(content, "policies")
    _section(policies, "named")[name] = policy
    for kind, model in learned.models.items():
        if policy.startswith(kind):
            file = _write_model(spec_path.parent, f"{name}-{kind}", model)
            _section(policies, "fitted")[kind] = file
    provenance = _section(content, "provenance")
    rounded = {figure: round(value, 6) for figure, value in figures.items() if value == value}
    _section(provenance, "metrics")[f"{name} on {data_name}"] = rounded
    provenance["tuning_data"] = data_digest
    text = io.StringIO()
    yaml.dump(content, text)
    parse_spec(text.getvalue(), source=str(spec_path), folder=spec_path.parent)
    partial = spec_path.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(spec_path)


def _section(content: Any, key: str) -> Any:
    if content.get(key) is None:
        content[key] = {}
    return content[key]


def _write_model(folder: Path, name: str, model: FittedModel) -> str:
    (folder / _FITTED_FOLDER).mkdir(exist_ok=True)
    file = f"{_FITTED_FOLDER}/{name}.safetensors"
    save_fitted(model, folder / file)
    return file
