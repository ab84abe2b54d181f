"""The server verbs of the command line: each is thin, and --help names TorchServe's own call."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from .changes import Changes
from .draining import DRAIN_SECONDS, process_state
from .finding import management_client, plain_token, running_server
from .management import ManagementClient, ModelVersion, Worker
from .server import DEFAULT_RUN_FOLDER, Server, server_log
from .settings import (
    ServerSettings,
    differences,
    effective,
    is_loopback,
    is_on,
    may_enable_model_api,
)
from .tokens import TOKEN_VARIABLE
from .worker_log import WorkerLog

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(subparsers: Subparsers) -> None:
    """Add every verb that starts, stops or talks to a server."""
    _add_serve(subparsers)
    run = _parents()
    stop = subparsers.add_parser(
        "stop",
        help="stop the server that `serve` started",
        description="End TorchServe and its workers (as torchserve --stop, but waiting for them), "
        "once they have answered the requests that have arrived.",
        parents=[run, _draining()],
    )
    stop.set_defaults(run=_stop)
    status = subparsers.add_parser(
        "status",
        help="models, versions, workers and queues",
        description="GET /models and GET /models/NAME/all. TorchServe calls a worker READY for as "
        "long as it waits for it; of workers on this machine one that is stopped is shown.",
        parents=[run, _connection()],
    )
    status.set_defaults(run=_status)
    register = subparsers.add_parser(
        "register",
        help="register an archive and wait for its workers",
        description="RegisterModel of the gRPC management service (with --management: POST "
        "/models?url=ARCHIVE&synchronous=false), then GET /models/NAME/VERSION until its workers "
        "are READY. Workers that die while loading end it with their own traceback, and the "
        "version is unregistered again. The archive is checked first, as `verify` does, where the "
        "server was started by `serve`.",
        parents=[run, _connection()],
    )
    register.add_argument("archive", help="file name in the server's model store, or an URL")
    register.add_argument("--workers", type=int, default=1, help="if the archive does not say")
    register.set_defaults(run=_register)
    scale = _model_verb(
        subparsers,
        "scale",
        "change the number of workers",
        "PUT /models/NAME[/VERSION]?min_worker=N&max_worker=N, then GET until they are READY. "
        "Workers that are to end answer first what they compute; a new one that dies takes the "
        "change back.",
        _draining(),
    )
    scale.add_argument("workers", type=int, help="each holds a full copy of the ensemble")
    scale.add_argument("--model-version", help="default: the default version")
    scale.set_defaults(run=_scale)
    versions = _model_verb(
        subparsers, "versions", "the versions of a model", "GET /models/NAME/all."
    )
    versions.set_defaults(run=_versions)
    describe = _model_verb(
        subparsers,
        "describe",
        "members, labels and policies of a model",
        "GET /models/NAME?customized=true.",
    )
    describe.set_defaults(run=_describe)
    default = _model_verb(
        subparsers,
        "set-default",
        "choose the version that answers when a request names none",
        "PUT /models/NAME/VERSION/set-default, if one of its workers is READY.",
    )
    default.add_argument("--force", action="store_true", help="also without a worker")
    default.add_argument("model_version", metavar="VERSION")
    default.set_defaults(run=_set_default)
    unregister = _model_verb(
        subparsers,
        "unregister",
        "remove a version and its workers",
        "DELETE /models/NAME[/VERSION], once it has answered the requests that have arrived.",
        _draining(),
    )
    unregister.add_argument("model_version", metavar="VERSION", nargs="?")
    unregister.set_defaults(run=_unregister)
    _add_doctor(subparsers)


def _add_serve(subparsers: Subparsers) -> None:
    serve = subparsers.add_parser(
        "serve",
        help="start TorchServe and wait until its workers are ready",
        description="torchserve --start --ncs --model-store ... --ts-config ..., with a Java that "
        "is found, then waits until every worker is READY. A worker that dies while loading ends "
        "it with that worker's own traceback. Each archive is checked first, as `verify` does.",
        parents=[_parents()],
    )
    serve.add_argument("models", nargs="*", metavar="[NAME=]ARCHIVE", help="in the model store")
    serve.add_argument("--model-store", type=Path, default=Path("model_store"))
    serve.add_argument(
        "--config", type=Path, help="config.properties (default: the one in this folder, if any)"
    )
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting of config.properties, instead of the file's; may be repeated",
    )
    serve.add_argument("--timeout", type=float, default=180, help="seconds until READY")
    serve.set_defaults(run=_serve)
    token = subparsers.add_parser(
        "token",
        help="print a valid token of the running server, for other clients",
        description="Reads key_file.json of the server, and renews an expired token with GET "
        "/token?type=KIND. Where the token is printed others may read it: use it as in curl -H "
        '"Authorization: Bearer $(ts-ensemble token inference)".',
        parents=[_parents()],
    )
    token.add_argument("kind", choices=["inference", "management"])
    token.set_defaults(run=_token)


def _add_doctor(subparsers: Subparsers) -> None:
    doctor = subparsers.add_parser(
        "doctor",
        help="check the machine, the configuration, a spec and the running server",
        description="Checks against the known traps of TorchServe, and prints what to do.",
        parents=[_parents()],
    )
    doctor.add_argument("spec", type=Path, nargs="?", help="an ensemble's YAML file")
    doctor.add_argument("--config", type=Path, default=Path("config.properties"))
    doctor.set_defaults(run=_doctor)


def _parents() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--run-folder",
        type=Path,
        default=DEFAULT_RUN_FOLDER,
        help=f"the server's logs, tokens and state (default: {DEFAULT_RUN_FOLDER})",
    )
    return parent


def _connection() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--management", help="address of a server that `serve` did not start")
    add_token_options(parent, "management")
    return parent


def add_token_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add ``--token`` and ``--token-file``, for a server that `serve` did not start.

    Args:
        parser: of a verb.
        kind: the token that the verb needs, ``management`` or ``inference``.
    """
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        "--token", help=f"its {kind} token; `ps` shows arguments to everybody on this machine"
    )
    token.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"holds its {kind} token, or is its key_file.json "
        f"(default: the environment variable {TOKEN_VARIABLE})",
    )


def _draining() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--drain-timeout",
        type=float,
        default=DRAIN_SECONDS,
        metavar="SECONDS",
        help="to wait for requests that workers compute (default: %(default)g)",
    )
    parent.add_argument(
        "--force", action="store_true", help="then end them all the same, losing these requests"
    )
    return parent


def _model_verb(
    subparsers: Subparsers,
    name: str,
    summary: str,
    call: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(
        name, help=summary, description=call, parents=[_parents(), _connection(), *parents]
    )
    command.add_argument("name", metavar="NAME")
    return command


def _management(arguments: argparse.Namespace) -> ManagementClient:
    return management_client(
        run_folder=arguments.run_folder,
        address=arguments.management,
        token=arguments.token,
        token_file=arguments.token_file,
        timeout=600,
    )


def _serve(arguments: argparse.Namespace) -> int:
    overrides = {}
    for setting in arguments.set:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ServerError(f"--set {setting}: write KEY=VALUE")
        overrides[key] = value
    config = arguments.config
    if config is None and Path("config.properties").is_file():
        config = Path("config.properties")
    settings = ServerSettings(arguments.model_store, tuple(arguments.models), config, overrides)
    properties = effective(settings.properties())
    if may_enable_model_api(properties):
        # Registering is what the other verbs are for; here only the token's owner can.
        overrides.setdefault("enable_model_api", properties.get("enable_model_api", "true"))
    server = Server.start(settings, arguments.run_folder)
    try:
        versions = server.wait_ready(timeout=arguments.timeout)
    except BaseException:
        server.stop()
        raise
    _print_versions(versions)
    print(f"inference   {server.inference_address}")
    print(f"management  {server.management_address}")
    print(f"logs        {server_log(arguments.run_folder)}")
    for difference in differences(properties):
        print(f"setting     {difference}")
    name = versions[0].name if versions else "NAME"
    print("\nTry it:")
    named = arguments.run_folder is not DEFAULT_RUN_FOLDER
    folder = f" --run-folder {shlex.quote(str(arguments.run_folder))}" if named else ""
    print(f"  ts-ensemble predict {name} image.png{folder}")
    guarded = not is_on(properties, "disable_token_authorization")
    token = f' -H "Authorization: Bearer $(ts-ensemble token inference{folder})"' if guarded else ""
    print(f"  curl{token} {server.inference_address}/predictions/{name} -F file=@image.png")
    return 0


def _token(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder)
    token = plain_token(arguments.kind) if server is None else server.token(arguments.kind)
    if token is None:
        raise ServerError("token authorization is off: this server asks for no token")
    print(token)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    server = Server.attach(arguments.run_folder)
    if server is None:
        Server.remove_remains(arguments.run_folder)
        print(f"no server runs in {arguments.run_folder}")
        return 0
    server.stop(drain_timeout=arguments.drain_timeout, force=arguments.force)
    print(f"stopped {server.inference_address}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with _management(arguments) as management:
        print(f"management  {management.address}")
        _print_versions(management.all_versions(), here=is_loopback(management.address))
    return 0


def _register(arguments: argparse.Namespace) -> int:
    server = running_server(arguments.run_folder) if arguments.management is None else None
    if server is not None:
        _print_versions([server.register(arguments.archive, workers=arguments.workers)])
        return 0
    print(
        f"ts-ensemble: {arguments.archive} is not checked before TorchServe runs what is in it, "
        "since the server's model store is not known here: `ts-ensemble verify` checks the file",
        file=sys.stderr,
    )
    with _management(arguments) as management:
        submit = partial(management.register, arguments.archive, workers=arguments.workers)
        _print_versions([Changes(management).register(arguments.archive, submit)])
    return 0


@contextmanager
def _changes(arguments: argparse.Namespace) -> Iterator[Changes]:
    """What scales, switches and unregisters, with the server's log where it is at hand."""
    server = Server.attach(arguments.run_folder) if arguments.management is None else None
    with _management(arguments) as management:
        yield Changes(
            management,
            None if server is None else WorkerLog(server_log(arguments.run_folder)),
            getattr(arguments, "drain_timeout", DRAIN_SECONDS),
            arguments.force,
        )


def _scale(arguments: argparse.Namespace) -> int:
    with _changes(arguments) as changes:
        version = changes.scale(arguments.name, arguments.workers, arguments.model_version)
    _print_versions([version])
    return 0


def _versions(arguments: argparse.Namespace) -> int:
    with _management(arguments) as management:
        _print_versions(management.versions(arguments.name))
    return 0


def _describe(arguments: argparse.Namespace) -> int:
    with _management(arguments) as management:
        (version,) = management.describe(arguments.name, customized=True)
    print(json.dumps(version.customized, indent=2, ensure_ascii=False))
    return 0


def _set_default(arguments: argparse.Namespace) -> int:
    with _changes(arguments) as changes:
        print(changes.set_default(arguments.name, arguments.model_version))
    return 0


def _unregister(arguments: argparse.Namespace) -> int:
    with _changes(arguments) as changes:
        print(changes.unregister(arguments.name, arguments.model_version))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from .doctor import Level, diagnose

    findings = diagnose(
        config=arguments.config, spec=arguments.spec, run_folder=arguments.run_folder
    )
    console = Console(soft_wrap=True)
    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
    for finding in findings:
        level = Text(f"{finding.level:<8}", colours[finding.level])
        # Findings repeat keys and names of files, which may hold what rich takes for markup.
        console.print(level, Text(finding.what))
        if finding.remedy:
            console.print(Text(f"         -> {finding.remedy}"))
    return int(any(finding.level is Level.PROBLEM for finding in findings))


def _worker_state(worker: Worker, here: bool) -> str:
    hindrance = process_state(worker.pid) if here else ""
    return f"{worker.status} but {hindrance} (pid {worker.pid})" if hindrance else worker.status


def _print_versions(versions: list[ModelVersion], *, here: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("model", "version", "default", "archive", "batch", "queue", "workers"):
        table.add_column(column)
    for version in versions:
        statuses = [_worker_state(worker, here) for worker in version.workers]
        workers = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)) or "none"
        table.add_row(
            Text(version.name),
            Text(version.version),
            "yes" if version.default else "",
            Text(version.archive),
            f"{version.batch_size} in {version.max_batch_delay_ms} ms",
            f"{version.pending_requests}" + ("" if version.queue_capacity else " (full)"),
            Text(workers),
        )
    Console().print(table)
