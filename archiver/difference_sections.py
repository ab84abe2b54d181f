"""Puts what differs between two archives into sentences, for a terminal and for a page of HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .archive_differences import ArchiveDifferences, Counts, WeightsChange
from .archive_reading import Archive
from .spec_differences import SettingChange
from .tensor_differences import TensorChange

_MAX_VALUE_CHARACTERS = 200
_MAX_LABELS_NAMED = 10


@dataclass(frozen=True)
class Section:
    """A heading and the lines below it.

    Attributes:
        title: the heading.
        lines: one fact each, or the lines of code.
        is_code: whether the lines are a text diff.
    """

    title: str
    lines: tuple[str, ...]
    is_code: bool = False


def archive_sections(differences: ArchiveDifferences) -> list[Section]:
    """Return a section for each kind of difference that there is."""
    found = [
        Section("settings", tuple(_setting(each) for each in differences.settings)),
        Section("members", tuple(_members(differences))),
        *(_weights(each) for each in differences.weights),
        Section("files", tuple(f"{e.file}: {e.kind}" for e in differences.files if not e.diff)),
        *(
            Section(f"code {each.file}: {each.kind}", each.diff, is_code=True)
            for each in differences.files
            if each.diff
        ),
        Section("packages that the server needs", tuple(_pairs(differences.packages))),
        Section("built with", tuple(_pairs(differences.built_with))),
        Section("compiled executables", tuple(_counts(differences.compiled))),
        Section("the toolkit's own code", tuple(_counts(differences.toolkit))),
    ]
    return [each for each in found if each.lines]


def identity_line(archive: Archive) -> str:
    """Return the name, version, digest and path of an archive."""
    spec = archive.spec
    return f"{spec.name} {spec.version}  {archive.record.digest}  {archive.path}"


def _setting(change: SettingChange) -> str:
    if change.place == "labels":
        return f"labels: {_labels(change.before, change.after)}"
    if change.before is None:
        return f"{change.place}: {_value(change.after)} (was unset)"
    if change.after is None:
        return f"{change.place}: unset (was {_value(change.before)})"
    return f"{change.place}: {_value(change.before)} -> {_value(change.after)}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_short = len(text) <= _MAX_VALUE_CHARACTERS
    return text if is_short else f"{text[:_MAX_VALUE_CHARACTERS]}..."


def _labels(before: Sequence[str], after: Sequence[str]) -> str:
    """Describe how a list of labels changes, without writing all of them."""
    added = list((Counter(after) - Counter(before)).elements())
    removed = list((Counter(before) - Counter(after)).elements())
    parts = [f"{len(before)} -> {len(after)}"]
    parts += [f"added {_named(added)}"] if added else []
    parts += [f"removed {_named(removed)}"] if removed else []
    if not added and not removed:
        parts = ["their order changes, and so what each output of a member means"]
    return "; ".join(parts)


def _named(labels: Sequence[str]) -> str:
    named = ", ".join(labels[:_MAX_LABELS_NAMED])
    num_hidden = len(labels) - _MAX_LABELS_NAMED
    return named if num_hidden <= 0 else f"{named} and {num_hidden} more"


def _members(differences: ArchiveDifferences) -> Iterator[str]:
    for kind, members in (
        ("added", differences.members_added),
        ("removed", differences.members_removed),
    ):
        for name, settings in members.items():
            architecture = settings["architecture"] or settings["format"]
            yield f"{kind}: {name} ({architecture}, {settings['weights']})"


def _weights(change: WeightsChange) -> Section:
    file = change.before if change.before == change.after else f"{change.before}, {change.after}"
    title = f"weights of {change.owner} ({file})"
    if change.tensors is None:
        return Section(title, ("the files differ; their format has no tensors to compare",))
    if not change.tensors:
        return Section(title, (f"all {change.num_equal} tensors are equal; only the files differ",))
    count = len(change.tensors)
    total = count + change.num_equal
    lines = (f"{count} of {total} tensors differ", *map(_tensor, change.tensors))
    return Section(title, lines)


def _tensor(change: TensorChange) -> str:
    if change.before is None:
        return f"{change.name}: added, {change.after}"
    if change.after is None:
        return f"{change.name}: removed, {change.before}"
    kind = change.before if change.before == change.after else f"{change.before} -> {change.after}"
    if change.changed is None:
        return f"{change.name}: {kind}"
    if not change.changed:
        return f"{change.name}: {kind}, with equal values"
    largest = (
        "an element is no finite number in one of them"
        if change.largest is None
        else f"largest change {change.largest:.3g} of values up to {change.scale:.3g}"
    )
    return f"{change.name}: {kind}, {largest}, {change.changed} of {change.elements} elements"


def _pairs(pairs: Any) -> Iterator[str]:
    for name, (before, after) in pairs.items():
        yield f"{name}: {_version(before)} -> {_version(after)}"


def _version(text: str | None) -> str:
    return "none" if text is None else text or "any version"


def _counts(counts: Counts) -> Iterator[str]:
    if counts.total:
        yield (f"{counts.changed} files changed, {counts.added} added, {counts.removed} removed")
