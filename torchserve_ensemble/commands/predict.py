"""The verb ``predict``: against a running server, or in this process without Java."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import RequestError
from ..serving import image_sources
from .options import add_token_options
from .prediction_csv import Row, text_of, write_csv

if TYPE_CHECKING:
    from ..serving.client import InferenceClient

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``predict``."""
    command = subparsers.add_parser(
        "predict",
        help="predict images with a running server, or locally from a spec",
        description="Send images to POST /predictions/NAME[/VERSION] as forms, each image as a "
        "part named 'file'; or, with --local, run the same pipeline in this process without "
        "TorchServe.",
    )
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME IMAGE",
        help="model, then image files, folders, patterns, or - for standard input",
    )
    command.add_argument(
        "--local", type=Path, metavar="SPEC", help="no NAME: run this spec or archive here"
    )
    command.add_argument("--model-version", help="instead of the default version")
    command.add_argument(
        "--run-folder",
        type=Path,
        help="of the server that `serve` started here, for its address and token",
    )
    command.add_argument("--address", help="inference API of a server that `serve` did not start")
    add_token_options(command, "inference")
    command.add_argument("--transport", choices=["rest", "grpc"], default="rest")
    command.add_argument("--timeout", type=float, default=60, help="seconds for each request")
    command.add_argument("--per-request", type=int, default=32, help="images in one request")
    command.add_argument("--at-once", type=int, default=4, help="requests at the same time")
    command.add_argument("--policy", help="e.g. any, at_least(k=2)")
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of a request; `ts-ensemble describe` lists them; may be repeated",
    )
    command.add_argument("--on-error", choices=["fail", "skip"], help="unreadable images")
    command.add_argument("--top-k", type=int, help="also the k best labels")
    command.add_argument(
        "--format",
        choices=["table", "json", "lines", "csv"],
        default="table",
        help="lines: JSON, written as answers come; csv: a column for each member, written when "
        "all are there, with ' before text that a spreadsheet would take for a formula",
    )
    command.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    paths = image_sources.find(arguments.names[0 if arguments.local else 1 :])
    if not paths:
        raise RequestError("name at least one image: ts-ensemble predict NAME IMAGE...")
    options = _options(arguments)
    with ExitStack() as stack:
        if arguments.local:
            rows = _local(arguments, paths, options)
        else:
            client = stack.enter_context(_client(arguments))
            rows = _remote(client, arguments, paths, options)
        _write(arguments.format, _with_progress(stack, rows, len(paths)))
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    options = {
        name: str(value)
        for name in ("policy", "on_error", "top_k")
        if (value := getattr(arguments, name)) is not None
    }
    for option in arguments.option:
        name, separator, value = option.partition("=")
        if not separator:
            raise RequestError(f"--option {option}: write NAME=VALUE")
        options[name] = value
    return options


def _per_request(arguments: argparse.Namespace, paths: list[str], options: dict[str, str]) -> int:
    """A sequence must be one request; else the size that was asked for."""
    from ..serving.client import SEQUENCE_OPTIONS

    together = any(name in options for name in SEQUENCE_OPTIONS)
    return len(paths) if together else arguments.per_request


def _local(
    arguments: argparse.Namespace, paths: list[str], options: dict[str, str]
) -> Iterator[Row]:
    from ..ensemble import Ensemble
    from ..serving.client import with_names

    ensemble = Ensemble.load(arguments.local)
    size = _per_request(arguments, paths, options)
    images = image_sources.read(paths)
    while batch := list(itertools.islice(images, size)):
        predictions = ensemble.answer(batch, **options)["predictions"]
        yield from with_names(predictions, [name for name, _ in batch])


def _remote(
    client: InferenceClient,
    arguments: argparse.Namespace,
    paths: list[str],
    options: dict[str, str],
) -> Iterator[Row]:
    for prediction in client.predict_all(
        arguments.names[0],
        image_sources.read(paths),
        version=arguments.model_version,
        options=options,
        per_request=_per_request(arguments, paths, options),
        at_once=arguments.at_once,
    ):
        yield dict(prediction.raw)


def _client(arguments: argparse.Namespace) -> InferenceClient:
    from ..serving.finding import inference_client

    return inference_client(
        run_folder=arguments.run_folder,
        address=arguments.address,
        token=arguments.token,
        token_file=arguments.token_file,
        transport=arguments.transport,
        timeout=arguments.timeout,
    )


def _with_progress(stack: ExitStack, rows: Iterator[Row], total: int) -> Iterator[Row]:
    """Rows as they come; a bar on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    stack.enter_context(bar)
    return iter(bar.track(rows, total=total, description="predicting"))


def _write(form: str, rows: Iterator[Row]) -> None:
    """Lines are written as answers come; the other formats need all answers first."""
    match form:
        case "lines":
            for row in rows:
                print(json.dumps(row, ensure_ascii=False))
        case "csv":
            write_csv(rows, sys.stdout)
        case "json":
            json.dump(list(rows), sys.stdout, indent=2, ensure_ascii=False)
            print()
        case _:
            _print_table(list(rows))


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    members = list(dict.fromkeys(name for row in rows for name in row.get("members", {})))
    table = Table()
    for column in ("image", *members, "combined"):
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        if "error" in row:
            unknown = ["-"] * len(members)
            table.add_row(Text(row["sample"]), *unknown, Text(row["error"]["message"], "red"))
        else:
            answers = row.get("members", {})
            cells = [Text(_cell(answers[name]) if name in answers else "-") for name in members]
            table.add_row(Text(row.get("sample", "")), *cells, Text(_cell(row), "bold"))
    Console().print(table)


def _cell(answer: Row) -> str:
    text = text_of(answer)
    score = answer.get("score")
    return text if score is None else f"{text} {score:.3f}"
