"""Writes one line of JSON for each request to the worker's output, if the server asks for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

VARIABLE = "TS_ENSEMBLE_REQUEST_LOG"
"""Environment variable of the server that switches the log on: ``json``."""


class RequestLog:
    """Writes the log of requests.

    The frontend copies each line of a worker's output into its log. `ts-ensemble serve` sorts these
    lines into a file of their own, ``logs/requests.jsonl``.
    """

    def __init__(self, model: Mapping[str, str | None]) -> None:
        """Keep what every line says.

        Args:
            model: name, version and archive digest of the ensemble.
        """
        self._model = dict(model)

    def write(
        self,
        *,
        request_id: str,
        traceparent: str,
        status: int,
        error: str,
        num_bytes: int,
        batch_requests: int,
        seconds: float,
    ) -> None:
        """Write the line of one request.

        Args:
            request_id: TorchServe's identifier, which the client finds in the header x-request-id.
            traceparent: that header of the request; empty if it has none.
            status: HTTP status of the answer.
            error: type of the error in the answer; empty if it is no refusal.
            num_bytes: length of the answer's body.
            batch_requests: number of requests of the batch.
            seconds: time from the batch's arrival in the worker to its answers.
        """
        parts = traceparent.split("-")
        line = {
            # The first key is the mark by which serving/log4j2.xml recognises these lines.
            "request_log": 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "trace_id": parts[1][:32] if len(parts) == 4 else None,
            "model": self._model,
            "status": status,
            "error": error or None,
            "answer_bytes": num_bytes,
            "batch_requests": batch_requests,
            "seconds": round(seconds, 6),
        }
        # One call of write, since the thread that reports metrics writes there too.
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def load_request_log(
    environment: Mapping[str, str], model: Mapping[str, str | None]
) -> RequestLog | None:
    """Make the log that the environment asks for; None if it asks for none.

    Raises:
        ValueError: the variable has another value than json or off.
    """
    value = environment.get(VARIABLE, "off")
    if value not in ("json", "off", ""):
        raise ValueError(f"{VARIABLE}={value}: write json, or leave the variable out")
    return RequestLog(model) if value == "json" else None
