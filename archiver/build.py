"""Builds a model archive: members, handler, spec and settings in one `.mar` file.

The archive is a zip file that stock TorchServe loads. Its bytes depend on nothing but its contents:
entries are sorted, all have the same fixed time, and none is compressed.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ..handlers.answers.encoding import compact
from ..handlers.archive.mar_file import zip_entry
from ..handlers.archive.record import ArchiveRecord, sha256_of_bytes, sha256_of_file
from ..handlers.archive.self_test import SelfTest
from ..handlers.base.archive_layout import (
    BOM,
    ENSEMBLE,
    ENTRY,
    MANIFEST,
    MODEL_CARD,
    MODEL_CONFIG,
    RECORD,
    REQUIREMENTS,
    SELF_TEST,
    SPEC,
)
from ..handlers.base.errors import ArchiveError
from ..handlers.spec import Engine, EnsembleSpec, load_spec, located_errors
from .bill_of_materials import bill_of_materials, unknown_licences
from .labels_in_spec import text_with_labels
from .materials import Materials, package_versions, profile_of
from .model_card import model_card
from .self_test import make_self_test
from .source_revision import source_revision
from .torchserve_files import manifest, model_config, requirements

logger = logging.getLogger(__name__)

_HANDLERS = Path(__file__).parent.parent / "handlers"
_BUILT_WITH = ("torchserve-ensemble", "torch", "torchvision", "torch-model-archiver")

# Enough to see whether a number format changes the answers; a folder may hold millions of images.
_MAX_SAMPLE_FILES = 64


def build_archive(
    spec_path: Path,
    output: Path,
    *,
    check: bool = True,
    samples: Path | None = None,
    kept_samples: int = 0,
    report: Callable[[str], None] = logger.info,
) -> Path:
    """Build the archive ``NAME-VERSION.mar`` from a spec.

    Args:
        spec_path: the ensemble's YAML file; the files that it names lie in its folder.
        output: the folder for the archive, made if missing.
        check: load every member and run it once before anything is written. Without it the archive
            has no self-test, which a worker otherwise passes before it is ready.
        samples: a folder with images like those that the ensemble will receive. A member runs with
            another engine than torch only if its answers for these images stay the same.
        kept_samples: this many of the samples go into the archive, as probes of its self-test.
        report: called with what is being done, and with a table of the engines that were tried.

    Returns:
        Path of the archive.

    Raises:
        SpecError: the spec has a mistake.
        MemberError: a member cannot be loaded, or does not fit the spec.
        ArchiveError: the archive cannot be written, or this machine cannot compile members.
    """
    spec = load_spec(spec_path)
    images = [] if samples is None else sample_files(samples, "--samples")
    _check_kept_samples(kept_samples, len(images), check=check)
    self_test = None
    if check:
        with located_errors(spec_path):
            self_test = make_self_test(
                spec, spec_path.parent, samples=images[:kept_samples], report=report
            )
    with _compiled_files(spec, spec_path.parent, images, self_test, report) as compiled:
        contents = _contents(spec, spec_path, tuple(compiled))
        if self_test is not None:
            contents[SELF_TEST] = compact(self_test.to_json())
        contents |= {f"{ENSEMBLE}/{name}": path for name, path in compiled.items()}
        digests = _digests(contents)
        provenance = _provenance(spec, spec_path.parent, contents, digests, report)
        return _write_archive(spec, contents | provenance, digests | _digests(provenance), output)


def _check_kept_samples(kept: int, num_samples: int, *, check: bool) -> None:
    """Check that there are as many samples as the archive is to keep.

    Raises:
        ArchiveError: there are fewer, or nothing is checked.
    """
    if kept > num_samples:
        raise ArchiveError(
            f"--keep-samples {kept}: --samples has {num_samples} images; name a folder with more"
        )
    if kept and not check:
        raise ArchiveError("--keep-samples needs the members' answers: leave --no-check out")


@contextmanager
def _compiled_files(
    spec: EnsembleSpec,
    folder: Path,
    samples: Sequence[Path],
    self_test: SelfTest | None,
    report: Callable[[str], None],
) -> Iterator[dict[str, Path]]:
    """Make executables for another engine than torch, within a ``with`` block.

    Yields:
        Path of each file relative to the spec -> the file; it is removed when the block ends.
    """
    if spec.runtime.engine is Engine.TORCH:
        yield {}
        return
    # Imported only if it is needed, since torch's compiler takes seconds to import.
    from .compilation import compiled_members

    probes = {} if self_test is None else self_test.contents()
    with compiled_members(spec, folder, probes=probes, samples=samples, report=report) as files:
        yield files


def sample_files(folder: Path, option: str) -> list[Path]:
    """List the first files in a folder and in the folders below it, sorted by path.

    At most `_MAX_SAMPLE_FILES` files are listed.

    Args:
        folder: a folder with images like those that the ensemble will receive.
        option: the command line's option that names the folder, for the message.

    Raises:
        ArchiveError: the folder does not exist or has no files.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise ArchiveError(f"{option} {folder}: no folder with images in it")
    return files[:_MAX_SAMPLE_FILES]


def _digests(contents: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {
        name: sha256_of_file(content) if isinstance(content, Path) else sha256_of_bytes(content)
        for name, content in contents.items()
    }


def _provenance(
    spec: EnsembleSpec,
    folder: Path,
    contents: Mapping[str, bytes | Path],
    digests: Mapping[str, str],
    report: Callable[[str], None],
) -> dict[str, bytes | Path]:
    """Write the files that say where an archive comes from: bill of materials and model card."""
    for licence in unknown_licences(spec):
        report(
            f"the licence {licence!r} is no SPDX identifier or expression, so that the bill of "
            "materials has it as a name: https://spdx.org/licenses lists the identifiers"
        )
    needed = contents[REQUIREMENTS]
    assert isinstance(needed, bytes)
    materials = Materials(
        spec,
        digests={file: digests[f"{ENSEMBLE}/{file}"] for file in spec.files()},
        packages=package_versions(_BUILT_WITH, needed.decode()),
        revision=source_revision(folder, report),
        profile=profile_of(spec, folder),
    )
    return {
        BOM: bill_of_materials(materials).encode(),
        MODEL_CARD: model_card(materials).encode(),
    }


def _write_archive(
    spec: EnsembleSpec,
    contents: dict[str, bytes | Path],
    digests: Mapping[str, str],
    output: Path,
) -> Path:
    """Write an archive with a record of all its files, and return its path."""
    record = ArchiveRecord(
        files=digests,
        built_with={package: metadata.version(package) for package in _BUILT_WITH},
    )
    contents[RECORD] = record.to_json().encode()
    target = output / f"{spec.name}-{spec.version}.mar"
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_entries(contents, target)
    except OSError as error:
        raise ArchiveError(f"{target}: cannot be written: {error}") from error
    return target


def _contents(
    spec: EnsembleSpec, spec_path: Path, compiled: Collection[str]
) -> dict[str, bytes | Path]:
    """Collect the files of an archive, apart from the record and the executables.

    Returns:
        Path of each file in the archive -> its contents, or the file that holds them.
    """
    contents: dict[str, bytes | Path] = {
        SPEC: text_with_labels(spec_path, spec),
        ENTRY: _HANDLERS / "entry.py",
        MODEL_CONFIG: model_config(spec).encode(),
        REQUIREMENTS: requirements(spec, compiled).encode(),
        MANIFEST: manifest(spec).encode(),
    }
    contents |= {f"{ENSEMBLE}/{file}": spec_path.parent / file for file in spec.files()}
    contents |= {
        f"handlers/{path.relative_to(_HANDLERS).as_posix()}": path
        for path in _HANDLERS.rglob("*.py")
    }
    return contents


def write_entries(contents: Mapping[str, bytes | Path], target: Path) -> None:
    """Write the zip file of an archive.

    It is written beside the target and then moved, so that nobody can read half of an archive.

    Args:
        contents: path of each file in the archive -> its contents, or the file that holds them.
        target: path of the archive; an existing file is replaced.
    """
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                content = contents[name]
                data = content.read_bytes() if isinstance(content, Path) else content
                archive.writestr(zip_entry(name), data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
