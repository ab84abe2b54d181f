"""The verb ``watch``."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.address import SCHEME, parse_address, registry_url
from .options import draining_options, registry_option, run_folder_option

if TYPE_CHECKING:
    from ..operations.listings import Listing
    from ..serving.server import Server

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_INTERVAL_SECONDS = 5


def add_command(subparsers: Subparsers) -> None:
    """Add ``watch``."""
    watch = subparsers.add_parser(
        "watch",
        help="serve the newest archives of a folder or a registry, as they appear",
        description="Look every few seconds, and bring the server to the newest versions as "
        "`apply` does; of each model found there the server keeps no others. An archive is taken "
        "up when it is complete and verified; one that cannot be served is reported once and "
        "skipped. SIGTERM ends this after the action that is under way.",
        parents=[run_folder_option(), registry_option(), draining_options()],
    )
    watch.add_argument(
        "store",
        nargs="?",
        metavar="STORE",
        help="folder of archives (default: the server's model store), or registry://NAME for the "
        "versions to which the tags of a model point, or registry://NAME:TAG for one tag",
    )
    selection = watch.add_mutually_exclusive_group()
    selection.add_argument(
        "--latest",
        type=int,
        default=1,
        metavar="N",
        help="how many of the newest versions to keep; the newest is the default one (default: 1)",
    )
    selection.add_argument(
        "--versions", nargs="+", default=[], metavar="VERSION", help="keep these versions"
    )
    watch.add_argument(
        "--interval",
        type=float,
        default=_INTERVAL_SECONDS,
        metavar="SECONDS",
        help="time between two looks (default: %(default)s)",
    )
    watch.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> int:
    from ..operations.desired import ArchiveFinder
    from ..operations.watching import Watch
    from .deployments import fetching, server_of

    server = server_of(arguments.run_folder)
    store = server.model_store

    def finder_of(server: Server) -> ArchiveFinder:
        fetch = fetching(arguments, server.model_store)
        return ArchiveFinder(server.model_store, store, fetch, server.trusted_keys())

    def report(line: str) -> None:
        print(line, flush=True)

    listing = _listing(arguments, server, report)
    watch = Watch(
        arguments.run_folder,
        listing,
        finder_of,
        max(1, arguments.latest),
        arguments.versions,
        report,
        drain_timeout=arguments.drain_timeout,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: watch.stopping.set())
    report(f"watching {arguments.store or store} every {arguments.interval:g} s")
    watch.run(arguments.interval)
    report("ended")
    return 0


def _listing(
    arguments: argparse.Namespace, server: Server, report: Callable[[str], object]
) -> Listing:
    from ..operations.listings import FolderListing, RegistryListing
    from ..registry.registry import Registry

    if arguments.store is not None and arguments.store.startswith(SCHEME):
        registry = Registry.open(registry_url(arguments.registry))
        return RegistryListing(registry, parse_address(arguments.store))
    folder = Path(arguments.store) if arguments.store else server.model_store
    return FolderListing(folder, server.trusted_keys(), report)
