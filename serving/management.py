"""TorchServe's management API: register, scale, describe, set the default, unregister."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import requests

from ..handlers.base.errors import ServerError
from .sessions import open_session
from .transports import NoAnswerError, no_server

REMEDIES = {
    400: "check the parameter, the archive's path and the token",
    401: "pass the management token (key_file.json in the server's working folder)",
    403: "make another version the default first (set-default)",
    404: "see `ts-ensemble versions` for what is registered",
    405: "model control is off: start with --enable-model-api, or enable_model_api=true",
    408: "the workers did not stop in time; try again",
    409: "this version is registered already: raise the version in the spec, or unregister it",
    500: "the workers failed and the registration was rolled back; see the server's model log",
    503: "the queue is full, or no worker is ready; `ts-ensemble status` shows which",
    507: "a worker was ended: out of memory (fewer workers, smaller members), or killed by hand",
}
"""What to do about each status that the management API answers."""

NOT_EXTRACTED = "Failed to save model"
"""What TorchServe says, without a reason, of an archive that it could not extract."""

DAMAGED_OR_FULL = "the archive is truncated or damaged, or the server's disk is or was full"
"""The reasons for it."""


@dataclass(frozen=True)
class Worker:
    """One worker process, as the management API sees it."""

    id: str
    status: str
    pid: int
    gpu: bool
    memory_bytes: int

    @property
    def ready(self) -> bool:
        """Whether it has loaded its model."""
        return self.status == "READY"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model.

    `default` is known from `ManagementClient.versions` and from `describe` without a version.

    Attributes:
        workers: in the order in which they were started; scaling down ends the last ones.
        pending_requests: requests in the queue, without those that workers compute.
        queue_capacity: further requests that the queue would take.
        response_timeout: seconds after which TorchServe gives up a worker that computes.
        startup_timeout: seconds after which TorchServe gives up a worker that loads.
    """

    name: str
    version: str
    archive: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    default: bool
    workers: tuple[Worker, ...]
    pending_requests: int = 0
    queue_capacity: int = 0
    response_timeout: int = 120
    startup_timeout: int = 120
    customized: Mapping[str, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether as many workers as were asked for have loaded."""
        return sum(worker.ready for worker in self.workers) >= self.min_workers

    def why_not_taken(self) -> str:
        """Why a request was just answered 503, of which TorchServe always says "no worker"."""
        if not self.workers:
            return f"{self.name} {self.version} has no worker: `ts-ensemble scale {self.name} 1`"
        return (
            f"the queue of {self.name} {self.version} was full; {self.pending_requests} requests "
            "wait in it now: send fewer at once, add workers, or raise job_queue_size"
        )


class ManagementClient:
    """Typed calls of the management API. Every call has a timeout.

    Args:
        address: e.g. ``http://127.0.0.1:8081``.
        token: the management key, where token authorization is on.
        timeout: seconds for each call.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout: float = 60) -> None:
        self.address = address.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._session = open_session(address, token)

    def __enter__(self) -> ManagementClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def another(self) -> ManagementClient:
        """A client of the same server with a connection of its own, for another thread."""
        return ManagementClient(self.address, token=self._token, timeout=self._timeout)

    def models(self) -> list[str]:
        """Names of all registered models."""
        names: list[str] = []
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = self._call("GET", "/models", query)
            names += [entry["modelName"] for entry in page["models"]]
            if "nextPageToken" not in page:
                return names
            query["next_page_token"] = page["nextPageToken"]

    def register(
        self,
        archive: str,
        *,
        workers: int = 0,
        synchronous: bool = False,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
    ) -> str:
        """``POST /models?url=ARCHIVE``; name and version come from the archive.

        Args:
            archive: file name in the server's model store, or an URL that it may load.
            workers: workers to start at once; 0 registers only.
            synchronous: wait until they are up. TorchServe waits in an event loop which other
                clients' connections share, so that these wait too.
            batch_size: instead of the archive's own.
            max_batch_delay_ms: instead of the archive's own.

        Returns:
            TorchServe's status message.
        """
        query: dict[str, Any] = {
            "url": archive,
            "initial_workers": workers,
            "synchronous": _flag(synchronous),
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay_ms,
        }
        return str(self._call("POST", "/models", query)["status"])

    def scale(
        self, name: str, workers: int, *, version: str | None = None, synchronous: bool = False
    ) -> str:
        """``PUT /models/NAME[/VERSION]?min_worker=N&max_worker=N``."""
        query = {"min_worker": workers, "max_worker": workers, "synchronous": _flag(synchronous)}
        return str(self._call("PUT", _path(name, version), query)["status"])

    def describe(
        self, name: str, version: str | None = None, *, customized: bool = False
    ) -> list[ModelVersion]:
        """``GET /models/NAME[/VERSION|/all]``; without a version the default one.

        Args:
            name: the model.
            version: a version, or ``all``.
            customized: also ask the handler for members, labels and policies.
        """
        query = {"customized": "true"} if customized else {}
        entries = self._call("GET", _path(name, version), query)
        return [_version_from(entry, default=version is None) for entry in entries]

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, the default one marked (TorchServe's own list does not)."""
        (default,) = self.describe(name)
        return [
            replace(each, default=each.version == default.version)
            for each in self.describe(name, "all")
        ]

    def all_versions(self) -> list[ModelVersion]:
        """Every version of every model."""
        return [version for name in self.models() for version in self.versions(name)]

    def set_default(self, name: str, version: str) -> str:
        """``PUT /models/NAME/VERSION/set-default``."""
        return str(self._call("PUT", f"{_path(name, version)}/set-default")["status"])

    def unregister(self, name: str, version: str | None = None) -> str:
        """``DELETE /models/NAME[/VERSION]``."""
        return str(self._call("DELETE", _path(name, version))["status"])

    def _call(self, method: str, path: str, query: Mapping[str, Any] | None = None) -> Any:
        url = f"{self.address}{path}"
        try:
            answer = self._session.request(method, url, params=query, timeout=self._timeout)
        except requests.Timeout as error:
            raise NoAnswerError(
                f"{method} {url}: no answer within {self._timeout:g} s; see the server's logs"
            ) from error
        except requests.RequestException as error:
            raise no_server(f"{method} {url}", error) from error
        if answer.status_code >= 400:
            raise _refusal(method, path, answer)
        return answer.json()


def _refusal(method: str, path: str, answer: requests.Response) -> ServerError:
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.text.strip()[:300]
    remedy = REMEDIES.get(answer.status_code, "see the server's logs")
    if NOT_EXTRACTED in message:
        remedy = (
            "it could not be extracted: the archive is truncated or damaged, or the disk is full"
        )
    error = ServerError(f"{method} {path}: {answer.status_code}: {message} ({remedy})")
    error.status = answer.status_code
    return error


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _path(name: str, version: str | None) -> str:
    return f"/models/{name}" if version is None else f"/models/{name}/{version}"


def _version_from(entry: Mapping[str, Any], *, default: bool) -> ModelVersion:
    return ModelVersion(
        name=entry["modelName"],
        version=entry["modelVersion"],
        archive=entry["modelUrl"],
        min_workers=entry["minWorkers"],
        max_workers=entry["maxWorkers"],
        batch_size=entry["batchSize"],
        max_batch_delay_ms=entry["maxBatchDelay"],
        default=default,
        workers=tuple(
            Worker(
                id=worker["id"],
                status=worker["status"],
                pid=worker["pid"],
                gpu=worker["gpu"],
                memory_bytes=worker["memoryUsage"],
            )
            for worker in entry["workers"]
        ),
        pending_requests=entry["jobQueueStatus"]["pendingRequests"],
        queue_capacity=entry["jobQueueStatus"]["remainingCapacity"],
        response_timeout=entry["responseTimeout"],
        startup_timeout=entry["startupTimeout"],
        customized=entry.get("customizedMetadata"),
    )
