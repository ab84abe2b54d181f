"""Checks that an archive holds the files that its record lists, unchanged, and no others.

TorchServe checks no digest and extracts whatever it is given. So the worker checks the extracted
folder when it loads, before it imports anything else from it. The commands that hand an archive to
TorchServe check the file itself before that (`mar_file.verify_archive`).

This module needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.archive_layout import (
    BOM,
    COMPILED,
    ENSEMBLE,
    ENTRY,
    MANIFEST,
    MODEL_CARD,
    MODEL_CONFIG,
    MODEL_SETTINGS,
    RECORD,
    REQUIREMENTS,
    SELF_TEST,
    SIGNATURE,
    SPEC,
    name_problem,
    names_that_collide,
)
from ..base.errors import ArchiveError
from ..base.quoting import printable
from .record import ArchiveRecord, sha256_of_file
from .signature import read_signature

if TYPE_CHECKING:
    from ..spec import EnsembleSpec
    from .trusted_keys import TrustedKeys

MAX_FILES = 10_000
"""Largest number of files that an archive may hold."""

MAX_TEXT_BYTES = 16 * 1024**2
"""Largest size of a text file (record, manifest, settings, spec), which is read as a whole."""

_FILES_OF_ROOT = (MANIFEST, MODEL_CONFIG, REQUIREMENTS, ENTRY, BOM, MODEL_CARD)
"""Files of every archive outside its folders `ENSEMBLE` and ``handlers``."""

_MAX_PROBLEMS_SHOWN = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_SETTING_LINE = re.compile(rf"({'|'.join(MODEL_SETTINGS)}): [0-9]{{1,9}}")
# Python writes the entry's byte code when TorchServe imports the entry. It writes a temporary file
# first, whose name ends with a number.
_BYTE_CODE_OF_ENTRY = re.compile(
    rf"__pycache__/({re.escape(ENTRY.removesuffix('.py'))}"
    rf"\.{re.escape(sys.implementation.cache_tag or '')}(\.opt-[12])?\.pyc(\.[0-9]+)?)?"
)


def verify_folder(
    folder: Path, *, entry_imported: bool = False, trusted: TrustedKeys | None = None
) -> ArchiveRecord:
    """Check that an extracted archive holds the files of its record, unchanged, and no others.

    Args:
        folder: the folder that TorchServe extracted the archive to.
        entry_imported: whether TorchServe may have imported the entry from this folder. Then the
            folder may hold the entry's byte code, which no record lists.
        trusted: keys of which one must have signed the record; None: any archive will do, signed or
            not.

    Raises:
        ArchiveError: files are missing, were changed or do not belong there, and the message names
            each of them; or the signature is damaged, is that of another archive or not trusted.
    """
    names, problems = [], []
    for name, is_regular in _files_below(folder):
        if entry_imported and _BYTE_CODE_OF_ENTRY.fullmatch(name):
            continue
        names.append(name)
        if not is_regular and not name.endswith("/"):
            problems.append(f"{printable(name)} is a link or no regular file")
        if len(names) > MAX_FILES:
            raise ArchiveError(f"{folder}: it holds more than {MAX_FILES} files; no archive does")
    raise_problems(str(folder), problems)
    return check_contents(
        names,
        digest=lambda name: sha256_of_file(folder / name),
        read=lambda name: read_text(folder / name),
        source=str(folder),
        trusted=trusted,
    )


def check_contents(
    names: Iterable[str],
    *,
    digest: Callable[[str], str],
    read: Callable[[str], bytes],
    source: str,
    trusted: TrustedKeys | None,
) -> ArchiveRecord:
    """Check an archive's files against its record, whether they lie in a zip or in a folder.

    Args:
        names: paths of all files in the archive. The path of a folder without files ends with a
            slash.
        digest: returns the SHA-256 of a file, in hexadecimal.
        read: returns the contents of a text file, of at most `MAX_TEXT_BYTES`.
        source: name of the archive, for messages.
        trusted: keys of which one must have signed the record; None: any archive will do.

    Raises:
        ArchiveError: the files and the record disagree, and the message names each file; or the
            signature is damaged, is that of another archive or not trusted.
    """
    present = set(names)
    if RECORD not in present:
        raise ArchiveError(
            f"{source}: no {RECORD}; the archive was not built by `ts-ensemble build`"
        )
    # Bytes that are not UTF-8 become other characters, which the record's own check then refuses.
    content = read(RECORD)
    record = ArchiveRecord.from_json(content.decode("utf-8", errors="replace"), source=source)
    signature = None
    if SIGNATURE in present:
        signature = read_signature(read(SIGNATURE), content, source=source)
    if trusted is not None:
        trusted.check(signature, source=source)
    raise_problems(source, _problems_of_list(record.files))
    present -= {RECORD, SIGNATURE}
    listed = set(record.files)
    problems = [f"{path} is missing" for path in sorted(listed - present)]
    problems += [f"{printable(path)} is not listed in {RECORD}" for path in present - listed]
    problems += [
        f"{path} was changed"
        for path in sorted(listed & present)
        if digest(path) != record.files[path]
    ]
    raise_problems(source, problems)
    _check_manifest(read(MANIFEST), source)
    _check_model_config(read(MODEL_CONFIG), source)
    return record


def check_spec(spec: EnsembleSpec, record: ArchiveRecord, manifest: bytes, *, source: str) -> None:
    """Check that an archive's files and manifest are those of the spec that it holds.

    The folder `ENSEMBLE` must hold every file that the spec names and no other, and the manifest
    must have the spec's name and version.

    Args:
        spec: the spec that the archive holds.
        record: the archive's record, whose files were checked before.
        manifest: contents of the archive's file `MANIFEST`.
        source: name of the archive, for messages.

    Raises:
        ArchiveError: the archive does not fit its spec; the message names each file.
    """
    named = {SPEC, *(f"{ENSEMBLE}/{file}" for file in spec.files())}
    compiled = {path for path in record.files if path.startswith(f"{COMPILED}/")}
    beside_spec = {path for path in record.files if path.startswith(f"{ENSEMBLE}/")} - compiled
    beside_spec.discard(SELF_TEST)
    problems = [f"{path} is named by the spec and missing" for path in named - beside_spec]
    problems += [f"{path} is not named by the spec" for path in beside_spec - named]
    if spec.runtime.engine == "torch":
        problems += [
            f"{path} is for another engine, and the spec asks for torch (runtime.engine)"
            for path in compiled
        ]
    model = json.loads(manifest)["model"]
    if (model["modelName"], model["modelVersion"]) != (spec.name, spec.version):
        problems.append(
            f"{MANIFEST} names another model than the spec's {spec.name} {spec.version}"
        )
    raise_problems(source, problems)


def read_text(path: Path) -> bytes:
    """Return the first `MAX_TEXT_BYTES` of a file, which is the whole of any file of a build."""
    with path.open("rb") as file:
        return file.read(MAX_TEXT_BYTES)


def raise_problems(source: str, problems: Iterable[str]) -> None:
    """Raise one error that lists an archive's problems; return if there are none.

    Args:
        source: name of the archive.
        problems: one phrase for each problem. Only the first few are listed in full.

    Raises:
        ArchiveError: there is at least one problem.
    """
    listed = sorted(problems)
    if listed:
        num_hidden = len(listed) - _MAX_PROBLEMS_SHOWN
        more = f" and {num_hidden} more" if num_hidden > 0 else ""
        raise ArchiveError(
            f"{source}: the archive is not as it was built: "
            f"{'; '.join(listed[:_MAX_PROBLEMS_SHOWN])}{more}; build it again"
        )


def _problems_of_list(files: Mapping[str, str]) -> Iterator[str]:
    """Find what a build would never list in a record, even if the record's digest is right."""
    for path, digest in files.items():
        if not isinstance(path, str) or not isinstance(digest, str):
            yield f"{path!r} has no SHA-256 in {RECORD}"
            continue
        reason = name_problem(path)
        if reason is not None:
            yield f"the name {path[:100]!r} is not allowed: {reason}"
        elif not _SHA256.fullmatch(digest):
            yield f"{path} has no SHA-256 in {RECORD}"
        elif not _is_allowed_place(path):
            yield f"{path} does not belong there: no build puts a file there"
    for first, second in names_that_collide(files):
        yield f"{first} and {second} are one name to some file systems"
    for needed in (*_FILES_OF_ROOT, SPEC):
        if needed not in files:
            yield f"{needed} is not listed in {RECORD}"


def _is_allowed_place(path: str) -> bool:
    """Return whether a build may put a file at this path of the archive.

    The archive's root comes before the standard library on the path of the worker's Python.
    Therefore the entry must be the only module that can be imported from the root.
    """
    folder, _, rest = path.partition("/")
    if folder == "handlers":
        return rest.endswith(".py")
    return folder == ENSEMBLE or path in _FILES_OF_ROOT


def _check_manifest(content: bytes, source: str) -> None:
    """Check that the manifest names this project's entry and nothing else for TorchServe to run."""
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
        # The bytes must be equal too. TorchServe reads the manifest with a JSON reader in Java,
        # which could understand an unusual text differently from Python's.
        is_as_built = (json.dumps(expected, indent=2, sort_keys=True) + "\n").encode() == content
    except (ValueError, KeyError, TypeError, RecursionError):
        is_as_built = False
    if not is_as_built:
        problem = (
            f"{MANIFEST} is not one that a build writes: it must name the handler {ENTRY}, run by "
            "Python, and nothing else to run"
        )
        raise_problems(source, [problem])


def _check_model_config(content: bytes, source: str) -> None:
    """Check that TorchServe's settings of the model are whole numbers for allowed keys alone.

    Such lines mean the same to TorchServe's YAML reader in Java as they do here.
    """
    for line in content.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
        if not _MODEL_SETTING_LINE.fullmatch(line):
            raise_problems(
                source,
                [
                    f"{MODEL_CONFIG}: each line must be one of {', '.join(MODEL_SETTINGS)} with a "
                    f"whole number, not {line[:100]!r}"
                ],
            )


def _files_below(folder: Path) -> Iterator[tuple[str, bool]]:
    """Find everything below a folder, without following links.

    Yields:
        Path from the folder, and whether it is a regular file. Of folders only empty ones appear;
        their paths end with a slash.
    """
    prefixes = [""]
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(folder / prefix) as scanned:
            entries = list(scanned)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                prefixes.append(f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.is_file(follow_symlinks=False)
        if not entries and prefix:
            yield prefix, False
