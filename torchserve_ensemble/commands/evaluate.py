"""The verb ``evaluate``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import SpecError
from ..tuning.printing import print_metrics
from ..tuning.requirements import TUNING_MODULES, require_installed
from .options import DATA_HELP, add_inference_options, open_inference
from .printing import progress_bar

if TYPE_CHECKING:
    from ..serving.server import Server
    from ..tuning.labelled_data import Answering

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``evaluate``."""
    evaluate = subparsers.add_parser(
        "evaluate",
        help="measure the answers of a running server on labelled images",
        description="Send labelled images to POST /predictions/NAME, and compute from the answers "
        "the metrics that `tune` prints: for the ensemble, and for each member.",
    )
    evaluate.add_argument("name", metavar="NAME", help="name of the model")
    evaluate.add_argument("--data", type=Path, required=True, help=DATA_HELP)
    evaluate.add_argument(
        "--spec",
        type=Path,
        help="the model's spec, which says its task and labels; needed with --address",
    )
    evaluate.add_argument(
        "--policy", help="policy that combines the members (default: the model's default)"
    )
    evaluate.add_argument(
        "--model-version", metavar="VERSION", help="version of the model (default: its default)"
    )
    add_inference_options(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the metrics as JSON")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    require_installed(TUNING_MODULES, "tuning needs")
    from ..serving.finding import running_server
    from ..serving.run_folder import DEFAULT_RUN_FOLDER
    from ..tuning.endpoint import evaluate_endpoint
    from ..tuning.labelled_data import read_labelled

    server = None
    if arguments.address is None:
        server = running_server(arguments.run_folder or DEFAULT_RUN_FOLDER)
    spec = _answering(arguments, server)
    data = read_labelled(arguments.data, spec)
    with open_inference(arguments) as client, progress_bar("predicting") as on_image:
        metrics = evaluate_endpoint(
            client,
            arguments.name,
            spec,
            data,
            policy=arguments.policy,
            version=arguments.model_version,
            on_image=on_image,
        )
    if arguments.json:
        values = {name: _without_nan(each.values) for name, each in metrics.items()}
        print(json.dumps(values, indent=2))
    else:
        policy = arguments.policy or "the default policy"
        title = f"{arguments.name} with {policy} on {data.name}, {len(data.paths)} images"
        print_metrics(metrics, title)
    return 0


def _answering(arguments: argparse.Namespace, server: Server | None) -> Answering:
    """Read task and labels from the spec, or ask the server for them."""
    from ..handlers.spec import load_spec
    from ..tuning.endpoint import Served

    if arguments.spec is not None:
        return load_spec(arguments.spec, check_files=False)
    if server is None:
        raise SpecError(
            "name the model's spec with --spec: only a server that `serve` started here tells the "
            "model's task and labels"
        )
    with server.management() as management:
        version = arguments.model_version
        (described,) = management.describe(arguments.name, version, customized=True)
    return Served.of(described.customized or {})


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON does not have, by None."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
