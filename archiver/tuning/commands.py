"""The verbs ``tune`` and ``evaluate``."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...handlers.errors import SpecError

if TYPE_CHECKING:
    from .figures import Figures
    from .tuning import Tuning

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
    evaluate.add_argument("--spec", type=Path, required=True, help="for its task and labels")
    evaluate.add_argument("--policy", help="instead of the default one")
    evaluate.add_argument("--model-version", help="instead of the default version")
    evaluate.add_argument("--run-folder", type=Path, help="of the server that `serve` started")
    evaluate.add_argument("--address", help="of a server that `serve` did not start")
    evaluate.add_argument("--token", help="its inference token")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)


def _tune(arguments: argparse.Namespace) -> int:
    _check_installed()
    from ...handlers.spec import load_spec
    from .labelled_data import read_labelled
    from .member_outputs import member_outputs
    from .report import write_report
    from .targets import parse_target
    from .tuning import tune
    from .writing import write_operating_point

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
            on_step=on_step,
        )
    _print_tuning(found)
    if arguments.report is not None:
        print(f"report: {write_report(found, arguments.report)}")
    if found.reached and not arguments.no_write:
        write_operating_point(
            arguments.spec,
            name=arguments.name,
            policy=found.chosen.text,
            learned=found.learned,
            figures=found.chosen.out_of_fold.values,
            data_name=data.name,
            data_digest=data.digest,
        )
        print(f"{arguments.spec}: policies.named.{arguments.name} is {found.chosen.text}")
    return 0 if found.reached else 3


def _evaluate(arguments: argparse.Namespace) -> int:
    _check_installed()
    from ...handlers.spec import load_spec
    from ...serving.client import InferenceClient
    from ...serving.image_sources import read
    from ...serving.server import DEFAULT_RUN_FOLDER, Server
    from .labelled_data import read_labelled
    from .tuning import figures_of_predictions

    spec = load_spec(arguments.spec, check_files=False)
    data = read_labelled(arguments.data, spec)
    server = None
    if arguments.address is None:
        server = Server.attach(arguments.run_folder or DEFAULT_RUN_FOLDER)
    client = (
        server.client() if server else InferenceClient(arguments.address, token=arguments.token)
    )
    options = {"include": "scores"} | ({"policy": arguments.policy} if arguments.policy else {})
    with client, _bar("predicting") as on_image:
        predictions = []
        for prediction in client.predict_all(
            arguments.name,
            read([str(path) for path in data.paths]),
            version=arguments.model_version,
            options=options,
        ):
            predictions.append(prediction)
            on_image(len(data.paths))
    found = figures_of_predictions(spec, data, predictions)
    if arguments.json:
        print(json.dumps({name: dict(each.values) for name, each in found.items()}, indent=2))
    else:
        _print_figures(found, f"{arguments.name} on {data.name}, {len(predictions)} images")
    return 0


def _check_installed() -> None:
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SpecError(
                f"tuning needs '{name}': pip install 'torchserve-ensemble[tune]'"
            ) from error


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def step(total: int) -> None:
            progress.update(task, total=total, advance=1)

        yield step


def _print_tuning(found: Tuning) -> None:
    _print_figures(
        {each.text: each.out_of_fold for each in found.measured},
        f"{found.spec.name}, {found.target}: each at its best operating point, out of fold",
        mark=found.chosen.text,
    )
    values = dict(found.chosen.out_of_fold.values)
    if found.reached:
        print(f"chosen: {found.chosen.text}")
    else:
        missed = found.target.shortfall(values)
        print(
            f"no policy reaches {found.target} out of fold; {found.chosen.text} comes closest and "
            f"misses it by {missed:.4f}"
        )


def _print_figures(found: Mapping[str, Figures], title: str, mark: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    names = list(next(iter(found.values())).values)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row, each in found.items():
        cells = [f"{each.values[name]:.4f}" for name in names]
        table.add_row(row, *cells, style="bold green" if row == mark else None)
    Console().print(table)
