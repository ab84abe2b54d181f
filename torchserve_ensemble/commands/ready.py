"""The verb ``ready``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.management import ManagementClient
from .options import management_options, open_management, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEADLINE_SECONDS = 3


def add_command(subparsers: Subparsers) -> None:
    """Add ``ready``."""
    ready = subparsers.add_parser(
        "ready",
        help="tell whether a model can answer now",
        description="Exit status 0 if enough workers are READY (GET /models/NAME) and one of them "
        "answers within the timeout (GET /models/NAME/VERSION?customized=true), else 1. "
        "TorchServe's /ping says Healthy with dead workers, and its management API READY of a "
        "worker that hangs.",
        parents=[run_folder_option(), management_options(timeout=_DEADLINE_SECONDS)],
    )
    ready.add_argument("name", metavar="NAME", help="name of the model")
    ready.add_argument(
        "--model-version", metavar="VERSION", help="version to check (default: the default one)"
    )
    ready.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="READY workers that are needed (default: all that the model is meant to have)",
    )
    ready.add_argument("--json", action="store_true", help="print the result as JSON")
    ready.add_argument(
        "--http",
        metavar="[ADDRESS:]PORT",
        help="go on checking, and answer GET /ready with 200 or 503, for load balancers and "
        "Kubernetes (default address: 127.0.0.1)",
    )
    ready.add_argument(
        "--interval",
        type=float,
        default=2,
        metavar="SECONDS",
        help="with --http: time between two checks (default: %(default)s)",
    )
    ready.set_defaults(run=_ready)


def _ready(arguments: argparse.Namespace) -> int:
    from ..serving.readiness import ReadinessCheck, ReadinessServer

    deadline: float = arguments.answer_timeout

    def open_client(timeout: float) -> ManagementClient:
        # The server may be started anew, and its token renewed, while this goes on.
        return open_management(argparse.Namespace(**vars(arguments) | {"answer_timeout": timeout}))

    check = ReadinessCheck(
        open_client,
        arguments.name,
        version=arguments.model_version,
        workers=arguments.workers,
        deadline=deadline,
    )
    if arguments.http is None:
        readiness = check.check()
        print(json.dumps(asdict(readiness)) if arguments.json else readiness)
        return 0 if readiness.ready else 1
    host, port = _address(arguments.http)
    with ReadinessServer(
        check, (host, port), interval=arguments.interval, deadline=deadline
    ) as server:
        # As the first process of a container Python would ignore SIGTERM without a handler.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"GET http://{host}:{server.server_port}/ready", flush=True)
        server.serve_forever()
    return 0


def _address(text: str) -> tuple[str, int]:
    """Read the value of ``--http``."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ServerError(f"--http {text}: write PORT or ADDRESS:PORT")
    return host or "127.0.0.1", int(port)
