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
from .options import DATA_HELP, add_token_options
from .printing import progress_bar

if TYPE_CHECKING:
    from ..serving.server import Server
    from ..tuning.labelled_data import Answering

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``evaluate``."""
    evaluate = subparsers.add_parser(
        "evaluate",
        help="measure a running endpoint on labelled data",
        description="Send labelled images to POST /predictions/NAME and compute the metrics of "
        "`tune` from the answers.",
    )
    evaluate.add_argument("name", metavar="NAME", help="the model")
    evaluate.add_argument("--data", type=Path, required=True, help=DATA_HELP)
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


def _evaluate(arguments: argparse.Namespace) -> int:
    require_installed(TUNING_MODULES, "tuning needs")
    from ..serving.finding import inference_client, running_server
    from ..serving.run_folder import DEFAULT_RUN_FOLDER
    from ..tuning.endpoint import evaluate_endpoint
    from ..tuning.labelled_data import read_labelled

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
    with client, progress_bar("predicting") as on_image:
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
        print_metrics(found, title)
    return 0


def _answering(arguments: argparse.Namespace, server: Server | None) -> Answering:
    """Task and labels: from the spec, or as the server describes the model."""
    from ..handlers.spec import load_spec
    from ..tuning.endpoint import Served

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
