"""Says what differs between two archives: settings, members, weights, code, packages."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from ..handlers.base.archive_layout import COMPILED, ENSEMBLE, ENTRY, REQUIREMENTS, SPEC
from ..handlers.base.errors import MemberError
from ..handlers.spec import EnsembleSpec, WeightsFormat
from .archive_reading import Archive
from .spec_differences import SettingChange, resolved, setting_changes
from .tensor_differences import COMPARED_FORMATS, TensorChange, tensor_changes

_MAX_LINES_OF_CODE = 2000
"""Lines of one file's text diff; the others are only counted."""


@dataclass(frozen=True)
class WeightsChange:
    """A file of tensors that differs.

    Attributes:
        owner: name of the member, or of the policies' fitted model, that has the weights.
        before: path of the file in the first spec's folder.
        after: path of the file in the second spec's folder.
        tensors: the tensors that differ; None if the format has no tensors with names. Empty if
            only the files differ, as a state dict and the safetensors file made of it do.
        num_equal: number of tensors that are equal.
    """

    owner: str
    before: str
    after: str
    tensors: tuple[TensorChange, ...] | None
    num_equal: int = 0


@dataclass(frozen=True)
class FileChange:
    """A file of the ensemble that differs and holds no weights.

    Attributes:
        file: its path in the spec's folder.
        kind: ``added``, ``removed`` or ``changed``.
        diff: lines of the text diff, for code; empty for other files.
    """

    file: str
    kind: str
    diff: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Numbers of files that were added, removed and changed."""

    added: int = 0
    removed: int = 0
    changed: int = 0

    @property
    def total(self) -> int:
        """Number of files that differ."""
        return self.added + self.removed + self.changed


@dataclass(frozen=True)
class ArchiveDifferences:
    """What differs between two archives.

    Attributes:
        before: the first archive.
        after: the second archive.
        members_added: members that only the second archive has -> their settings.
        members_removed: members that only the first archive has -> their settings.
        settings: values of the spec that differ.
        weights: files of tensors that differ, of members that both archives have.
        files: further files of the ensemble that differ.
        packages: package -> what the server needs of it, before and after.
        built_with: package -> version that built the archive, before and after.
        toolkit: files of this project's own code that differ.
        compiled: executables for another engine than torch that differ.
    """

    before: Archive
    after: Archive
    members_added: Mapping[str, Mapping[str, Any]]
    members_removed: Mapping[str, Mapping[str, Any]]
    settings: tuple[SettingChange, ...]
    weights: tuple[WeightsChange, ...]
    files: tuple[FileChange, ...]
    packages: Mapping[str, tuple[str | None, str | None]]
    built_with: Mapping[str, tuple[str | None, str | None]]
    toolkit: Counts
    compiled: Counts

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, apart from how the spec is written."""
        return not (
            self.members_added
            or self.members_removed
            or self.settings
            or any(each.tensors != () for each in self.weights)
            or self.files
            or self.packages
            or self.built_with
            or self.toolkit.total
            or self.compiled.total
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as values of JSON."""
        return {
            "equal": self.is_equal,
            "before": _identity(self.before),
            "after": _identity(self.after),
            "members": {
                "added": dict(self.members_added),
                "removed": dict(self.members_removed),
            },
            "settings": [asdict(each) for each in self.settings],
            "weights": [asdict(each) for each in self.weights],
            "files": [asdict(each) for each in self.files],
            "packages": _pairs(self.packages),
            "built_with": _pairs(self.built_with),
            "toolkit": asdict(self.toolkit),
            "compiled": asdict(self.compiled),
        }


def compare_archives(
    before: Path, after: Path, *, on_member: Callable[[int], None] = lambda total: None
) -> ArchiveDifferences:
    """Compare two archives.

    Files are first compared by the digests in the archives' records. Only weights that differ are
    read, one member and one tensor at a time.

    Args:
        before: the first archive, a ``.mar`` file or the folder that one was extracted to.
        after: the second archive.
        on_member: called with the number of members in both archives, after each.

    Raises:
        ArchiveError: an archive is missing, was altered, is damaged or is none of this project.
        MemberError: a weights file cannot be read.
    """
    first, second = Archive.open(before), Archive.open(after)
    settings = [resolved(each.spec)["members"] for each in (first, second)]
    names = [set(each) for each in settings]
    return ArchiveDifferences(
        before=first,
        after=second,
        members_added={n: m for n, m in settings[1].items() if n not in names[0]},
        members_removed={n: m for n, m in settings[0].items() if n not in names[1]},
        settings=setting_changes(first.spec, second.spec),
        weights=_weights(first, second, on_member),
        files=_files(first, second),
        packages=_changed_pairs(_packages(first), _packages(second)),
        built_with=_changed_pairs(first.record.built_with, second.record.built_with),
        toolkit=_counts(first, second, lambda name: name == ENTRY or name.startswith("handlers/")),
        compiled=_counts(first, second, lambda name: name.startswith(f"{COMPILED}/")),
    )


def _weights(
    first: Archive, second: Archive, on_member: Callable[[int], None]
) -> tuple[WeightsChange, ...]:
    before, after = _tensor_files(first.spec), _tensor_files(second.spec)
    common = [owner for owner in before if owner in after]
    changes = []
    with tempfile.TemporaryDirectory(prefix="ts-ensemble-diff-") as folder:
        for owner in common:
            (file, kind), (other, other_kind) = before[owner], after[owner]
            if _digest(first, file) != _digest(second, other):
                tensors, num_equal = None, 0
                if {kind, other_kind} <= COMPARED_FORMATS:
                    try:
                        found, num_equal = tensor_changes(
                            (first.extract(_path(file), Path(folder) / "before"), kind),
                            (
                                second.extract(_path(other), Path(folder) / "after"),
                                other_kind,
                            ),
                        )
                    except MemberError as error:
                        raise MemberError(f"{owner}, {file} and {other}: {error}") from error
                    tensors = tuple(found)
                changes.append(WeightsChange(owner, file, other, tensors, num_equal))
            on_member(len(common))
    return tuple(changes)


def _tensor_files(spec: EnsembleSpec) -> dict[str, tuple[str, WeightsFormat]]:
    """Return the files of tensors and their formats, by the member or fitted model they are of."""
    files = {each.name: (each.weights, each.weights_format) for each in spec.members}
    files |= {
        f"policies.fitted.{name}": (file, WeightsFormat.SAFETENSORS)
        for name, file in spec.policies.fitted.items()
    }
    return files


def _files(first: Archive, second: Archive) -> tuple[FileChange, ...]:
    """Compare the files of the ensemble that hold no weights."""
    weights = {file for each in (first, second) for file, _ in _tensor_files(each.spec).values()}
    skipped = {SPEC} | {_path(file) for file in weights}
    changes = []
    for name in sorted({*first.record.files, *second.record.files}):
        is_compiled = name.startswith(f"{COMPILED}/")
        kind = _kind(first, second, name)
        if kind and name.startswith(f"{ENSEMBLE}/") and name not in skipped and not is_compiled:
            diff = _text_diff(first, second, name) if name.endswith(".py") else ()
            changes.append(FileChange(name.removeprefix(f"{ENSEMBLE}/"), kind, diff))
    return tuple(changes)


def _text_diff(first: Archive, second: Archive, name: str) -> tuple[str, ...]:
    before, after = (
        each.read(name).decode(errors="replace").splitlines() if name in each.record.files else []
        for each in (first, second)
    )
    file = name.removeprefix(f"{ENSEMBLE}/")
    lines = list(difflib.unified_diff(before, after, f"a/{file}", f"b/{file}", lineterm=""))
    num_hidden = len(lines) - _MAX_LINES_OF_CODE
    if num_hidden > 0:
        lines = [*lines[:_MAX_LINES_OF_CODE], f"... and {num_hidden} more lines"]
    return tuple(lines)


def _packages(archive: Archive) -> dict[str, str]:
    """Return what the server needs beside TorchServe: package -> range of versions."""
    packages = {}
    for line in archive.read(REQUIREMENTS).decode(errors="replace").splitlines():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            packages[line] = ""
            continue
        packages[requirement.name] = str(requirement.specifier)
    return packages


def _changed_pairs(
    before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }


def _pairs(pairs: Mapping[str, tuple[str | None, str | None]]) -> dict[str, dict[str, str | None]]:
    return {name: {"before": one, "after": other} for name, (one, other) in pairs.items()}


def _counts(first: Archive, second: Archive, is_meant: Callable[[str], bool]) -> Counts:
    names = filter(is_meant, {*first.record.files, *second.record.files})
    kinds = [_kind(first, second, name) for name in names]
    return Counts(kinds.count("added"), kinds.count("removed"), kinds.count("changed"))


def _kind(first: Archive, second: Archive, name: str) -> str | None:
    """Return how a file differs; None if it is equal."""
    before, after = first.record.files.get(name), second.record.files.get(name)
    if before == after:
        return None
    if before is None:
        return "added"
    return "removed" if after is None else "changed"


def _digest(archive: Archive, file: str) -> str:
    return archive.record.files[_path(file)]


def _path(file: str) -> str:
    """Return the path in the archive of a file that the spec names."""
    return f"{ENSEMBLE}/{PurePosixPath(file).as_posix()}"


def _identity(archive: Archive) -> dict[str, str]:
    spec = archive.spec
    return {
        "path": str(archive.path),
        "name": spec.name,
        "version": spec.version,
        "digest": archive.record.digest,
    }
