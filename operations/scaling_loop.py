"""Measures the load of a version again and again, and scales it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import ServerError
from ..serving.changes import Changes
from ..serving.draining import DRAIN_SECONDS
from ..serving.finding import running_server
from ..serving.management import ModelVersion
from ..serving.run_folder import server_log
from ..serving.server import Server
from ..serving.worker_log import WorkerLog
from .autoscaling import Load, ScalingRules, decide
from .change_lock import change_lock
from .load_figures import Totals, read_totals

_MAX_LOADS = 100


@dataclass
class Autoscaler:
    """Scales one version between bounds.

    Attributes:
        run_folder: run folder of the server, which may be stopped and started meanwhile.
        name: name of the model.
        rules: when workers are added and removed.
        version: the version; None: the default version of the moment.
        dry_run: whether decisions are only reported.
        report: called with each decision and each problem; a problem that lasts is reported once.
        stopping: set when the process shall end; a change that has begun is finished.
        drain_timeout: seconds that workers have to answer their requests before they are ended.
    """

    run_folder: Path
    name: str
    rules: ScalingRules
    version: str | None = None
    dry_run: bool = False
    report: Callable[[str], object] = print
    stopping: threading.Event = field(default_factory=threading.Event)
    drain_timeout: float = DRAIN_SECONDS
    _loads: list[Load] = field(default_factory=list)
    _measured: str = ""
    _last_totals: Totals | None = None
    _last_change: float = -math.inf
    _last_problem: str = ""

    def run(self, interval: float) -> None:
        """Decide after every interval until `stopping` is set.

        Args:
            interval: seconds over which the load is measured.
        """
        while not self.stopping.is_set():
            try:
                self.step()
                self._last_problem = ""
            except ServerError as error:
                self._last_totals = None
                if error.message != self._last_problem:
                    self.report(error.message)
                self._last_problem = error.message
            self.stopping.wait(interval)

    def step(self) -> Load | None:
        """Measure the load since the last step, decide, and scale; the first step only measures.

        Returns:
            The load; None if there was no step before, or the version is another one now.

        Raises:
            ServerError: the server does not answer, or another process changes it.
        """
        server = running_server(self.run_folder)
        if server is None:
            raise ServerError(
                "`autoscale` works with a server that `ts-ensemble serve` started; name its folder "
                "(--run-folder)"
            )
        with server.management() as management:
            (version,) = management.describe(self.name, self.version)
            version = management.with_default_mark(version)
        totals = read_totals(server.metrics_address, version, server.token("inference"))
        measured = f"{server.pid} {version.version} {len(version.workers)}"
        before, self._last_totals = self._last_totals, totals
        if before is None or measured != self._measured or totals.requests < before.requests:
            self._measured = measured
            self._loads.clear()
            return None
        load = before.load_until(totals, version)
        self._loads = [*self._loads[-_MAX_LOADS:], load]
        decision = decide(self.rules, self._loads, totals.when - self._last_change)
        workers = f"{load.workers} worker{'' if load.workers == 1 else 's'}"
        action = "" if decision.workers == load.workers else f" -> {decision.workers}"
        self.report(
            f"{version.name} {version.version}: {workers}{action}: {load}: {decision.reason}"
        )
        if action and not self.dry_run:
            self._scale(server, version, decision.workers)
        return load

    def _scale(self, server: Server, version: ModelVersion, workers: int) -> None:
        with (
            change_lock(self.run_folder, f"ts-ensemble autoscale {self.name}"),
            server.management(timeout=600) as management,
        ):
            log = WorkerLog(server_log(self.run_folder))
            changes = Changes(management, log, self.drain_timeout)
            changes.scale(version.name, workers, version.version)
        self._last_totals = None
        self._last_change = time.monotonic()
