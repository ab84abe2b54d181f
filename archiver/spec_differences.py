"""Compares two specs by what they mean, not by their text.

Defaults are filled in, names are replaced by what they stand for, and the order of keys makes no
difference: a threshold that is written out and one that is left to its default are equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from ..handlers.inputs.resolving import resolve
from ..handlers.spec import EnsembleSpec, Member, Preprocessing

_SPEC = TypeAdapter(EnsembleSpec)
_PREPROCESSING = TypeAdapter(Preprocessing)
_HAVE_THRESHOLDS = {Task.PRESENCE, Task.MULTILABEL}


@dataclass(frozen=True)
class SettingChange:
    """A value of the spec that differs.

    Attributes:
        place: keys that lead to it, joined by dots, e.g. ``members.cnn.temperature``.
        before: its value in the first archive; None: it has none.
        after: its value in the second archive.
    """

    place: str
    before: Any
    after: Any


def setting_changes(before: EnsembleSpec, after: EnsembleSpec) -> tuple[SettingChange, ...]:
    """List the values that differ, members that both have among them.

    Members that only one of the specs has are left out: see `ArchiveDifferences`.
    """
    first, second = resolved(before), resolved(after)
    common = first["members"].keys() & second["members"].keys()
    for each in (first, second):
        each["members"] = {name: m for name, m in each["members"].items() if name in common}
    return tuple(_changes(first, second, ""))


def resolved(spec: EnsembleSpec) -> dict[str, Any]:
    """Return a spec as values of JSON, with every default and name replaced by what it means."""
    settings: dict[str, Any] = _SPEC.dump_python(spec, mode="json")
    del settings["preprocessing"]
    settings["members"] = {
        member.name: _resolved_member(spec, member, content)
        for member, content in zip(spec.members, settings["members"], strict=True)
    }
    settings["threshold"] = _thresholds(spec, None)
    settings["extra_files"] = sorted(settings["extra_files"])
    if settings["policies"]["allowed"] is not None:
        settings["policies"]["allowed"] = sorted(settings["policies"]["allowed"])
    return settings


def _resolved_member(spec: EnsembleSpec, member: Member, content: dict[str, Any]) -> dict[str, Any]:
    preprocessing = spec.preprocessing_of(member)
    # If this machine's torchvision lacks the weights that are named, the names are compared.
    with contextlib.suppress(SpecError):
        preprocessing = resolve(preprocessing)
    return {key: value for key, value in content.items() if key != "name"} | {
        "format": str(member.weights_format),
        "output": str(spec.output_of(member)),
        "preprocessing": _PREPROCESSING.dump_python(preprocessing, mode="json"),
        "threshold": _thresholds(spec, member),
    }


def _thresholds(spec: EnsembleSpec, member: Member | None) -> dict[str, float]:
    if spec.task not in _HAVE_THRESHOLDS:
        return {}
    return dict(zip(spec.score_labels, spec.thresholds(member), strict=True))


def _changes(before: Any, after: Any, place: str) -> Iterator[SettingChange]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{place}.{key}" if place else str(key)
            yield from _changes(before.get(key), after.get(key), inner)
        return
    yield SettingChange(place, before, after)
