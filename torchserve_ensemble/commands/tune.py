"""The verb ``tune``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

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
        description="Run the members over labelled images, and choose for every policy the "
        "operating point that meets the target best. Each is measured by cross-validation, on "
        "images that it was not chosen on. The best one is written into the spec as a named "
        "policy, with its metrics and the digest of the data. If none reaches the target, nothing "
        "is written and the exit status is 3. No server is needed.",
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
        "--no-nested",
        action="store_true",
        help="do not repeat the choice itself by cross-validation; this takes longest, and tells "
        "what to expect on new images",
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
    from ..tuning.tune import tune
    from ..tuning.writing import side_effects, write_operating_point

    spec = load_spec(arguments.spec)
    target = parse_target(arguments.target, spec.task)
    data = read_labelled(arguments.data, spec)
    with located_errors(arguments.spec), progress_bar("running members") as on_image:
        outputs = member_outputs(spec, arguments.spec.parent, data, on_image=on_image)
    with progress_bar("measuring policies") as on_step:
        tuning = tune(
            spec,
            data,
            outputs,
            target,
            folds=arguments.folds,
            seed=arguments.seed,
            calibrate=not arguments.no_calibration,
            nested=not arguments.no_nested,
            on_step=on_step,
        )
    print_tuning(tuning)
    if arguments.report is not None:
        print(f"report: {write_report(tuning, arguments.report)}")
    if tuning.reached and not arguments.no_write:
        text = write_operating_point(
            arguments.spec,
            name=arguments.name,
            policy=tuning.chosen.text,
            learned=tuning.learned,
            metrics=tuning.chosen.out_of_fold.values,
            data_name=data.name,
            data_digest=data.digest,
            expected=tuning.expected.metrics.values if tuning.expected else None,
        )
        print(f"{arguments.spec}: policies.named.{arguments.name} is {text}")
        for effect in side_effects(spec, arguments.name, tuning.learned):
            print(f"note: {effect}")
    return 0 if tuning.reached else 3
