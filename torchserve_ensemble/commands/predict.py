"""The verb ``predict``: with a running server, or in this process without Java."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..handlers.base.errors import RequestError
from ..serving import image_sources
from ..serving.sample_names import SEQUENCE_OPTIONS, in_batches, with_names
from .options import add_inference_options, open_inference
from .prediction_csv import Row, write_csv
from .printing import standard_output, with_progress

if TYPE_CHECKING:
    from ..serving.client import InferenceClient

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``predict``."""
    command = subparsers.add_parser(
        "predict",
        help="predict images with a running server, or locally from a spec",
        description="Send images to POST /predictions/NAME[/VERSION] as forms, each image as a "
        "part named 'file'. With --local, run the same pipeline in this process without "
        "TorchServe. Each prediction names its sample by the path of the image.",
    )
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME IMAGE",
        help="the model's name, then image files, folders, patterns, or - for standard input",
    )
    command.add_argument(
        "--local",
        type=Path,
        metavar="SPEC",
        help="run this spec or archive in this process; leave NAME out",
    )
    command.add_argument(
        "--model-version", metavar="VERSION", help="version of the model (default: its default)"
    )
    add_inference_options(command)
    command.add_argument(
        "--transport",
        choices=["rest", "grpc"],
        default="rest",
        help="protocol of the requests (default: %(default)s)",
    )
    command.add_argument(
        "--per-request",
        type=int,
        default=32,
        metavar="N",
        help="largest number of images in one request (default: %(default)s)",
    )
    command.add_argument(
        "--at-once",
        type=int,
        default=4,
        metavar="N",
        help="number of requests that are sent side by side (default: %(default)s)",
    )
    command.add_argument("--policy", help="combination policy, e.g. any or 'at_least(k=2)'")
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of a request; `ts-ensemble describe` lists them; may be repeated",
    )
    command.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        help="what an unreadable image does: fail refuses its whole request, skip gives the image "
        "alone an error (default: fail)",
    )
    command.add_argument(
        "--top-k", type=int, metavar="K", help="also give the k labels with the highest scores"
    )
    command.add_argument(
        "--format",
        choices=["table", "json", "lines", "csv"],
        default="table",
        help="lines: one JSON object for each image, written as soon as it is answered. csv: the "
        "values of the JSON in columns named like members.cnn.label, written after the last "
        "answer; a ' stands before text that a spreadsheet would run as a formula "
        "(default: %(default)s)",
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
            client = stack.enter_context(open_inference(arguments, transport=arguments.transport))
            rows = _remote(client, arguments, paths, options)
        # Lines on a terminal show by themselves how far the work is.
        visible = arguments.format != "lines" or not sys.stdout.isatty()
        shown = with_progress(rows, "predicting", len(paths), visible=visible)
        # Closing takes the bar away and cancels requests, also if nobody reads the output.
        stack.enter_context(closing(rows))
        stack.enter_context(closing(shown))
        _write(arguments.format, shown)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the options of every request."""
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
    """Return how many images one request may have; a sequence must be one request."""
    is_sequence = any(name in options for name in SEQUENCE_OPTIONS)
    return len(paths) if is_sequence else arguments.per_request


def _local(
    arguments: argparse.Namespace, paths: list[str], options: dict[str, str]
) -> Generator[Row, None, None]:
    from ..ensemble import Ensemble

    ensemble = Ensemble.load(arguments.local)
    batch_size = _per_request(arguments, paths, options)
    for batch in in_batches(image_sources.read(paths), batch_size, options):
        predictions = ensemble.answer(batch, **options)["predictions"]
        yield from with_names(predictions, [name for name, _ in batch])


def _remote(
    client: InferenceClient,
    arguments: argparse.Namespace,
    paths: list[str],
    options: dict[str, str],
) -> Generator[Row, None, None]:
    for prediction in client.predict_all(
        arguments.names[0],
        image_sources.read(paths),
        version=arguments.model_version,
        options=options,
        per_request=_per_request(arguments, paths, options),
        at_once=arguments.at_once,
    ):
        yield dict(prediction.raw)


def _write(output_format: str, rows: Iterator[Row]) -> None:
    """Print predictions: lines as soon as each is there, the other formats after the last one."""
    match output_format:
        case "lines":
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), flush=True)
        case "csv":
            write_csv(rows, sys.stdout)
        case "json":
            print(json.dumps(list(rows), indent=2, ensure_ascii=False))
        case _:
            _print_table(list(rows))


def _print_table(rows: list[Row]) -> None:
    """Print one line for each sample, with a column for each member and one for the ensemble."""
    from rich.table import Table
    from rich.text import Text

    members = list(dict.fromkeys(name for row in rows for name in row.get("members", {})))
    table = Table()
    for column in ("sample", *members, "combined"):
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        if "error" in row:
            no_answers = ["-"] * len(members)
            table.add_row(Text(row["sample"]), *no_answers, Text(row["error"]["message"], "red"))
        else:
            answers = row.get("members", {})
            cells = [Text(_cell(answers[name]) if name in answers else "-") for name in members]
            table.add_row(Text(row.get("sample", "")), *cells, Text(_cell(row), "bold"))
    standard_output().print(table)


def _cell(answer: Row) -> str:
    decision = _decision(answer)
    score = answer.get("score")
    return decision if score is None else f"{decision} {score:.3f}"


def _decision(answer: dict[str, Any]) -> str:
    """Return the labels or values of an answer; empty if the request asked for neither."""
    if "values" in answer:
        return ", ".join(f"{label} {value:.4g}" for label, value in answer["values"].items())
    if not answer.keys() & {"label", "labels"}:
        return ""
    return ", ".join(answer.get("labels", [])) or str(answer.get("label") or "none")
