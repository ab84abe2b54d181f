"""The verb ``tune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tuning.printing import print_tuning
from ..tuning.requirements import TUNING_MODULES, require_installed
from .options import DATA_HELP
from .printing import progress_bar

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``tune``."""
    tune = subparsers.add_parser(
        "tune",
        help="choose a policy and its operating point from labelled data",
        description="Run the members over labelled images and choose a policy by cross-validation "
        "on one part of them. On the other part, the held-out images, choose the threshold that "
        "guarantees the target for new images with the confidence, and write the policy into the "
        "spec with its guarantee, its metrics and the digest of the data. If the held-out images "
        "do not guarantee the target, nothing is written, and the exit status is 3. Needs no "
        "server.",
    )
    tune.add_argument("spec", type=Path, metavar="SPEC", help="the ensemble's YAML file")
    tune.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    tune.add_argument(
        "--target",
        required=True,
        help="what the operating point must reach: 'recall>=0.99', 'maximise f1', 'rmse<=2'",
    )
    tune.add_argument(
        "--name",
        default="tuned",
        help="name of the policy in the spec (default: %(default)s)",
    )
    tune.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write report.html and report.json there"
    )
    tune.add_argument(
        "--folds",
        type=int,
        default=5,
        help="number of parts in the cross-validation (default: %(default)s)",
    )
    tune.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the division into parts (default: %(default)s)",
    )
    tune.add_argument(
        "--no-calibration",
        action="store_true",
        help="keep the members' temperatures as they are in the spec",
    )
    tune.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help="probability with which the target is guaranteed (default: %(default)s)",
    )
    tune.add_argument(
        "--held-out",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the images that nothing is fitted on, and that the guarantee is computed "
        "from (default: %(default)s)",
    )
    tune.add_argument("--no-write", action="store_true", help="do not change the spec")
    tune.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    require_installed(TUNING_MODULES, "tuning needs")
    from ..handlers.spec import load_spec, located_errors
    from ..tuning.labelled_data import read_labelled
    from ..tuning.member_outputs import member_outputs
    from ..tuning.report import write_report
    from ..tuning.targets import parse_target
    from ..tuning.tune import split, tune
    from ..tuning.writing import side_effects, write_operating_point

    spec = load_spec(arguments.spec)
    target = parse_target(arguments.target, spec.task)
    data = read_labelled(arguments.data, spec)
    options: dict[str, Any] = {
        "confidence": arguments.confidence,
        "held_out_share": arguments.held_out,
        "folds": arguments.folds,
        "seed": arguments.seed,
    }
    # A target that the images cannot show is refused before the members run, which takes long.
    split(spec, data, target, **options)
    with located_errors(arguments.spec), progress_bar("running members") as on_image:
        outputs = member_outputs(spec, arguments.spec.parent, data, on_image=on_image)
    with progress_bar("measuring policies") as on_step:
        tuning = tune(
            spec,
            data,
            outputs,
            target,
            **options,
            calibrate=not arguments.no_calibration,
            on_step=on_step,
        )
    print_tuning(tuning)
    if arguments.report is not None:
        print(f"report: {write_report(tuning, arguments.report)}")
    if tuning.reached and not arguments.no_write:
        point, fitted = tuning.operating_point, tuning.fitted
        text = write_operating_point(
            arguments.spec,
            name=arguments.name,
            policy=point.text,
            fitted=fitted,
            metrics=point.held_out.values,
            data_name=f"held-out images of {data.name}",
            data_digest=data.digest,
            guarantee=None if point.guarantee is None else point.guarantee.statement(),
        )
        print(f"{arguments.spec}: policies.named.{arguments.name} is {text}")
        for effect in side_effects(spec, arguments.name, point.text, fitted):
            print(f"note: {effect}")
    return 0 if tuning.reached else 3
