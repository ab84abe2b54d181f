"""The verb ``autoscale``."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from .options import draining_options, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``autoscale``."""
    autoscale = subparsers.add_parser(
        "autoscale",
        help="add and remove workers of a model as its load changes",
        description="Read TorchServe's metrics endpoint (GET /metrics) and the model's queue after "
        "every interval, decide, and scale as `scale` does. Each decision is printed with its "
        "numbers. SIGTERM ends this after the change that is under way.",
        parents=[run_folder_option(), draining_options()],
    )
    autoscale.add_argument("name", metavar="NAME", help="name of the model")
    autoscale.add_argument(
        "--model-version", metavar="VERSION", help="version to scale (default: the default one)"
    )
    autoscale.add_argument("--min", type=int, default=1, help="smallest number of workers")
    autoscale.add_argument("--max", type=int, required=True, help="largest number of workers")
    for option, default, metavar, meaning in (
        ("--interval", 10.0, "SECONDS", "time over which the load is measured"),
        ("--max-queue-ms", 100.0, "MS", "mean wait in the queue above which a worker is added"),
        ("--high", 0.8, "SHARE", "utilisation above which a worker is added"),
        ("--low", 0.6, "SHARE", "a worker is removed if the others would be busy for less"),
        ("--cooldown", 60.0, "SECONDS", "time after a change in which no worker is removed"),
    ):
        autoscale.add_argument(
            option,
            type=float,
            default=default,
            metavar=metavar,
            help=f"{meaning} (default: %(default)g)",
        )
    autoscale.add_argument("--dry-run", action="store_true", help="only print the decisions")
    autoscale.set_defaults(run=_autoscale)


def _autoscale(arguments: argparse.Namespace) -> int:
    from ..operations.autoscaling import ScalingRules
    from ..operations.scaling_loop import Autoscaler
    from .deployments import server_of

    try:
        rules = ScalingRules(
            arguments.min,
            arguments.max,
            max_queue_seconds=arguments.max_queue_ms / 1000,
            high=arguments.high,
            low=arguments.low,
            cooldown_seconds=arguments.cooldown,
        )
    except ValueError as error:
        raise ServerError(str(error)) from None
    with server_of(arguments.run_folder).management() as management:
        # A name that is wrong is an error at once, and not a problem that may pass.
        management.describe(arguments.name, arguments.model_version)

    def report(line: str) -> None:
        print(line, flush=True)

    autoscaler = Autoscaler(
        arguments.run_folder,
        arguments.name,
        rules,
        arguments.model_version,
        arguments.dry_run,
        report,
        drain_timeout=arguments.drain_timeout,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: autoscaler.stopping.set())
    autoscaler.run(arguments.interval)
    return 0
