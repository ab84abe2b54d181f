"""Builds a model archive: members, handler, spec and settings in one `.mar` file.

The archive is a zip file that stock TorchServe loads. Its bytes depend on nothing but its contents
(`packing`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ..handlers.answers.encoding import compact
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
from .folder_archive import write_folder
from .labels_in_spec import text_with_labels
from .materials import Materials, package_versions, profile_of
from .metric_proof import ProofMaker
from .model_card import model_card
from .packing import as_stream, write_entries
from .self_test import make_self_test, with_proven_precision
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
    samples: Path | Sequence[Path] | None = None,
    kept_samples: int = 0,
    make_proof: ProofMaker | None = None,
    report: Callable[[str], None] = logger.info,
    as_folder: bool = False,
    on_bytes: Callable[[int, int], object] = lambda _written, _total: None,
) -> Path:
    """Build the archive ``NAME-VERSION.mar`` from a spec.

    Memory holds one large member at a time, and no file as a whole.

    Args:
        spec_path: the ensemble's YAML file; the files that it names lie in its folder.
        output: the folder for the archive, made if missing.
        check: load every member and run it once before anything is written. Without it the archive
            has no self-test, which a worker otherwise passes before it is ready.
        samples: a folder with images like those that the ensemble will receive, or the images. A
            member runs with another engine than torch only if its answers for these images stay
            the same.
        kept_samples: this many of the samples go into the archive, as probes of its self-test.
        make_proof: makes the proof, by labelled images, that lower precision decides as well.
        report: called with what is being done, and with a table of the engines that were tried.
        as_folder: write the folder ``NAME-VERSION`` instead of a file, for development. Its members
            run with torch, since files made for another engine would not follow edits.
        on_bytes: called while the archive is written, after each block, with the number of bytes
            in it and in the whole archive.

    Returns:
        Path of the archive.

    Raises:
        SpecError: the spec has a mistake.
        MemberError: a member cannot be loaded, or does not fit the spec.
        ArchiveError: the archive cannot be written, or this machine cannot compile members.
    """
    spec = load_spec(spec_path)
    images = sample_files(samples, "--samples") if isinstance(samples, Path) else samples or ()
    _check_kept_samples(kept_samples, len(images), check=check)
    self_test = None
    if check:
        with located_errors(spec_path):
            self_test = make_self_test(
                spec, spec_path.parent, samples=images[:kept_samples], report=report
            )
    with _compiled_files(
        spec, spec_path.parent, images, self_test, make_proof, report, skip=as_folder
    ) as compiled:
        contents = _contents(spec, spec_path, tuple(compiled))
        # The answers of a folder change with every edit.
        if self_test is not None and not as_folder:
            self_test = with_proven_precision(self_test, spec, spec_path.parent, compiled)
            contents[SELF_TEST] = compact(self_test.to_json())
        contents |= {f"{ENSEMBLE}/{name}": path for name, path in compiled.items()}
        digests = _digests(contents)
        provenance = _provenance(spec, spec_path.parent, contents, digests, report)
        return _write_archive(
            spec,
            contents | provenance,
            digests | _digests(provenance),
            output,
            as_folder,
            on_bytes,
        )


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
    make_proof: ProofMaker | None,
    report: Callable[[str], None],
    *,
    skip: bool,
) -> Iterator[dict[str, Path]]:
    """Make executables for another engine than torch, within a ``with`` block.

    Yields:
        Path of each file relative to the spec -> the file; it is removed when the block ends.
    """
    if skip or spec.runtime.engine is Engine.TORCH:
        yield {}
        return
    # Imported only if it is needed, since torch's compiler takes seconds to import.
    from .compilation import compiled_members

    probes = {} if self_test is None else self_test.contents()
    with compiled_members(
        spec, folder, probes=probes, samples=samples, make_proof=make_proof, report=report
    ) as files:
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
    as_folder: bool,
    on_bytes: Callable[[int, int], object],
) -> Path:
    """Write an archive with a record of all its files, and return its path."""
    record = ArchiveRecord(
        files=digests,
        built_with={package: metadata.version(package) for package in _BUILT_WITH},
    )
    contents[RECORD] = record.to_json().encode()
    total = sum(as_stream(content).num_bytes for content in contents.values())
    target = output / f"{spec.name}-{spec.version}{'' if as_folder else '.mar'}"
    write = write_folder if as_folder else write_entries
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(contents, target, on_bytes=lambda n: on_bytes(n, total))
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
