"""A client of TorchServe's management API, which registers, scales and describes models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import requests

from ..handlers.base.errors import ServerError
from ..handlers.base.suggestions import nearest
from .sessions import open_session
from .transports import explain_failure

REMEDIES = {
    400: "check the parameter, the archive's path and the token",
    401: "pass the management token (key_file.json in the server's working folder)",
    403: "make another version the default first (set-default)",
    404: "put the archive into the server's model store, and name it as it is named there",
    405: (
        "the server runs without model control, so that nothing can be registered or unregistered: "
        "start it with `ts-ensemble serve --set enable_model_api=true`, or a plain TorchServe with "
        "`torchserve --enable-model-api`"
    ),
    408: "the workers did not stop in time; try again",
    409: "this version is registered already: raise the version in the spec, or unregister it",
    500: "the workers failed and the registration was rolled back; see the server's model log",
    503: "the queue is full, or no worker is ready; `ts-ensemble status` shows which",
    507: "a worker was ended: out of memory (fewer workers, smaller members), or killed by hand",
}
"""HTTP status of a refusal by the management API -> what the user can do about it."""

NOT_EXTRACTED = "Failed to save model"
"""TorchServe's message, which gives no reason, for an archive that it could not extract."""

DAMAGED_OR_FULL = "the archive is truncated or damaged, or the server's disk is or was full"
"""The possible reasons why TorchServe could not extract an archive."""


@dataclass(frozen=True)
class Worker:
    """One worker process, as the management API describes it.

    Attributes:
        id: identifier of the worker, which TorchServe never uses for another one.
        status: TorchServe's word for the worker's state, e.g. READY.
        pid: its process; 0 or less if it has none yet.
        gpu: whether it runs on a GPU.
        memory_bytes: memory of the process.
    """

    id: str
    status: str
    pid: int
    gpu: bool
    memory_bytes: int

    @property
    def ready(self) -> bool:
        """Whether the worker has loaded its model."""
        return self.status == "READY"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model.

    Attributes:
        name: name of the model.
        version: the version.
        archive: file name or URL that it was registered from.
        min_workers: number of workers that TorchServe keeps running.
        max_workers: largest number of workers that TorchServe starts.
        batch_size: largest number of requests in one batch.
        max_batch_delay_ms: longest time that a request waits for its batch to fill.
        default: whether requests that name no version go to this one. TorchServe does not list it;
            it is right in what `ManagementClient.versions` returns, and `describe` if that was
            called without a version.
        workers: its workers, in the order of their start; scaling down ends the last ones.
        pending_requests: number of requests in the queue; workers compute further ones.
        queue_capacity: number of further requests that the queue can hold.
        response_timeout: seconds after which TorchServe ends a worker that has not answered.
        startup_timeout: seconds after which TorchServe ends a worker that has not loaded.
        customized: the handler's own description: members, labels, policies; None if it was not
            asked for.
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
        """Whether as many workers as TorchServe shall keep running have loaded the model."""
        return sum(worker.ready for worker in self.workers) >= self.min_workers

    def reason_for_503(self) -> str:
        """Return why TorchServe has just refused a prediction with 503.

        TorchServe's own message is "no worker", even if the queue was full.
        """
        if not self.workers:
            return (
                f"{self.name} {self.version} has no worker; `ts-ensemble scale {self.name} 1 "
                f"--model-version {self.version}` starts one"
            )
        return (
            f"the queue of {self.name} {self.version} was full; {self.pending_requests} requests "
            "wait in it now: send fewer at once, add workers, or raise job_queue_size"
        )


class ManagementClient:
    """Calls the management API, and returns what it answers as typed objects.

    Args:
        address: e.g. ``http://127.0.0.1:8081``.
        token: the management token, if the server asks for one.
        timeout: seconds that the server has for each answer.
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
        """Return a second client of this server, with its own connection, for another thread."""
        return ManagementClient(self.address, token=self._token, timeout=self._timeout)

    def models(self) -> list[str]:
        """Return the names of all registered models."""
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
        """Register an archive, which itself says the model's name and version.

        The call is ``POST /models?url=ARCHIVE``.

        Args:
            archive: file name in the server's model store, or a URL that the server may load.
            workers: number of workers to start.
            synchronous: whether to wait until they have loaded the model. TorchServe then waits in
                an event loop that serves other clients too, and they wait as well.
            batch_size: replaces the archive's batch size.
            max_batch_delay_ms: replaces the archive's delay.

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
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        max_workers: int | None = None,
        synchronous: bool = False,
    ) -> str:
        """Change the number of workers: ``PUT /models/NAME[/VERSION]?min_worker=N&max_worker=N``.

        Args:
            name: name of the model.
            workers: number of workers to keep running.
            version: the version; None: the default one.
            max_workers: largest number of workers; None: `workers`.
            synchronous: whether to wait until they run, or have ended.

        Returns:
            TorchServe's status message.
        """
        query = {
            "min_worker": workers,
            "max_worker": workers if max_workers is None else max_workers,
            "synchronous": _flag(synchronous),
        }
        return str(self._call_model("PUT", name, version, query=query)["status"])

    def describe(
        self, name: str, version: str | None = None, *, customized: bool = False
    ) -> list[ModelVersion]:
        """Return versions of a model: ``GET /models/NAME[/VERSION|/all]``.

        Args:
            name: name of the model.
            version: a version, or ``all``; None: the default version.
            customized: whether the handler adds its own description: members, labels, policies.

        Raises:
            ServerError: there is no such model or version (the message lists those that there
                are), or the server refuses or does not answer.
        """
        query = {"customized": "true"} if customized else {}
        entries = self._call_model("GET", name, version, query=query)
        return [_version_from(entry, default=version is None) for entry in entries]

    def versions(self, name: str) -> list[ModelVersion]:
        """Return all versions of a model, in TorchServe's order, with the default one marked."""
        (default,) = self.describe(name)
        return [
            replace(each, default=each.version == default.version)
            for each in self.describe(name, "all")
        ]

    def with_default_mark(self, version: ModelVersion) -> ModelVersion:
        """Return a version that was described by its number, marked if it is the default one."""
        (default,) = self.describe(version.name)
        return replace(version, default=version.version == default.version)

    def all_versions(self) -> list[ModelVersion]:
        """Return every version of every model."""
        return [version for name in self.models() for version in self.versions(name)]

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default one: ``PUT /models/NAME/VERSION/set-default``."""
        return str(self._call_model("PUT", name, version, action="/set-default")["status"])

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version and its workers: ``DELETE /models/NAME[/VERSION]``."""
        return str(self._call_model("DELETE", name, version)["status"])

    def reason_for_refusal(self, name: str, version: str | None) -> str:
        """Return why TorchServe has just refused a prediction with 404 or "no worker".

        Args:
            name: model that the request named.
            version: version that the request named, if it named one.
        """
        try:
            (described,) = self.describe(name, version)
        except ServerError as error:
            if error.status != 404:
                raise
            return error.message
        return described.reason_for_503()

    def _call_model(
        self,
        method: str,
        name: str,
        version: str | None,
        *,
        action: str = "",
        query: Mapping[str, Any] | None = None,
    ) -> Any:
        path = f"/models/{name}" if version is None else f"/models/{name}/{version}"
        try:
            return self._call(method, path + action, query)
        except ServerError as error:
            reason = self._not_registered(name, version) if error.status == 404 else None
            if reason is None:
                raise
            missing = ServerError(reason)
            missing.status = 404
            raise missing from error

    def _not_registered(self, name: str, version: str | None) -> str | None:
        """Return that a model or a version is not registered, and which are; None if it is."""
        names = self.models()
        if name not in names:
            registered = ", ".join(names) or "none: `ts-ensemble register ARCHIVE` registers one"
            return (
                f"no model '{name}' is registered{nearest(name, names)}; registered: {registered}"
            )
        versions = [entry["modelVersion"] for entry in self._call("GET", f"/models/{name}/all")]
        if version is None or version in versions:
            return None
        return f"{name} has no version {version}; its versions: {', '.join(versions)}"

    def _call(self, method: str, path: str, query: Mapping[str, Any] | None = None) -> Any:
        url = f"{self.address}{path}"
        try:
            answer = self._session.request(method, url, params=query, timeout=self._timeout)
        except requests.RequestException as error:
            raise explain_failure(f"{method} {url}", error, self._timeout) from error
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
        remedy = DAMAGED_OR_FULL
    error = ServerError(f"{method} {path}: {answer.status_code}: {message} ({remedy})")
    error.status = answer.status_code
    return error


def _flag(value: bool) -> str:
    return "true" if value else "false"


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
