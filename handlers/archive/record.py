"""What an archive says of itself, and whether that is true of every file in it.

TorchServe checks no digest (it extracts whatever it is given), so the worker does at load, before
it imports anything else, and so do the verbs that hand an archive to TorchServe
(`mar_file.verify_archive`). This module needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.archive_layout import (
    COMPILED,
    ENSEMBLE,
    ENTRY,
    MANIFEST,
    MODEL_CONFIG,
    MODEL_SETTINGS,
    RECORD,
    REQUIREMENTS,
    SPEC,
    name_problem,
    names_that_collide,
)
from ..base.errors import ArchiveError

if TYPE_CHECKING:
    from ..spec import EnsembleSpec

MAX_FILES = 10_000
MAX_TEXT_BYTES = 16 * 1024**2
"""Of the record, the manifest, the model's settings and the spec: they are read as a whole."""

_MAX_PROBLEMS = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTING = re.compile(rf"({'|'.join(MODEL_SETTINGS)}): [0-9]{{1,9}}")
# The worker's Python writes this when TorchServe imports the entry, under a temporary name first.
_BYTE_CODE_OF_ENTRY = re.compile(
    rf"__pycache__/({re.escape(ENTRY.removesuffix('.py'))}"
    rf"\.{re.escape(sys.implementation.cache_tag or '')}(\.opt-[12])?\.pyc(\.[0-9]+)?)?"
)


@dataclass(frozen=True)
class ArchiveRecord:
    """Contents of `RECORD`.

    Attributes:
        files: path in the archive -> SHA-256 in hexadecimal.
        built_with: name -> version of what built the archive.
    """

    files: Mapping[str, str]
    built_with: Mapping[str, str]

    @property
    def digest(self) -> str:
        """``sha256:...`` over the paths and digests of all files, and over what built them.

        Archives of equal digest are equal byte for byte, this record included.
        """
        listing = "".join(f"{digest}  {path}\n" for path, digest in sorted(self.files.items()))
        listing += json.dumps(dict(sorted(self.built_with.items())))
        return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"

    def to_json(self) -> str:
        """The record as it stands in the archive."""
        content = {
            "digest": self.digest,
            "built_with": dict(sorted(self.built_with.items())),
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> ArchiveRecord:
        """Read a record.

        Raises:
            ArchiveError: it is not one, or its digest does not match its own list.
        """
        try:
            content: Any = json.loads(text)
            record = cls(dict(content["files"]), dict(content["built_with"]))
            if record.digest != content["digest"] or record.to_json() != text:
                raise ArchiveError(
                    f"{source}: {RECORD} was changed after the build: its digest does not match "
                    "what it says, or it is not written as a build writes it; build the archive "
                    "again"
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArchiveError(
                f"{source}: {RECORD} is damaged ({error!r}); build the archive again"
            ) from None
        return record


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(name: str) -> str:
    """A name for a message, which a terminal or a log might otherwise take for commands."""
    return name if name.isprintable() else ascii(name)


def verify_folder(folder: Path, *, entry_imported: bool = False) -> ArchiveRecord:
    """Check an extracted archive against its own record, and that it holds nothing else.

    Args:
        folder: where TorchServe extracted the archive.
        entry_imported: by TorchServe, so that the entry's byte code may lie there.

    Raises:
        ArchiveError: names each file that is missing, was changed, or does not belong there.
    """
    names, problems = [], []
    for name, regular in _files_below(folder):
        if entry_imported and _BYTE_CODE_OF_ENTRY.fullmatch(name):
            continue
        names.append(name)
        if not regular and not name.endswith("/"):
            problems.append(f"{shown(name)} is a link or no regular file")
        if len(names) > MAX_FILES:
            raise ArchiveError(f"{folder}: it holds more than {MAX_FILES} files; no archive does")
    raise_problems(str(folder), problems)
    return check_contents(
        names,
        digest=lambda name: sha256(folder / name),
        read=lambda name: read_text(folder / name),
        source=str(folder),
    )


def check_contents(
    names: Iterable[str],
    *,
    digest: Callable[[str], str],
    read: Callable[[str], bytes],
    source: str,
) -> ArchiveRecord:
    """Check an archive's files against its record, wherever they are.

    Args:
        names: of all files; a folder without files ends with a slash.
        digest: SHA-256 of a file, in hexadecimal.
        read: contents of a small file, at most `MAX_TEXT_BYTES`.
        source: named in messages.

    Raises:
        ArchiveError: names what is wrong.
    """
    there = set(names)
    if RECORD not in there:
        raise ArchiveError(
            f"{source}: no {RECORD}; the archive was not built by `ts-ensemble build`"
        )
    # What is not UTF-8 is damaged, which reading it as JSON then tells.
    text = read(RECORD).decode("utf-8", errors="replace")
    record = ArchiveRecord.from_json(text, source=source)
    raise_problems(source, _problems_of_list(record.files))
    there.remove(RECORD)
    listed = set(record.files)
    problems = [f"{path} is missing" for path in sorted(listed - there)]
    problems += [f"{shown(path)} is not listed in {RECORD}" for path in sorted(there - listed)]
    problems += [
        f"{path} was changed"
        for path in sorted(listed & there)
        if digest(path) != record.files[path]
    ]
    raise_problems(source, problems)
    _check_manifest(read(MANIFEST), source)
    _check_model_config(read(MODEL_CONFIG), source)
    return record


def check_spec(spec: EnsembleSpec, record: ArchiveRecord, manifest: bytes, *, source: str) -> None:
    """Check that an archive holds the files that its spec names, no others beside it, and its name.

    Args:
        spec: from the archive.
        record: of the archive; its files were checked.
        manifest: contents of `MANIFEST`.
        source: named in messages.

    Raises:
        ArchiveError: names what is wrong.
    """
    named = {SPEC, *(f"{ENSEMBLE}/{file}" for file in spec.files())}
    compiled = {path for path in record.files if path.startswith(f"{COMPILED}/")}
    beside = {path for path in record.files if path.startswith(f"{ENSEMBLE}/")} - compiled
    problems = [f"{path} is named by the spec and missing" for path in named - beside]
    problems += [f"{path} is not named by the spec" for path in beside - named]
    if spec.runtime.engine == "torch":
        problems += [f"{path} is for another engine than the spec's torch" for path in compiled]
    model = json.loads(manifest)["model"]
    if (model["modelName"], model["modelVersion"]) != (spec.name, spec.version):
        problems.append(
            f"{MANIFEST} names another model than the spec's {spec.name} {spec.version}"
        )
    raise_problems(source, problems)


def _problems_of_list(files: Mapping[str, str]) -> Iterator[str]:
    """What no build writes into a record, although its digest is right."""
    for path, digest in files.items():
        if not isinstance(path, str) or not isinstance(digest, str):
            yield f"{path!r} has no SHA-256 in {RECORD}"
            continue
        reason = name_problem(path)
        if reason is not None:
            yield f"the name {path[:100]!r} cannot be: {reason}"
        elif not _SHA256.fullmatch(digest):
            yield f"{path} has no SHA-256 in {RECORD}"
        elif not _has_place(path):
            yield f"{path} does not belong there: no build puts a file there"
    for first, second in names_that_collide(files):
        yield f"{first} and {second} are one name to some file systems"
    for needed in (MANIFEST, MODEL_CONFIG, REQUIREMENTS, ENTRY, SPEC):
        if needed not in files:
            yield f"{needed} is not listed in {RECORD}"


def _has_place(path: str) -> bool:
    """Whether a build puts a file there.

    The archive's root comes before the standard library on the worker's path, so that nothing but
    the entry may be importable from it.
    """
    folder, _, rest = path.partition("/")
    if folder == "handlers":
        return rest.endswith(".py")
    return folder == ENSEMBLE or path in (MANIFEST, MODEL_CONFIG, REQUIREMENTS, ENTRY)


def _check_manifest(content: bytes, source: str) -> None:
    """The manifest names this project's entry and nothing else that TorchServe would run."""
    try:
        manifest: Any = json.loads(content)
        model = manifest["model"]
        expected = {
            "createdOn": manifest["createdOn"],
            "runtime": "python",
            "archiverVersion": manifest["archiverVersion"],
            "model": {
                "modelName": model["modelName"],
                "modelVersion": model["modelVersion"],
                "handler": ENTRY,
                "configFile": MODEL_CONFIG,
                "requirementsFile": REQUIREMENTS,
            },
        }
        # As it is written, so that Java's reader cannot understand something else.
        right = (json.dumps(expected, indent=2, sort_keys=True) + "\n").encode() == content
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise_problems(
            source, [f"{MANIFEST} says more or something else than handler {ENTRY} in Python"]
        )


def _check_model_config(content: bytes, source: str) -> None:
    """Numbers for known keys alone, which Java's reader of YAML cannot understand otherwise."""
    for line in content.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        if not _SETTING.fullmatch(line):
            known = ", ".join(MODEL_SETTINGS)
            problem = f"{MODEL_CONFIG}: {line[:100]!r} is no number for one of {known}"
            raise_problems(source, [problem])


def _files_below(folder: Path) -> Iterator[tuple[str, bool]]:
    """Name, and whether it is a regular file; an empty folder's name ends with a slash."""
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(folder / prefix) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                prefixes.append(f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.is_file(follow_symlinks=False)
        if not entries and prefix:
            yield prefix, False


def read_text(path: Path) -> bytes:
    """A small file's contents, at most `MAX_TEXT_BYTES`."""
    with path.open("rb") as file:
        return file.read(MAX_TEXT_BYTES)


def raise_problems(source: str, problems: Iterable[str]) -> None:
    """Report what is wrong with an archive, the first few in full; nothing if nothing is wrong.

    Raises:
        ArchiveError: there are problems.
    """
    found = sorted(problems)
    if found:
        more = f" and {len(found) - _MAX_PROBLEMS} more" if len(found) > _MAX_PROBLEMS else ""
        raise ArchiveError(
            f"{source}: the archive is not as it was built: {'; '.join(found[:_MAX_PROBLEMS])}"
            f"{more}; build it again"
        )
