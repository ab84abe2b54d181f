"""Reads from a server how busy the workers of a version are."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import requests

from ..handlers.base.errors import ServerError
from ..handlers.observability.catalogue import BATCH_SECONDS
from ..serving.management import ModelVersion
from ..serving.monitoring.names import TORCHSERVE_QUEUE, TORCHSERVE_REQUESTS
from ..serving.sessions import open_session
from ..serving.transports import explain_failure
from .autoscaling import Load

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT_SECONDS = 10.0
_DEFAULT_VERSION = "default"
_BUSY_SECONDS = f"{BATCH_SECONDS.name}_sum"


@dataclass(frozen=True)
class Totals:
    """What a version has done since its server started.

    Attributes:
        when: time of the reading, in ``time.monotonic`` seconds.
        requests: number of requests that were answered.
        queue_seconds: time that requests waited in the queue, added up.
        busy_seconds: time that workers computed batches, added up.
    """

    when: float
    requests: float
    queue_seconds: float
    busy_seconds: float

    def load_until(self, later: Totals, version: ModelVersion) -> Load:
        """Return the load between two readings.

        Args:
            later: the later reading.
            version: description of the version at that time.
        """
        seconds = later.when - self.when
        requests = later.requests - self.requests
        waited = later.queue_seconds - self.queue_seconds
        num_workers = len(version.workers)
        busy = (later.busy_seconds - self.busy_seconds) / seconds
        if requests <= 0 and version.pending_requests:
            # Requests wait and none was answered: every worker has computed all the time.
            busy = float(num_workers)
        return Load(
            workers=num_workers,
            # A batch that began before the first reading counts in full at the second one.
            busy_workers=min(float(num_workers), max(0.0, busy)),
            queue_seconds=max(0.0, waited / requests) if requests > 0 else 0.0,
            pending_requests=version.pending_requests,
            requests_per_second=max(0.0, requests / seconds),
        )


def read_totals(metrics_address: str, version: ModelVersion, token: str | None) -> Totals:
    """Read the totals of a version from TorchServe's metrics endpoint.

    Args:
        metrics_address: URL of the metrics API.
        version: the version, marked if it is the default one.
        token: the inference token; None if the server asks for none.

    Raises:
        ServerError: the endpoint does not answer.
    """
    url = f"{metrics_address}/metrics"
    try:
        with open_session(metrics_address, token) as session:
            answer = session.get(url, timeout=_TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise explain_failure(url, error, _TIMEOUT_SECONDS) from error
    if answer.status_code != 200:
        raise ServerError(
            f"GET {url}: {answer.status_code}; `autoscale` needs the metrics endpoint, in the "
            "format of Prometheus (metrics_mode=prometheus)"
        )
    return totals_in(answer.text, version, time.monotonic())


def totals_in(text: str, version: ModelVersion, when: float) -> Totals:
    """Add up the series of one version in a text of Prometheus' format.

    Args:
        text: what the metrics endpoint answered.
        version: the version, marked if it is the default one.
        when: time of the answer, in ``time.monotonic`` seconds.
    """
    # TorchServe counts requests that name no version under this word in place of the number.
    versions = {version.version, *((_DEFAULT_VERSION,) if version.default else ())}
    sums = dict.fromkeys((TORCHSERVE_REQUESTS.name, TORCHSERVE_QUEUE.name, _BUSY_SECONDS), 0.0)
    for sample in _SAMPLE.finditer(text):
        if sample["name"] in sums:
            labels = dict(_LABEL.findall(sample["labels"]))
            if labels.get("model_name") == version.name and labels.get("model_version") in versions:
                sums[sample["name"]] += float(sample["value"])
    return Totals(
        when,
        sums[TORCHSERVE_REQUESTS.name],
        sums[TORCHSERVE_QUEUE.name] / 1e6,
        sums[_BUSY_SECONDS],
    )
