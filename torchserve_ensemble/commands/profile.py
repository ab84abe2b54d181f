"""The verb ``profile``."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.frontier import Tried, best, frontier
from ..tuning.profile import choices, measure
from ..tuning.profile_report import print_frontier, write_report
from ..tuning.requirements import require_installed

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_STATUS_MISSED = 3
"""No settings keep to the latency bound."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``profile``."""
    command = subparsers.add_parser(
        "profile",
        help="measure batch size, delay, workers and threads, and choose for a latency bound",
        description="Build the ensemble, serve it with each combination of settings in turn, and "
        "measure images per second and latency with the images given. The exit status is "
        f"{EXIT_STATUS_MISSED} if no settings keep to the bound.",
    )
    command.add_argument("spec", type=Path, help="the ensemble's YAML file")
    command.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="like those that will be sent"
    )
    command.add_argument(
        "--latency-ms", type=float, default=250, help="bound of the p99 (default: 250)"
    )
    cores = os.cpu_count() or 1
    for name, default, what in (
        ("--workers", sorted({1, cores}), "processes, each with all members"),
        ("--batch-sizes", [1, 8, 32], "requests in a batch"),
        ("--delays-ms", [1, 10], "longest wait for a batch to fill"),
        ("--clients", [1, 8, 32], "that ask at the same time"),
    ):
        command.add_argument(
            name, type=_numbers, default=default, metavar="N,N", help=f"{what} (default: {default})"
        )
    command.add_argument(
        "--threads",
        type=_numbers,
        default=[None],
        metavar="N,N",
        help="of each worker (default: cores divided by workers, whatever the spec says)",
    )
    command.add_argument("--seconds", type=float, default=3, help="of each measurement")
    command.add_argument("--report", type=Path, metavar="FOLDER", help="profile.json, profile.svg")
    command.add_argument(
        "--write",
        action="store_true",
        help="write the choice into the spec: serving and runtime.threads",
    )
    command.set_defaults(run=_profile)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers from 1 on, as 1,8,32")
    return found


def _profile(arguments: argparse.Namespace) -> int:
    from ..archiver.build import sample_files
    from ..handlers.spec import load_spec

    spec = load_spec(arguments.spec)
    if arguments.write or arguments.report is not None:
        require_installed(("matplotlib", "ruamel.yaml"), "--write and --report need")
    images = [path.read_bytes() for path in sample_files(arguments.images, "--images")]
    asked = choices(
        arguments.workers, arguments.batch_sizes, arguments.delays_ms, arguments.threads
    )
    tried: list[Tried] = []
    for each in measure(
        arguments.spec,
        spec,
        asked,
        images,
        clients=arguments.clients,
        seconds=arguments.seconds,
        samples=arguments.images,
    ):
        tried.append(each)
        print(
            f"{each.choice}; {each.metrics.clients} client(s): "
            f"{each.metrics.images_per_second:.1f} images/s, p99 {each.metrics.p99_ms:.1f} ms",
            flush=True,
        )
    print_frontier(tried, arguments.latency_ms)
    chosen = best(tried, arguments.latency_ms)
    if arguments.report is not None:
        write_report(arguments.report, tried, chosen, arguments.latency_ms)
    if chosen is None:
        quickest = frontier(tried)[0]
        print(
            f"nothing keeps to {arguments.latency_ms:g} ms; the quickest takes "
            f"{quickest.metrics.p99_ms:.1f} ms: {quickest.choice}"
        )
        return EXIT_STATUS_MISSED
    print(f"best within {arguments.latency_ms:g} ms: {chosen.choice}")
    if arguments.write:
        from ..tuning.writing import write_serving

        choice = chosen.choice
        settings = asdict(choice)
        threads = settings.pop("threads")
        write_serving(arguments.spec, settings, threads)
        print(f"written to {arguments.spec}; build the archive again")
    return 0
