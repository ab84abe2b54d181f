"""The verb ``diff``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .printing import progress_bar, with_progress

if TYPE_CHECKING:
    from ..archiver.archive_differences import ArchiveDifferences
    from ..archiver.difference_sections import Section
    from ..serving.client import Prediction
    from ..tuning.decision_changes import DecisionChanges
    from ..tuning.labelled_data import LabelledData

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EQUAL, _DIFFERENT, _TROUBLE = 0, 1, 2
"""Exit statuses, which are those of the program diff."""

_MAX_LINES_OF_CODE = 200
_MAX_LINES = 20


def add_command(subparsers: Subparsers) -> None:
    """Add ``diff``."""
    diff = subparsers.add_parser(
        "diff",
        help="say what differs between two archives, and which decisions change",
        description="Compare two archives by what they mean: settings with their defaults, "
        "members, weights tensor by tensor, code, packages. With --data run both on the same "
        "images in this process, and list those whose decisions change. The exit status is that of "
        "the program diff: 0 if they are equal, 1 if they differ, 2 if an archive or an image "
        "cannot be used. Needs no server.",
    )
    diff.add_argument("before", type=Path, metavar="A.mar", help="the first archive")
    diff.add_argument("after", type=Path, metavar="B.mar", help="the second archive")
    diff.add_argument(
        "--data",
        type=Path,
        help="images whose decisions are compared: labelled ones as FOLDER/LABEL/image or a CSV "
        "file with the columns file and label; others as a folder of images or a CSV file with the "
        "column file",
    )
    diff.add_argument(
        "--unlabelled", action="store_true", help="the folders' names in --data are no labels"
    )
    diff.add_argument(
        "--policy", help="policy of both archives (default: the default policy of each)"
    )
    diff.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="for a regression, the largest change of a value that counts as none "
        "(default: %(default)s)",
    )
    diff.add_argument("--json", action="store_true", help="print everything as JSON")
    diff.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page with the pictures whose decisions change",
    )
    diff.set_defaults(run=_diff, error_status=_TROUBLE)


def _diff(arguments: argparse.Namespace) -> int:
    from ..archiver.archive_differences import compare_archives
    from ..handlers.base.errors import SpecError

    if not 0 <= arguments.tolerance < math.inf:
        raise SpecError(f"--tolerance {arguments.tolerance}: must be a number from 0 on")
    for option in ("unlabelled", "policy"):
        if getattr(arguments, option) and arguments.data is None:
            raise SpecError(f"--{option} says how to compare decisions: name images with --data")
    with progress_bar("comparing weights") as on_member:
        differences = compare_archives(arguments.before, arguments.after, on_member=on_member)
    decisions = None if arguments.data is None else _decisions(arguments, differences)
    if arguments.json:
        content = differences.to_json()
        content["decisions"] = None if decisions is None else decisions.to_json()
        print(json.dumps(content, indent=2, allow_nan=False))
    else:
        _print(differences, decisions)
    if arguments.html is not None:
        _write_page(arguments.html, differences, decisions)
    is_equal = differences.is_equal and not (decisions and decisions.changes)
    return _EQUAL if is_equal else _DIFFERENT


def _decisions(arguments: argparse.Namespace, differences: ArchiveDifferences) -> DecisionChanges:
    """Run both archives on the images, one archive after the other."""
    from ..handlers.base.errors import SpecError
    from ..tuning.decision_changes import Answers, decision_changes
    from ..tuning.labelled_data import read_labelled
    from ..tuning.requirements import require_installed
    from ..tuning.unlabelled_data import has_labels, unlabelled_images

    specs = differences.before.spec, differences.after.spec
    data: list[LabelledData | None] = [None, None]
    if not arguments.unlabelled and any(has_labels(arguments.data, spec) for spec in specs):
        require_installed(["scipy"], "comparing decisions with labels needs")
        for position, archive in enumerate((arguments.before, arguments.after)):
            try:
                data[position] = read_labelled(arguments.data, specs[position])
            except SpecError as error:
                raise SpecError(
                    f"{error} (of {archive}); --unlabelled takes the images without labels"
                ) from error
    paths = data[0].paths if data[0] is not None else unlabelled_images(arguments.data)
    before, after = (
        Answers(spec, _predictions(archive, paths, arguments.policy), labelled)
        for spec, archive, labelled in zip(
            specs, (arguments.before, arguments.after), data, strict=True
        )
    )
    name = arguments.data.resolve().name
    return decision_changes(before, after, paths, name, tolerance=arguments.tolerance)


def _predictions(archive: Path, paths: Sequence[Path], policy: str | None) -> list[Prediction]:
    from ..ensemble import Ensemble
    from ..handlers.base.archive_layout import SPEC
    from ..handlers.base.errors import RequestError

    options: dict[str, Any] = {"include": ["scores"], "on_error": "skip"}
    options |= {} if policy is None else {"policy": policy}
    ensemble = Ensemble.load(archive / SPEC if archive.is_dir() else archive)
    running = ensemble.predict_each(paths, **options)
    predictions = list(with_progress(running, f"running {archive.name}", len(paths)))
    if len(predictions) != len(paths):
        raise RequestError(
            f"{len(predictions)} predictions for {len(paths)} files: leave out files that hold "
            "several images (zip, tar, arrays, animations), or unpack them"
        )
    return predictions


def _write_page(
    target: Path, differences: ArchiveDifferences, decisions: DecisionChanges | None
) -> None:
    from ..handlers.base.errors import ArchiveError
    from ..tuning.difference_page import write_page

    try:
        write_page(differences, decisions, target)
    except OSError as error:
        raise ArchiveError(f"--html {target}: cannot be written: {error.strerror}") from error


def _print(differences: ArchiveDifferences, decisions: DecisionChanges | None) -> None:
    from ..archiver.difference_sections import archive_sections, identity_line
    from ..handlers.base.quoting import printable
    from ..tuning.decision_sections import decision_sections

    print(f"before: {printable(identity_line(differences.before))}")
    print(f"after:  {printable(identity_line(differences.after))}")
    sections = archive_sections(differences)
    if not sections:
        same = differences.before.record.digest == differences.after.record.digest
        print("equal, byte for byte" if same else "equal; only the text of the spec differs")
    for section in sections + ([] if decisions is None else decision_sections(decisions)):
        _print_section(section)


def _print_section(section: Section) -> None:
    from ..handlers.base.quoting import printable

    print(f"\n{printable(section.title)}")
    limit = _MAX_LINES_OF_CODE if section.is_code else _MAX_LINES
    for line in section.lines[:limit]:
        print(f"  {printable(line.expandtabs(4))}")
    num_hidden = len(section.lines) - limit
    if num_hidden > 0:
        print(f"  ... and {num_hidden} more; --json has all of them")
