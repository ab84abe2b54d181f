"""Opens the server and the archives that a deployment's verbs work with."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..handlers.base.errors import ServerError
from ..operations.deployment_file import load_deployment
from ..operations.desired import ArchiveFinder, desired_state
from ..operations.plan import DesiredState
from ..serving.finding import running_server
from ..serving.server import Server
from .pulled import local_archive


def server_of(run_folder: Path) -> Server:
    """Find the server that `serve` started in a run folder.

    Raises:
        ServerError: there is none.
    """
    server = running_server(run_folder)
    if server is None:
        raise ServerError(
            "a plain `torchserve --start` runs here, and only a server that `ts-ensemble serve` "
            "started tells where its archives are and which process changes it"
        )
    return server


@contextlib.contextmanager
def desired_by_file(
    arguments: argparse.Namespace, path: Path, server: Server, *, keep: bool
) -> Iterator[DesiredState]:
    """Read a deployment and find its archives.

    Args:
        arguments: values of the verb's options.
        path: the deployment's YAML file.
        server: the server.
        keep: whether archives of a registry are fetched into the server's model store, or only for
            the time of this context.
    """
    deployment = load_deployment(path)
    model_store = server.model_store
    with tempfile.TemporaryDirectory(prefix="ts-ensemble-") as temporary:
        folder = model_store if keep else Path(temporary)
        finder = ArchiveFinder(
            model_store, path.parent, fetching(arguments, folder), server.trusted_keys()
        )
        yield desired_state(deployment, finder, str(path))


def fetching(arguments: argparse.Namespace, folder: Path) -> Callable[[str], Path]:
    """Return what fetches archives of a registry.

    Args:
        arguments: values of the verb's options.
        folder: folder that they are fetched into.
    """

    def fetch(address: str) -> Path:
        # Standard output is for what the verb itself prints, which may be JSON.
        with contextlib.redirect_stdout(sys.stderr):
            return folder / local_archive(address, folder, arguments.registry)

    return fetch
