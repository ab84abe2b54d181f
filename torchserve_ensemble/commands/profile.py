"""The verb ``profile``."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.frontier import MeasuredChoice, best, frontier
from ..tuning.profile import choices, measure
from ..tuning.profile_report import print_frontier, write_report
from ..tuning.requirements import require_installed
from .printing import reported_work

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_STATUS_TOO_SLOW = 3
"""Exit status if no settings answer within the latency bound."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``profile``."""
    command = subparsers.add_parser(
        "profile",
        help="find the batch size, delay, workers and threads that are fastest on this machine",
        description="Build the ensemble, serve it on free ports with each combination of the "
        "settings in turn, and send it images. Print images per second and latency of each "
        "combination, and the one with the most images per second whose p99 latency is within the "
        f"bound. The exit status is {EXIT_STATUS_TOO_SLOW} if no combination is.",
    )
    command.add_argument("spec", type=Path, metavar="SPEC", help="the ensemble's YAML file")
    command.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="images like those that clients will send",
    )
    command.add_argument(
        "--latency-ms",
        type=float,
        default=250,
        metavar="MS",
        help="latency that 99 of 100 requests must not exceed (default: %(default)s)",
    )
    cores = os.cpu_count() or 1
    for name, default, meaning in (
        ("--workers", sorted({1, cores}), "numbers of worker processes, each with all members"),
        ("--batch-sizes", [1, 8, 32], "largest numbers of requests in one batch"),
        ("--delays-ms", [1, 10], "longest times that a batch waits until it is full"),
        ("--clients", [1, 8, 32], "numbers of clients that send requests side by side"),
    ):
        shown = ",".join(map(str, default))
        command.add_argument(
            name,
            type=_numbers,
            default=default,
            metavar="N,N",
            help=f"{meaning} (default: {shown})",
        )
    command.add_argument(
        "--threads",
        type=_numbers,
        default=[None],
        metavar="N,N",
        help="numbers of threads of each worker (default: cores divided by workers; "
        "runtime.threads of the spec is not used)",
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=3,
        help="duration of each measurement (default: %(default)s)",
    )
    command.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write profile.json and profile.svg there"
    )
    command.add_argument(
        "--write",
        action="store_true",
        help="write the chosen settings into the spec (serving and runtime.threads)",
    )
    command.set_defaults(run=_profile)


def _numbers(text: str) -> list[int]:
    """Read an option's list of numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no list of numbers; write numbers from 1, separated by commas: 1,8,32"
        )
    return numbers


def _profile(arguments: argparse.Namespace) -> int:
    from ..archiver.build import sample_files
    from ..handlers.spec import load_spec

    spec = load_spec(arguments.spec)
    if arguments.write or arguments.report is not None:
        require_installed(("matplotlib", "ruamel.yaml"), "--write and --report need")
    images = [path.read_bytes() for path in sample_files(arguments.images, "--images")]
    combinations = choices(
        arguments.workers, arguments.batch_sizes, arguments.delays_ms, arguments.threads
    )
    num_measurements = len(combinations) * len(arguments.clients)
    tried: list[MeasuredChoice] = []
    # The first measurement is preceded by the build, which prints how members were compiled.
    with reported_work("measuring", num_measurements, at_once=False) as report:
        for each in measure(
            arguments.spec,
            spec,
            combinations,
            images,
            clients=arguments.clients,
            seconds=arguments.seconds,
            samples=arguments.images,
        ):
            tried.append(each)
            report(
                f"{each.choice}; {each.metrics.clients} client(s): "
                f"{each.metrics.images_per_second:.1f} images/s, p99 {each.metrics.p99_ms:.1f} ms"
            )
    print_frontier(tried, arguments.latency_ms)
    chosen = best(tried, arguments.latency_ms)
    if arguments.report is not None:
        write_report(arguments.report, tried, chosen, arguments.latency_ms)
    if chosen is None:
        fastest = frontier(tried)[0]
        print(
            f"no settings have a p99 latency within {arguments.latency_ms:g} ms; the lowest is "
            f"{fastest.metrics.p99_ms:.1f} ms: {fastest.choice}"
        )
        return EXIT_STATUS_TOO_SLOW
    print(f"most images/s with a p99 latency within {arguments.latency_ms:g} ms: {chosen.choice}")
    if arguments.write:
        from ..tuning.writing import write_serving

        choice = chosen.choice
        settings = asdict(choice)
        threads = settings.pop("threads")
        write_serving(arguments.spec, settings, threads)
        print(f"{arguments.spec}: these settings are written; build the archive again")
    return 0
