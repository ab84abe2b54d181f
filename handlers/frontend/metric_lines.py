"""Reports what a worker has counted to TorchServe, once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..observability.catalogue import Kind
from ..observability.meter import Increment, Meter

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
"""Time between two reports. Prometheus reads the endpoint every 15 to 60 seconds."""

_SEPARATORS = str.maketrans(dict.fromkeys(",:|#\r\n\t", "_"))
"""Characters at which TorchServe's frontend would cut a line in pieces."""


class MetricReporter:
    """Writes the changes of a meter as lines of TorchServe's metrics API.

    The frontend reads these lines from the worker's output. A counter's line adds to the frontend's
    value, so that the values of all workers of a version add up, also after a worker has ended.
    """

    def __init__(
        self,
        metrics: Any,
        metric_types: Any,
        meter: Meter,
        model_labels: Mapping[str, str],
        collect: Callable[[], None],
    ) -> None:
        """Start the thread that reports; the first report is made at once.

        Args:
            metrics: ``metrics`` of TorchServe's context.
            metric_types: TorchServe's ``MetricTypes``.
            meter: what was counted.
            model_labels: labels of every metric.
            collect: brings the meter up to date.
        """
        self._metrics = metrics
        self._types = {Kind.COUNTER: metric_types.COUNTER, Kind.GAUGE: metric_types.GAUGE}
        self._meter = meter
        self._model_labels = dict(model_labels)
        self._collect = collect
        self._series: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._has_news = threading.Event()
        self.report()
        # The thread waits for news, and so it costs an idle worker nothing.
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def request(self) -> None:
        """Have everything reported that is counted by now, at most a second later."""
        if not self._has_news.is_set():
            self._has_news.set()

    def report(self) -> None:
        """Write what has changed since the last report."""
        # Without the lock a report of another thread could overtake a gauge.
        with self._lock:
            self._collect()
            for change in self._meter.take():
                self._write(change)

    def _write(self, change: Increment) -> None:
        labels = self._model_labels | change.labels
        series = self._series.get(change.name)
        if series is None:
            series = self._series[change.name] = self._metrics.add_metric_to_cache(
                metric_name=change.name,
                unit=change.unit,
                dimension_names=list(labels),
                metric_type=self._types[change.kind],
            )
        series.add_or_update(
            _number(change.value), [_label_value(value) for value in labels.values()]
        )

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._has_news.wait()
            pause.wait(_INTERVAL_SECONDS)
            self._has_news.clear()
            try:
                self.report()
            except Exception:
                logger.exception("metrics could not be reported")


def _label_value(text: str) -> str:
    """Return the value of a label without characters that would break its line."""
    return text.translate(_SEPARATORS) or "_"


def _number(value: float) -> float | int:
    """Return a number in a form that the frontend reads, which knows no ``e+`` and no ``nan``."""
    return int(value) if float(value).is_integer() else round(value, 9)
