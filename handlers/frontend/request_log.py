"""Writes lines of JSON about requests to the worker's output, if the server asks for them.

The frontend copies each line of a worker's output into its log. `ts-ensemble serve` sorts these
lines into files of their own: ``logs/requests.jsonl`` and ``logs/decisions.jsonl``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

VARIABLE = "TS_ENSEMBLE_REQUEST_LOG"
"""Environment variable of the server that switches the log on: ``json``."""

DECISIONS_VARIABLE = "TS_ENSEMBLE_DECISION_LOG"
"""Environment variable of the server that switches the log of decisions on: ``json``."""


class RequestLog:
    """Writes the log of requests: one line for each."""

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
        _write_line(line)


class DecisionLog:
    """Writes what the current ensemble and a shadow decided about each sample of a request."""

    def __init__(self, model: Mapping[str, str | None]) -> None:
        """Keep what every line says; `RequestLog` has the same argument."""
        self._model = dict(model)

    def write(
        self, request_id: str, decisions: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    ) -> None:
        """Write the line of one request.

        Args:
            request_id: TorchServe's identifier, which the client finds in the header x-request-id.
            decisions: name of a sample -> the labels of the answer and those of the candidate.
        """
        _write_line(
            {
                # The first key is the mark by which serving/log4j2.xml recognises these lines.
                "decision_log": 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "model": self._model,
                "decisions": [
                    {"sample": sample, "current": current, "candidate": candidate}
                    for sample, (current, candidate) in decisions.items()
                ],
            }
        )


def _write_line(content: object) -> None:
    # One call of write, since other threads write there too.
    sys.stdout.write(json.dumps(content, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def load_request_log(
    environment: Mapping[str, str], model: Mapping[str, str | None]
) -> RequestLog | None:
    """Make the log of requests that the environment asks for; None if it asks for none.

    Raises:
        ValueError: the variable has another value than json or off.
    """
    return RequestLog(model) if _is_on(environment, VARIABLE) else None


def load_decision_log(
    environment: Mapping[str, str], model: Mapping[str, str | None]
) -> DecisionLog | None:
    """Make the log of decisions that the environment asks for, as `load_request_log` does."""
    return DecisionLog(model) if _is_on(environment, DECISIONS_VARIABLE) else None


def _is_on(environment: Mapping[str, str], variable: str) -> bool:
    value = environment.get(variable, "off")
    if value not in ("json", "off", ""):
        raise ValueError(f"{variable}={value}: write json, or leave the variable out")
    return value == "json"
