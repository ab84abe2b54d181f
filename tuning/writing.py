"""Write a policy with its threshold back into ensemble.yaml; comments and order are kept."""

from __future__ import annotations

import io
import itertools
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from safetensors import SafetensorError

from ..handlers.base.errors import SpecError
from ..handlers.deployment import catalogue
from ..handlers.policies import FittedModel, save_fitted
from ..handlers.spec import EnsembleSpec, parse_spec
from .fitting import FittedParameters
from .policy_text import has_thresholds, lacks_model, weighs_members, with_model

_FITTED_FOLDER = "fitted"
_MAX_LINE_CHARACTERS = 4096


def write_operating_point(
    spec_path: Path,
    *,
    name: str,
    policy: str,
    fitted: FittedParameters,
    metrics: Mapping[str, float],
    data_name: str,
    data_digest: str,
    guarantee: str | None = None,
) -> str:
    """Write a named policy into the spec's file, with what was fitted for it and its provenance.

    The fitted temperatures multiply the spec's, as they were fitted on top of them. Guarantees of
    other policies are removed if their scores change. Files are replaced only if the result is a
    valid spec; a failure leaves all of them as they were.

    Args:
        spec_path: path of ensemble.yaml.
        name: name of the policy in ``policies.named``.
        policy: the policy as text.
        fitted: temperatures, weights and models that the policy was tuned with.
        metrics: metrics on images that nothing was fitted on, for ``provenance.metrics``.
        data_name: name of these images there.
        data_digest: digest of the labelled images, for ``provenance.tuning_data``.
        guarantee: statement for ``provenance.guarantees``; None: nothing is guaranteed.

    Returns:
        The policy as it is written, with the name of its fitted model.

    Raises:
        SpecError: the result would be no valid spec, its policies would not fit together, or a
            file cannot be written.
    """
    yaml, content = _read(spec_path)
    policies = _section(content, "policies")
    named = _section(policies, "named")
    provenance = _section(content, "provenance")
    guarantees = _section(provenance, "guarantees")
    for void in _void_guarantees(list(guarantees), named, name, policy, fitted):
        del guarantees[void]
    for member, temperature in zip(content["members"], fitted.temperatures, strict=True):
        if temperature != 1:
            member["temperature"] = round(float(member.get("temperature", 1.0)) * temperature, 6)
    if weighs_members(policy):
        for member, weight in zip(content["members"], fitted.weights.tolist(), strict=True):
            member["voting_weight"] = round(weight, 6)
    named[name] = policy
    models: dict[str, FittedModel] = {}
    for kind, model in fitted.models.items():
        if lacks_model(policy, kind):
            # The policy's name is part of the model's, as other policies may have models of that
            # kind too.
            model_name = f"{name}-{kind}"
            models[model_name] = model
            _section(policies, "fitted")[model_name] = f"{_FITTED_FOLDER}/{model_name}.safetensors"
            named[name] = with_model(named[name], kind, model_name)
    _section(provenance, "metrics")[f"{name} on {data_name}"] = _rounded(metrics)
    provenance["tuning_data"] = data_digest
    if guarantee is not None:
        guarantees[name] = guarantee
    if not guarantees:
        del provenance["guarantees"]
    _replace(spec_path, yaml, content, models)
    return str(named[name])


def write_serving(spec_path: Path, serving: Mapping[str, int], threads: int | None) -> None:
    """Write into the spec's file how TorchServe is to serve the ensemble.

    Args:
        spec_path: path of ensemble.yaml.
        serving: keys and values for ``serving``.
        threads: value for ``runtime.threads``; None removes the key, so that each worker has the
            cores divided by the number of workers.

    Raises:
        SpecError: the result would be no valid spec, or the file cannot be written.
    """
    yaml, content = _read(spec_path)
    _section(content, "serving").update(serving)
    if threads is not None:
        _section(content, "runtime")["threads"] = threads
    elif "threads" in (content.get("runtime") or {}):
        del content["runtime"]["threads"]
    _replace(spec_path, yaml, content)


def _read(spec_path: Path) -> tuple[YAML, Any]:
    """Read the spec with its comments, and set up YAML to write it in the style it was written."""
    before = spec_path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _MAX_LINE_CHARACTERS
    if _indents_lists(before):
        yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(before)
    return yaml, content


def _replace(
    spec_path: Path, yaml: YAML, content: Any, models: Mapping[str, FittedModel] | None = None
) -> None:
    """Replace the spec and its fitted models together, if they are valid and fit together.

    Args:
        spec_path: the spec's file.
        yaml: the writer.
        content: the spec; it names each model's file in `_FITTED_FOLDER`.
        models: name in ``policies.fitted`` -> model.
    """
    text = _dumped(yaml, content)
    # Names in the spec become names of files, so they are checked before a file is written.
    parse_spec(text, source=str(spec_path), labels_folder=spec_path.parent)
    try:
        with ExitStack() as stack:
            staged = _staged(stack, spec_path.parent, content, models or {})
            spec = parse_spec(
                _dumped(yaml, content), source=str(spec_path), folder=spec_path.parent
            )
            catalogue(spec, spec_path.parent)
            # If the path is a link, the file that it leads to is replaced.
            target = spec_path.resolve()
            partial = _temporary_folder(stack, target.parent) / target.name
            partial.write_text(text, encoding="utf-8")
            _replace_all([*staged, (partial, target)])
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{spec_path}: cannot be written: {reason}; nothing was changed") from error


def _staged(
    stack: ExitStack, folder: Path, content: Any, models: Mapping[str, FittedModel]
) -> list[tuple[Path, Path]]:
    """Write models to temporary files, and name these files in the content for now.

    Returns:
        Pairs of a temporary file and the file that it is to replace.
    """
    if not models:
        return []
    fitted = folder / _FITTED_FOLDER
    if not fitted.exists():
        fitted.mkdir()
        stack.callback(_remove_if_empty, fitted)
    temporary = _temporary_folder(stack, fitted)
    staged = []
    for number, (name, model) in enumerate(models.items()):
        file = temporary / f"{number}.safetensors"
        save_fitted(model, file)
        content["policies"]["fitted"][name] = file.relative_to(folder).as_posix()
        staged.append((file, fitted / f"{name}.safetensors"))
    return staged


def _replace_all(staged: Sequence[tuple[Path, Path]]) -> None:
    """Move each new file to its place; after a failure the old files are moved back."""
    with ExitStack() as undo:
        for new, target in staged:
            if target.exists():
                backup = new.with_name(f"{new.name}.before")
                shutil.copy2(target, backup)
                new.chmod(target.stat().st_mode)
                undo.callback(backup.replace, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            new.replace(target)
        undo.pop_all()


def _temporary_folder(stack: ExitStack, beside: Path) -> Path:
    """Make a temporary folder on the same file system, whose files can be moved in one step."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".tuning-", dir=beside)))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _dumped(yaml: YAML, content: Any) -> str:
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def side_effects(spec: EnsembleSpec, name: str, policy: str, fitted: FittedParameters) -> list[str]:
    """Say what writing a policy changes for other policies, or leaves to be done by hand.

    Args:
        spec: the spec before the policy was written.
        name: name of the policy.
        policy: the policy as text.
        fitted: what was written together with it.
    """
    effects = []
    policies = spec.policies
    if policies.allowed is not None and name not in policies.allowed:
        effects.append(f"clients cannot choose '{name}' until policies.allowed lists it")
    texts = {key: text for key, text in policies.named.items() if key != name}
    texts["the default"] = policies.default
    affected = [key for key, text in texts.items() if has_thresholds(text)]
    if any(threshold != 0.5 for m in (None, *spec.members) for threshold in spec.thresholds(m)):
        affected.append("every policy without a threshold of its own")
    if affected and _changes_scores(fitted):
        effects.append(
            f"new temperatures move the members' scores: the thresholds of {', '.join(affected)} "
            "were set for the old ones; tune again, or tune with --no-calibration"
        )
    removed = _void_guarantees(
        list(spec.provenance.guarantees), policies.named, name, policy, fitted
    )
    others = [key for key in removed if key != name]
    if others:
        effects.append(
            f"the guarantees of {', '.join(others)} were removed: they were shown with other "
            "temperatures or voting weights; tune these policies again"
        )
    return effects


def _changes_scores(fitted: FittedParameters) -> bool:
    return any(temperature != 1 for temperature in fitted.temperatures)


def _void_guarantees(
    guaranteed: Sequence[str],
    named: Mapping[str, str],
    name: str,
    policy: str,
    fitted: FittedParameters,
) -> list[str]:
    """Names of the policies whose guarantee ends when a policy is written, itself included."""
    return [
        other
        for other in guaranteed
        if other == name
        or _changes_scores(fitted)
        or (weighs_members(policy) and weighs_members(named.get(other, "")))
    ]


def _indents_lists(text: str) -> bool:
    """Whether the first list is indented below its key: ``key:``, then ``  - item``."""
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    for key, item in itertools.pairwise(lines):
        if item.lstrip().startswith("- ") and key.partition(" #")[0].rstrip().endswith(":"):
            return _depth(item) > _depth(key)
    return False


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items() if not math.isnan(value)}


def _section(content: Any, key: str) -> Any:
    if content.get(key) is None:
        content[key] = {}
    return content[key]
