"""The verb ``apply``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import draining_options, registry_option, run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``apply``."""
    apply = subparsers.add_parser(
        "apply",
        help="bring a running server to the state that a deployment.yaml describes",
        description="Register, scale, switch and unregister versions until the server has those "
        "of the file, by the calls of `register`, `scale`, `set-default` and `unregister`, and in "
        "an order that loses no request. Nothing is done if the server is as desired. An apply "
        "that was interrupted is continued by the next one. The server is one that `serve` "
        "started on this machine; only one process at a time can apply to it.",
        parents=[run_folder_option(), registry_option(), draining_options()],
    )
    apply.add_argument("deployment", type=Path, metavar="FILE", help="deployment.yaml")
    apply.add_argument(
        "--dry-run", action="store_true", help="print the actions with their reasons, do nothing"
    )
    apply.add_argument(
        "--exit-code",
        action="store_true",
        help="with --dry-run: exit with 0 if there is nothing to do, 1 if there is, 2 at an error",
    )
    apply.set_defaults(run=_apply)


def _apply(arguments: argparse.Namespace) -> int:
    from ..operations.change_lock import change_lock
    from ..operations.plan import Action, plan
    from ..operations.reconciling import Reconciliation
    from .deployments import desired_by_file, server_of

    if arguments.exit_code:
        arguments.error_status = 2
    server = server_of(arguments.run_folder)
    path = arguments.deployment
    if arguments.dry_run:
        with desired_by_file(arguments, path, server, keep=False) as desired:
            actions = plan(desired, Reconciliation(server).state())
        for number, action in enumerate(actions, 1):
            print(f"{number}. {action}")
        if not actions:
            print(f"nothing to do: the server is as {path} describes")
        return 1 if actions and arguments.exit_code else 0

    def report(action: Action) -> None:
        print(action, flush=True)

    with (
        change_lock(arguments.run_folder, f"ts-ensemble apply {path}"),
        desired_by_file(arguments, path, server, keep=True) as desired,
    ):
        reconciliation = Reconciliation(server, arguments.drain_timeout, arguments.force, report)
        count = reconciliation.run(desired)
    print(f"{count or 'no'} action{'' if count == 1 else 's'}: the server is as {path} describes")
    return 0
