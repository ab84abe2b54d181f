"""The verb ``predict``: against a running server, or in this process without Java."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .handlers.errors import RequestError

if TYPE_CHECKING:
    from .serving.client import InferenceClient

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``predict``."""
    command = subparsers.add_parser(
        "predict",
        help="predict images with a running server, or locally from a spec",
        description="Send images to POST /predictions/NAME[/VERSION] as one form, each as a part "
        "named 'file'; or, with --local, run the same pipeline in this process without TorchServe.",
    )
    command.add_argument("names", nargs="+", metavar="NAME IMAGE", help="model, then image files")
    command.add_argument("--local", type=Path, metavar="SPEC", help="no NAME: run this spec here")
    command.add_argument("--model-version", help="instead of the default version")
    command.add_argument(
        "--run-folder",
        type=Path,
        help="of the server that `serve` started here, for its address and token",
    )
    command.add_argument("--address", help="inference API of a server that `serve` did not start")
    command.add_argument("--token", help="its inference token, if it asks for one")
    command.add_argument("--timeout", type=float, default=60, help="seconds")
    command.add_argument("--policy", help="e.g. any, at_least(k=2)")
    command.add_argument("--on-error", choices=["fail", "skip"], help="unreadable images")
    command.add_argument("--top-k", type=int, help="also the k best labels")
    command.add_argument("--json", action="store_true", help="print the answer as it came")
    command.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    images = [Path(name) for name in arguments.names[0 if arguments.local else 1 :]]
    if not images:
        raise RequestError("name at least one image: ts-ensemble predict NAME IMAGE...")
    contents = [(image.name, _read(image)) for image in images]
    options = {
        name: str(value)
        for name in ("policy", "on_error", "top_k")
        if (value := getattr(arguments, name)) is not None
    }
    answer = (
        _local(arguments.local, contents, options)
        if arguments.local
        else _remote(arguments, contents, options)
    )
    if arguments.json:
        json.dump(answer, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        _print_table(answer, [name for name, _ in contents])
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error


def _local(
    spec_path: Path, contents: list[tuple[str, bytes]], options: dict[str, str]
) -> dict[str, Any]:
    from .handlers.requests import Part, RawRequest
    from .handlers.service import EnsembleService
    from .handlers.spec import load_spec

    service = EnsembleService.load(load_spec(spec_path), spec_path.parent)
    parts = [Part("file", "application/octet-stream", data) for _, data in contents]
    parts += [Part(name, "", value) for name, value in options.items()]
    (response,) = service.answer([RawRequest(parts)])
    content: dict[str, Any] = json.loads(response.body)
    if response.status != 200:
        raise RequestError(content["message"])
    return content


def _remote(
    arguments: argparse.Namespace, contents: list[tuple[str, bytes]], options: dict[str, str]
) -> dict[str, Any]:
    with _client(arguments) as client:
        return client.predict(
            arguments.names[0],
            contents,
            version=arguments.model_version,
            options=options,
        )


def _client(arguments: argparse.Namespace) -> InferenceClient:
    from .serving.client import DEFAULT_ADDRESS, InferenceClient
    from .serving.server import DEFAULT_RUN_FOLDER, Server

    if arguments.address is None:
        server = Server.attach(arguments.run_folder or DEFAULT_RUN_FOLDER)
        if server is not None:
            return server.client(timeout=arguments.timeout)
    return InferenceClient(
        arguments.address or DEFAULT_ADDRESS, token=arguments.token, timeout=arguments.timeout
    )


def _print_table(answer: dict[str, Any], names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    predictions = answer["predictions"]
    members = list(next((p["members"] for p in predictions if "members" in p), {}))
    model, policy = answer["model"], answer["policy"]
    table = Table(title=f"{model['name']} {model['version']}, policy {policy['name']}")
    for column in ("image", *members, "combined"):
        table.add_column(column)
    for name, prediction in zip(names, predictions, strict=True):
        if "error" in prediction:
            table.add_row(name, *["-"] * len(members), f"[red]{prediction['error']['message']}")
        else:
            cells = [_cell(prediction["members"][member]) for member in members]
            table.add_row(name, *cells, f"[bold]{_cell(prediction)}")
    Console().print(table)


def _cell(answer: dict[str, Any]) -> str:
    if "values" in answer:
        return ", ".join(f"{label} {value:.4g}" for label, value in answer["values"].items())
    text = ", ".join(answer["labels"]) or "none"
    return f"{text} {answer['score']:.3f}" if "score" in answer else text
