"""Runs every check that applies, among them those of a spec and of a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...handlers.base.errors import EnsembleError, ServerError
from ...handlers.spec import load_spec
from ..run_folder import CONFIG_FILE, has_state, server_log
from ..server import Server
from .configuration import check_configuration
from .findings import Finding, Level
from .machine import check_machine


def diagnose(
    *, config: Path | None = None, spec: Path | None = None, run_folder: Path | None = None
) -> list[Finding]:
    """Run every check that applies.

    Args:
        config: a config.properties; a file that does not exist is skipped.
        spec: an ensemble's YAML file.
        run_folder: run folder of a server that `serve` started; nothing in it is removed.
    """
    findings = list(check_machine())
    if config is not None and config.is_file():
        findings += check_configuration(config)
    if spec is not None:
        findings += _check_spec(spec)
    if run_folder is not None:
        findings += _check_run_folder(run_folder)
    return findings


def _check_spec(path: Path) -> Iterator[Finding]:
    """Check that a spec is valid, and that its workers do not share cores."""
    try:
        spec = load_spec(path)
    except EnsembleError as error:
        for line in error.message.splitlines():
            yield Finding(Level.PROBLEM, line, "correct the spec")
        return
    yield Finding(Level.OK, f"{path}: {spec.name} {spec.version}, {len(spec.members)} members")
    num_cores = os.cpu_count() or 1
    if spec.serving.workers > num_cores:
        yield Finding(
            Level.WARNING,
            f"{path}: {spec.serving.workers} workers share {num_cores} cores",
            "lower serving.workers: members of one worker share memory, workers do not",
        )


def _check_run_folder(run_folder: Path) -> Iterator[Finding]:
    """Check the server of a run folder: it runs, it has died, or its state file is damaged."""
    try:
        server = Server.attach(run_folder)
    except ServerError as error:
        yield Finding(Level.PROBLEM, error.message, "see docs/operations.md, What runs")
        return
    if server is not None:
        yield from _check_server(server)
    elif has_state(run_folder):
        yield Finding(
            Level.WARNING,
            f"the server of {run_folder} has ended without `ts-ensemble stop`",
            f"the reason may be in {server_log(run_folder)}; `ts-ensemble stop` removes what the "
            "server left behind",
        )


def _check_server(server: Server) -> Iterator[Finding]:
    """Check the settings of a running server, and that all of its workers are READY."""
    try:
        with server.management(timeout=10) as management:
            versions = [v for name in management.models() for v in management.versions(name)]
    except ServerError as error:
        yield Finding(Level.PROBLEM, "the server does not answer", error.message)
        return
    yield from check_configuration(server.run_folder / CONFIG_FILE)
    for version in versions:
        num_ready = sum(worker.ready for worker in version.workers)
        what = (
            f"{version.name} {version.version}: {num_ready} of {version.min_workers} workers READY"
        )
        if version.ready:
            yield Finding(Level.OK, what)
        else:
            remedy = f"the reason is in {server_log(server.run_folder)}; /ping does not report it"
            yield Finding(Level.PROBLEM, what, remedy)
