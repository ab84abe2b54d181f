"""The verbs ``tune`` and ``evaluate``."""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import SpecError
from ..serving.commands import add_token_options
from .printing import print_figures, print_tuning

if TYPE_CHECKING:
    from ..serving.server import Server
    from .labelled_data import Answering

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_NEEDED = ("sklearn", "scipy", "matplotlib", "ruamel.yaml")
_DATA_HELP = "FOLDER/LABEL/image, or a CSV file with the columns file and label"


def add_commands(subparsers: Subparsers) -> None:
    """Add both verbs."""
    tune = subparsers.add_parser(
        "tune",
        help="choose a policy and its operating point from labelled data",
        description="Run the members over labelled images, measure every policy out of fold at the "
        "operating point that serves the target best, and write the best one into the spec as a "
        "named policy, with its figures and the digest of the data. Where none reaches the target "
        "nothing is written, and the exit status is 3. Needs no server.",
    )
    tune.add_argument("spec", type=Path, help="the ensemble's YAML file")
    tune.add_argument("--data", type=Path, required=True, help=_DATA_HELP)
    tune.add_argument(
        "--target", required=True, help="e.g. 'recall>=0.99', 'maximise f1', 'rmse<=2'"
    )
    tune.add_argument("--name", default="tuned", help="of the policy in the spec")
    tune.add_argument("--report", type=Path, help="folder for report.html and report.json")
    tune.add_argument("--folds", type=int, default=5)
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--no-calibration", action="store_true", help="leave temperatures alone")
    tune.add_argument(
        "--no-nested",
        action="store_true",
        help="do not measure what the choice itself gives on new images, which takes longest",
    )
    tune.add_argument("--no-write", action="store_true", help="leave the spec alone")
    tune.set_defaults(run=_tune)
    evaluate = subparsers.add_parser(
        "evaluate",
        help="measure a running endpoint on labelled data",
        description="Send labelled images to POST /predictions/NAME and compute the figures of "
        "`tune` from the answers.",
    )
    evaluate.add_argument("name", metavar="NAME", help="the model")
    evaluate.add_argument("--data", type=Path, required=True, help=_DATA_HELP)
    evaluate.add_argument(
        "--spec", type=Path, help="for its task and labels, of a server that `serve` did not start"
    )
    evaluate.add_argument("--policy", help="instead of the default one")
    evaluate.add_argument("--model-version", help="instead of the default version")
    evaluate.add_argument("--run-folder", type=Path, help="of the server that `serve` started")
    evaluate.add_argument("--address", help="of a server that `serve` did not start")
    add_token_options(evaluate, "inference")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)


def _tune(arguments: argparse.Namespace) -> int:
    require_installed(_NEEDED, "tuning needs")
    from ..handlers.spec import load_spec
    from .labelled_data import read_labelled
    from .member_outputs import member_outputs
    from .report import write_report
    from .targets import parse_target
    from .tune import tune
    from .writing import side_effects, write_operating_point

    spec = load_spec(arguments.spec)
    target = parse_target(arguments.target, spec.task)
    data = read_labelled(arguments.data, spec)
    with _bar("running members") as on_image:
        outputs = member_outputs(spec, arguments.spec.parent, data, on_image=on_image)
    with _bar("measuring policies") as on_step:
        found = tune(
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
    print_tuning(found)
    if arguments.report is not None:
        print(f"report: {write_report(found, arguments.report)}")
    if found.reached and not arguments.no_write:
        text = write_operating_point(
            arguments.spec,
            name=arguments.name,
            policy=found.chosen.text,
            learned=found.learned,
            figures=found.chosen.out_of_fold.values,
            data_name=data.name,
            data_digest=data.digest,
            expected=found.expected.figures.values if found.expected else None,
        )
        print(f"{arguments.spec}: policies.named.{arguments.name} is {text}")
        for effect in side_effects(spec, arguments.name, found.learned):
            print(f"note: {effect}")
    return 0 if found.reached else 3


def _evaluate(arguments: argparse.Namespace) -> int:
    require_installed(_NEEDED, "tuning needs")
    from ..serving.finding import inference_client, running_server
    from ..serving.server import DEFAULT_RUN_FOLDER
    from .endpoint import evaluate_endpoint
    from .labelled_data import read_labelled

    server = None
    if arguments.address is None:
        server = running_server(arguments.run_folder or DEFAULT_RUN_FOLDER)
    spec = _answering(arguments, server)
    data = read_labelled(arguments.data, spec)
    client = inference_client(
        run_folder=arguments.run_folder,
        address=arguments.address,
        token=arguments.token,
        token_file=arguments.token_file,
    )
    with client, _bar("predicting") as on_image:
        found = evaluate_endpoint(
            client,
            arguments.name,
            spec,
            data,
            policy=arguments.policy,
            version=arguments.model_version,
            on_image=on_image,
        )
    if arguments.json:
        values = {name: _defined(each.values) for name, each in found.items()}
        print(json.dumps(values, indent=2))
    else:
        policy = arguments.policy or "the default policy"
        title = f"{arguments.name} with {policy} on {data.name}, {len(data.paths)} images"
        print_figures(found, title)
    return 0


def _answering(arguments: argparse.Namespace, server: Server | None) -> Answering:
    """Task and labels: from the spec, or as the server describes the model."""
    from ..handlers.spec import load_spec
    from .endpoint import Served

    if arguments.spec is not None:
        return load_spec(arguments.spec, check_files=False)
    if server is None:
        raise SpecError("no server of `serve` is asked: name the model's spec with --spec")
    with server.management() as management:
        version = arguments.model_version
        (described,) = management.describe(arguments.name, version, customized=True)
    return Served.of(described.customized or {})


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def require_installed(modules: Sequence[str], who: str) -> None:
    """Name the module of the extra ``tune`` that is missing.

    Args:
        modules: that are needed.
        who: what needs them, with its verb.

    Raises:
        SpecError: one is not installed.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SpecError(f"{who} '{name}': pip install 'torchserve-ensemble[tune]'") from error


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def step(total: int) -> None:
            progress.update(task, total=total, advance=1)

        yield step
