"""The module that TorchServe loads from an archive's root: the only one that knows TorchServe.

TorchServe imports it flat, under its file name, and hides an ImportError at module level; so
everything but the standard library is imported in `EnsembleHandler.initialize`, where a failure is
reported in full. TorchServe reports only RuntimeError and MemoryError raised while loading; any
other exception ends the worker without a message (``ts/model_service_worker.py``).

Nothing else of the archive runs before the whole of it was checked against its record. The modules
of `handlers` are compiled from their sources, each checked once more against the record; Python's
own import would take planted byte code instead.
"""

# ruff: noqa: E402, PTH120

import os
import sys

# TorchServe puts the archive's root before the standard library, where an unlisted `numpy.py` would
# take its namesake's place. From here on nothing is imported from there by its name alone.
_ROOT = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [path for path in sys.path if os.path.realpath(path or ".") != _ROOT]

import hashlib
import http
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
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
            _bound_messages(self._service.max_parts)
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
        requests = importlib.import_module("handlers.requests.parsing")
        responses = importlib.import_module("handlers.answers.encoding")
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
            importlib.import_module("handlers.frontend.holding").hold_if_asked(timeout)
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
            if not raw[index].headers:
                # gRPC, where requests have no headers; in HTTP even the length is one.
                # TorchServe ends the worker over a StreamPredictions answer without this, and
                # never sends an answer over HTTP with it.
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
    _import_from_sources(folder)
    verification = importlib.import_module("handlers.archive.verification")
    layout = importlib.import_module("handlers.base.archive_layout")
    record = verification.verify_folder(folder, entry_imported=True)
    spec = importlib.import_module("handlers.spec").load_spec(folder / layout.SPEC)
    manifest = (folder / layout.MANIFEST).read_bytes()
    verification.check_spec(spec, record, manifest, source=str(folder))
    deployment = importlib.import_module("handlers.deployment")
    service = importlib.import_module("handlers.service")
    gpu = context.system_properties.get("gpu_id")
    settings = context.model_yaml_config or {}
    return deployment.load_service(
        spec,
        folder / layout.ENSEMBLE,
        identity=service.Identity(context.model_name, spec.version, record.digest),
        device=deployment.choose_device(spec, gpu),
        workers=int(settings.get("minWorkers", 1)),
        compiled=spec.runtime.engine != "torch",
    )


def _import_from_sources(folder: Path) -> None:
    """Let `handlers` be imported from the archive's listed sources, and from nowhere else.

    Raises:
        RuntimeError: there is no record, or another package of that name was imported before.
    """
    if "handlers" in sys.modules:
        raise RuntimeError(
            f"the package 'handlers' was imported from {sys.modules['handlers'].__file__}, not "
            "from the archive; start TorchServe without PYTHONPATH and remove other packages of "
            "that name"
        )
    try:
        files = json.loads((folder / "archive.json").read_text(encoding="utf-8"))["files"]
        digests = {str(path): str(digest) for path, digest in files.items()}
    except FileNotFoundError:
        raise RuntimeError(
            f"{folder}: no archive.json; the archive was not built by `ts-ensemble build`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RuntimeError(
            f"{folder}: archive.json is damaged ({error!r}); build the archive again"
        ) from None
    sys.meta_path.insert(0, _sources(folder, digests))


def _sources(folder: Path, digests: Mapping[str, str]) -> importlib.abc.MetaPathFinder:
    """The import system's finder and loader of `handlers`.

    Args:
        folder: of the archive.
        digests: SHA-256 of each file.
    """

    # In a function, since TorchServe takes an entry's only class for the handler.
    class Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(
            self, fullname: str, path: object, target: object = None
        ) -> importlib.machinery.ModuleSpec | None:
            if fullname.partition(".")[0] != "handlers":
                return None
            place = fullname.replace(".", "/")
            # Without search locations: what this finder does not know, no other finds either.
            for file, places in ((f"{place}/__init__.py", []), (f"{place}.py", None)):
                if file in digests:
                    return importlib.util.spec_from_file_location(
                        fullname, folder / file, loader=self, submodule_search_locations=places
                    )
            return None

        def exec_module(self, module: ModuleType) -> None:
            path = Path(str(module.__file__))
            name = path.relative_to(folder).as_posix()
            source = path.read_bytes() if path.is_file() else None
            if source is None or hashlib.sha256(source).hexdigest() != digests[name]:
                what = "is missing" if source is None else "was changed"
                raise RuntimeError(
                    f"{folder}: the archive is not as it was built: {name} {what}; build it again"
                )
            exec(compile(source, path, "exec", dont_inherit=True), vars(module))

    return Sources()


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


def _bound_messages(max_parts: int) -> None:
    """Make the worker read requests in large pieces, and keep no more parts than there may be.

    Its own reader also decodes JSON of any size; here values stay bytes.

    Raises:
        RuntimeError: this TorchServe is built differently.
    """
    from ts.protocol import otf_message_handler as protocol

    for name, caller in (
        ("_retrieve_buffer", protocol.retrieve_msg),
        ("_retrieve_inference_msg", protocol.retrieve_msg),
    ):
        if name not in caller.__code__.co_names:
            raise RuntimeError(
                f"this TorchServe is not {SUPPORTED_TORCHSERVE}.x: {name} of its worker's protocol "
                "has changed; install torchserve==0.12.0"
            )
    messages = importlib.import_module("handlers.frontend.messages").FrontendMessages(max_parts)
    protocol._retrieve_buffer = messages.retrieve_buffer
    protocol._retrieve_inference_msg = messages.retrieve_inference_msg


def _check_parts(service: Any) -> None:
    """Send two parts of one name through the function that predict calls."""
    parts = [{"name": "file", "contentType": "", "value": value} for value in (b"a", b"b")]
    batch = [{"requestId": b"check", "parameters": parts, "headers": []}]
    _, inputs, _ = service.retrieve_data_for_inference(batch)
    if [part[2] for part in inputs[0]["parts"]] != [b"a", b"b"]:
        raise RuntimeError("form fields with equal names are lost in this TorchServe's worker")
