"""Writing an operating point back into ensemble.yaml, with its comments and order kept."""

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
from .fitting import Learned
from .policy_text import has_limits, lacks_model, weighs_members, with_model

_FITTED_FOLDER = "fitted"
_MAX_LINE_CHARACTERS = 4096


def write_operating_point(
    spec_path: Path,
    *,
    name: str,
    policy: str,
    learned: Learned,
    metrics: Mapping[str, float],
    data_name: str,
    data_digest: str,
    expected: Mapping[str, float] | None = None,
) -> str:
    """Change the spec's file: a named policy, temperatures, weights, fitted models, provenance.

    The temperatures multiply those of the spec, as they were fitted on top of them. Files are
    replaced only if the result is a good spec; a failure leaves all of them as they were.

    Args:
        spec_path: ensemble.yaml.
        name: of the policy in ``policies.named``.
        policy: its text.
        learned: what goes with it.
        metrics: measured out of fold; written to ``provenance.metrics``.
        data_name: under which they are written.
        data_digest: written to ``provenance.tuning_data``.
        expected: metrics to expect of new images, which the choice among candidates did not see.

    Returns:
        The policy's text as it stands there, with the name of its fitted model.

    Raises:
        SpecError: the result would be no good spec, its policies would not fit together, or a file
            cannot be written.
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
    models: dict[str, FittedModel] = {}
    for kind, model in learned.models.items():
        if lacks_model(policy, kind):
            # Under the policy's own name, as other policies may have models of that kind.
            written = f"{name}-{kind}"
            models[written] = model
            _section(policies, "fitted")[written] = f"{_FITTED_FOLDER}/{written}.safetensors"
            named[name] = with_model(named[name], kind, written)
    provenance = _section(content, "provenance")
    recorded = _section(provenance, "metrics")
    recorded[f"{name} on {data_name}"] = _rounded(metrics)
    if expected is not None:
        recorded[f"{name}, expected on new images"] = _rounded(expected)
    provenance["tuning_data"] = data_digest
    _replace(spec_path, yaml, content, models)
    return str(named[name])


def write_serving(spec_path: Path, serving: Mapping[str, int], threads: int | None) -> None:
    """Change the spec's file: how TorchServe is to serve the ensemble.

    Args:
        spec_path: ensemble.yaml; comments and order stay.
        serving: keys of ``serving``.
        threads: ``runtime.threads``; None removes the key, which means cores divided by workers.

    Raises:
        SpecError: the result would be no good spec, or the file cannot be written.
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
    yaml.width = _MAX_LINE_CHARACTERS
    if _indents_lists(before):
        yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(before)
    return yaml, content


def _replace(
    spec_path: Path, yaml: YAML, content: Any, models: Mapping[str, FittedModel] | None = None
) -> None:
    """Replace the spec and its fitted models together, if they are good and fit together.

    Args:
        spec_path: the file that is replaced.
        yaml: what writes it.
        content: of the spec; it names each model's file in `_FITTED_FOLDER`.
        models: name in ``policies.fitted`` -> model.
    """
    text = _dumped(yaml, content)
    # Before anything is written: names in the spec become names of files.
    parse_spec(text, source=str(spec_path), labels_folder=spec_path.parent)
    try:
        with ExitStack() as stack:
            staged = _staged(stack, spec_path.parent, content, models or {})
            spec = parse_spec(
                _dumped(yaml, content), source=str(spec_path), folder=spec_path.parent
            )
            catalogue(spec, spec_path.parent)
            # Beside the file itself, also where the path is a link to it.
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
    """Write models to temporary files, which the content names from then on.

    Returns:
        Each temporary file, and the file that it is to become.
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
    """Put each new file in its place; a failure puts back those that were there."""
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
    """On the same file system, so that its files can be moved in one step."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".tuning-", dir=beside)))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _dumped(yaml: YAML, content: Any) -> str:
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


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


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items() if not math.isnan(value)}


def _section(content: Any, key: str) -> Any:
    if content.get(key) is None:
        content[key] = {}
    return content[key]
