"""The verb ``serve``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from ..serving.run_folder import DEFAULT_RUN_FOLDER, server_log
from ..serving.server import Server
from ..serving.settings import ServerSettings, differences, effective, is_on, may_enable_model_api
from .options import run_folder_option
from .printing import print_versions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``serve``."""
    serve = subparsers.add_parser(
        "serve",
        help="start TorchServe and wait until its workers are ready",
        description="torchserve --start --ncs --model-store ... --ts-config ..., with a Java that "
        "is found, then waits until every worker is READY. A worker that dies while loading ends "
        "it with that worker's own traceback. Each archive is checked first, as `verify` does.",
        parents=[run_folder_option()],
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
    print_versions(versions)
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
