"""The verb ``check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tuning.reference import Comparison

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_TOLERANCE = 1e-3
_NUM_SHOWN = 10


def add_command(subparsers: Subparsers) -> None:
    """Add ``check``."""
    command = subparsers.add_parser(
        "check",
        help="compare an ensemble's scores with those of your own inference code",
        description="Predict the images of a folder with an ensemble, and call your own function "
        "on the same files. Prints how much the scores differ and the images that differ most. The "
        "exit status is 1 where a decision differs, or a score by more than the tolerance. Needs "
        "no server: the code that decodes, runs and combines is the one that a worker runs.",
    )
    command.add_argument("ensemble", type=Path, help="a spec, or an archive (.mar)")
    command.add_argument(
        "--reference",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="takes the path of an image; returns scores by label, or one for each label",
    )
    command.add_argument("--data", type=Path, required=True, help="a folder of images")
    command.add_argument("--member", help="compare one member instead of the combined scores")
    command.add_argument("--policy", help="instead of the default policy")
    command.add_argument(
        "--tolerance",
        type=float,
        default=_DEFAULT_TOLERANCE,
        help="the largest difference of a score that is accepted (default: %(default)s)",
    )
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from ..ensemble import Ensemble
    from ..serving import image_sources
    from ..tuning.reference import compare, load_reference

    ensemble = Ensemble.load(arguments.ensemble)
    images = [Path(path) for path in image_sources.find([str(arguments.data)])]
    reference = load_reference(arguments.reference, ensemble.score_labels)
    options = {} if arguments.policy is None else {"policy": arguments.policy}
    predictions = ensemble.predict(images, include=["scores"], **options)
    comparison = compare(predictions, images, reference, ensemble.task, member=arguments.member)
    _print(comparison, arguments.tolerance)
    agrees = comparison.num_same_decisions == len(comparison.differences)
    return 0 if agrees and comparison.largest <= arguments.tolerance else 1


def _print(comparison: Comparison, tolerance: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    count = len(comparison.differences)
    print(
        f"{count} images: {comparison.num_same_decisions} with the same decision; scores differ "
        f"by at most {comparison.largest:.2g} (median {comparison.median:.2g}); the tolerance is "
        f"{tolerance:g}"
    )
    shown = [each for each in comparison.differences if each.largest > tolerance][:_NUM_SHOWN]
    if not shown:
        return
    table = Table("image", "label", "ensemble", "reference", "difference", "decision")
    for each in shown:
        table.add_row(
            Text(each.image, overflow="fold"),
            Text(each.label),
            f"{each.scores[each.label]:.6f}",
            f"{each.reference[each.label]:.6f}",
            f"{each.largest:.2g}",
            "same" if each.same_decision else Text("differs", "red"),
        )
    Console().print(table)
