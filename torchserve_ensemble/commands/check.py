"""The verb ``check``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_inference_options, open_inference
from .printing import progress_bar, standard_output, with_progress

if TYPE_CHECKING:
    from ..ensemble import Ensemble
    from ..serving.client import Prediction
    from ..tuning.reference import Comparison

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_TOLERANCE = 1e-3
_MAX_PRINTED_IMAGES = 10


def add_command(subparsers: Subparsers) -> None:
    """Add ``check``."""
    command = subparsers.add_parser(
        "check",
        help="compare an ensemble's scores with those of your own inference code",
        description="Predict the images of a folder with an ensemble, and call your own function "
        "on the same files. Print how much the scores differ, and the images on which they differ "
        "most. The exit status is 1 if any decision differs, or any score by more than the "
        "tolerance. Without --served no server is needed: images are decoded and members run by "
        "the code that a worker runs.",
    )
    command.add_argument(
        "ensemble", type=Path, metavar="ENSEMBLE", help="a spec, or an archive (.mar)"
    )
    command.add_argument(
        "--reference",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="your function; it takes the path of an image, and returns a mapping from label to "
        "score, or one score for each label in the spec's order",
    )
    command.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="a folder of images"
    )
    command.add_argument(
        "--member", metavar="NAME", help="compare this member's scores, not the ensemble's"
    )
    command.add_argument(
        "--policy", help="policy that combines the members (default: the ensemble's default)"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=_DEFAULT_TOLERANCE,
        help="largest difference of a score that is not an error (default: %(default)s)",
    )
    command.add_argument(
        "--served",
        metavar="NAME",
        help="compare the answers of this model on a running server",
    )
    add_inference_options(command)
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from ..ensemble import Ensemble
    from ..serving import image_sources
    from ..tuning.reference import compare, load_reference

    ensemble = Ensemble.load(arguments.ensemble)
    images = [Path(path) for path in image_sources.find([str(arguments.data)])]
    reference = load_reference(arguments.reference, ensemble.score_labels)
    predictions = list(
        with_progress(_predictions(arguments, ensemble, images), "predicting", len(images))
    )
    with progress_bar(f"calling {arguments.reference}") as step:

        def counted_reference(image: Path) -> Mapping[str, float]:
            scores = reference(image)
            step(len(images))
            return scores

        comparison = compare(
            predictions, images, counted_reference, ensemble.task, member=arguments.member
        )
    _print(comparison, arguments.tolerance)
    agrees = comparison.num_same_decisions == len(comparison.differences)
    return 0 if agrees and comparison.largest <= arguments.tolerance else 1


def _predictions(
    arguments: argparse.Namespace, ensemble: Ensemble, images: Sequence[Path]
) -> Iterator[Prediction]:
    """Predict the images in this process, or with the served model that the user named."""
    options = {} if arguments.policy is None else {"policy": arguments.policy}
    if arguments.served is None:
        yield from ensemble.predict_each(images, include=["scores"], **options)
        return
    from ..serving import image_sources

    with open_inference(arguments) as client:
        contents = image_sources.read([str(path) for path in images])
        options |= {"include": "scores"}
        yield from client.predict_all(arguments.served, contents, options=options)


def _print(comparison: Comparison, tolerance: float) -> None:
    from rich.table import Table
    from rich.text import Text

    count = len(comparison.differences)
    print(
        f"{count} images: {comparison.num_same_decisions} with the same decision; scores differ "
        f"by at most {comparison.largest:.2g} (median {comparison.median:.2g}); the tolerance is "
        f"{tolerance:g}"
    )
    excessive = [each for each in comparison.differences if each.largest > tolerance]
    if not excessive:
        return
    table = Table("image", "label", "ensemble", "reference", "difference", "decision")
    for each in excessive[:_MAX_PRINTED_IMAGES]:
        table.add_row(
            Text(each.image, overflow="fold"),
            Text(each.label),
            f"{each.scores[each.label]:.6f}",
            f"{each.reference[each.label]:.6f}",
            f"{each.largest:.2g}",
            "same" if each.same_decision else Text("differs", "red"),
        )
    standard_output().print(table)
