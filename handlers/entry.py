"""The module that TorchServe loads from an archive's root: the only one that knows TorchServe.

TorchServe imports it flat, under its file name, and hides an ImportError at module level; so
everything but the standard library is imported in `EnsembleHandler.initialize`, where a failure is
reported in full. Only RuntimeError and MemberError-free messages reach TorchServe's load answer;
every other exception would end the worker without one (``ts/model_service_worker.py``).
"""

from __future__ import annotations

import http
import importlib
import inspect
import logging
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SUPPORTED_TORCHSERVE = "0.12"


class EnsembleHandler:
    """Bridges TorchServe's handler protocol to `handlers.service`."""

    def __init__(self) -> None:
        self._service: Any = None
        self._counted: dict[str, int] = {}

    def initialize(self, context: Any) -> None:
        """Check the archive, load every member, and make repeated form fields arrive.

        Raises:
            RuntimeError: with the reason, which TorchServe logs and answers to the management API.
        """
        folder = Path(context.system_properties["model_dir"])
        try:
            self._service = _load(folder, context)
            self._service.warm_up()
            _keep_every_part()
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"this server's Python lacks '{error.name}', which the ensemble handler needs: "
                f"pip install -r requirements.txt (it lies in the archive, {folder})"
            ) from error
        except Exception as error:
            raise RuntimeError(f"cannot load ensemble '{context.model_name}': {error}") from error

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer one batch of requests, each with its own status."""
        arrived = time.monotonic()
        requests = importlib.import_module("handlers.requests")
        responses = importlib.import_module("handlers.responses")
        raw = [
            requests.RawRequest(
                parts=[requests.Part(*part) for part in request["parts"]],
                headers=requests.lower_case(request["headers"]),
            )
            for request in data
        ]
        asked = [
            index for index, request in enumerate(raw) if request.headers.get("describe") == "True"
        ]
        if asked:
            # TorchServe sends a description alone, so no prediction waits while it is held.
            timeout = float((context.model_yaml_config or {}).get("responseTimeout", 60))
            importlib.import_module("handlers.holding").hold_if_asked(timeout)
        predictions = [request for index, request in enumerate(raw) if index not in asked]
        answers = iter(self._service.answer(predictions, arrived=arrived) if predictions else [])
        self._count(context)
        bodies = []
        for index in range(len(raw)):
            if index in asked:
                response = responses.encode(self._service.describe())
            else:
                response = next(answers)
            phrase = http.HTTPStatus(response.status).phrase
            context.set_response_status(code=response.status, phrase=phrase, idx=index)
            context.set_response_content_type(index, response.content_type)
            for name, value in response.headers.items():
                context.set_response_header(index, name, value)
            if "host" not in raw[index].headers:
                # gRPC. TorchServe ends the worker over a StreamPredictions answer without this.
                context.set_response_header(index, "ts_stream_next", "false")
            bodies.append(response.body)
        return bodies

    def _count(self, context: Any) -> None:
        """The score cache's hits and misses since the last batch, as TorchServe's counters."""
        cache = self._service.cache
        if cache is None:
            return
        for name, count in (("ScoreCacheHits", cache.hits), ("ScoreCacheMisses", cache.misses)):
            new = count - self._counted.get(name, 0)
            if new:
                context.metrics.add_counter(name, new)
            self._counted[name] = count


def _load(folder: Path, context: Any) -> Any:
    handlers = importlib.import_module("handlers")
    running = Path(str(handlers.__file__)).resolve()
    if not running.is_relative_to(folder.resolve()):
        raise RuntimeError(
            f"the package 'handlers' was imported from {running}, not from the archive; start "
            "TorchServe without PYTHONPATH and remove other packages of that name"
        )
    archive = importlib.import_module("handlers.archive")
    service = importlib.import_module("handlers.service")
    spec_module = importlib.import_module("handlers.spec")
    record = archive.verify_folder(folder)
    spec = spec_module.load_spec(folder / archive.SPEC)
    gpu = context.system_properties.get("gpu_id")
    settings = context.model_yaml_config or {}
    return service.EnsembleService.load(
        spec,
        folder / archive.ENSEMBLE,
        identity=service.Identity(context.model_name, spec.version, record.digest),
        device=service.choose_device(spec, gpu),
        workers=int(settings.get("minWorkers", 1)),
    )


def _keep_every_part() -> None:
    """Make the worker hand over every part of a form.

    TorchServe's worker puts a request's parts into a dict, so that of several parts with one name
    (``-F file=@a -F file=@b``) the last wins and the others are silently lost. The parts do reach
    the worker; this replaces the one function that drops them, in this process only.

    Raises:
        RuntimeError: this TorchServe is built differently.
    """
    import ts
    from ts.service import Service

    original = Service.retrieve_data_for_inference
    if getattr(original, "keeps_every_part", False):
        return
    seam = "ts.service.Service.retrieve_data_for_inference"
    if not ts.__version__.startswith(SUPPORTED_TORCHSERVE) or (
        "retrieve_data_for_inference" not in Service.predict.__code__.co_names
        or list(inspect.signature(original).parameters) != ["batch"]
    ):
        raise RuntimeError(
            f"TorchServe {ts.__version__} is not {SUPPORTED_TORCHSERVE}.x or its {seam} has "
            "changed; form fields with equal names would be lost: install torchserve==0.12.0"
        )

    def retrieve_data_for_inference(batch: Any) -> tuple[Any, list[dict[str, Any]], Any]:
        headers, _, request_ids = original(batch)
        inputs = [
            {
                "parts": [(p["name"], p["contentType"], p["value"]) for p in request["parameters"]],
                "headers": [
                    (h["name"].decode("utf-8"), h["value"].decode("utf-8"))
                    for h in request.get("headers") or ()
                ],
            }
            for request in batch
        ]
        return headers, inputs, request_ids

    retrieve_data_for_inference.keeps_every_part = True  # type: ignore[attr-defined]
    Service.retrieve_data_for_inference = staticmethod(retrieve_data_for_inference)
    _check_parts(Service)


def _check_parts(service: Any) -> None:
    """Send two parts of one name through the function that predict calls."""
    parts = [{"name": "file", "contentType": "", "value": value} for value in (b"a", b"b")]
    batch = [{"requestId": b"check", "parameters": parts, "headers": []}]
    _, inputs, _ = service.retrieve_data_for_inference(batch)
    if [part[2] for part in inputs[0]["parts"]] != [b"a", b"b"]:
        raise RuntimeError("form fields with equal names are lost in this TorchServe's worker")
