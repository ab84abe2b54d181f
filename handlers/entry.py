"""TorchServe loads this module from the root of an archive; no other module knows TorchServe.

TorchServe imports this file as a top-level module, and hides an ImportError raised meanwhile.
Therefore everything outside the standard library is imported in `EnsembleHandler.initialize`, whose
failures are reported in full. TorchServe reports only RuntimeError and MemoryError raised while
loading; any other exception ends the worker without a message (``ts/model_service_worker.py``).

No other code of the archive runs before all of its files were checked against its record. The
modules of `handlers` are compiled from their sources, and each source is checked once more right
before. Python's own import would also run byte code that somebody put beside the sources.
"""

# ruff: noqa: E402, PTH120

import os
import sys

# TorchServe puts the archive's root at the front of `sys.path`. A file `numpy.py` there, which the
# record does not list, would be imported in place of NumPy. Therefore the root leaves `sys.path`.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_CANDIDATE = "candidate"
"""Argument with which the worker runs this file for the candidate of a shadow."""

SUPPORTED_TORCHSERVE = "0.12"
"""Version of TorchServe whose worker has the functions that are replaced; others are refused."""


class EnsembleHandler:
    """Answers TorchServe's calls with the ensemble of `handlers.service`."""

    def __init__(self) -> None:
        self._service: Any = None
        self._metrics: Any = None
        self._request_log: Any = None

    def initialize(self, context: Any) -> None:
        """Check the archive, load every member, and replace three functions of TorchServe's worker.

        Raises:
            RuntimeError: the ensemble cannot be loaded. TorchServe logs the message and returns it
                to the caller of the management API.
        """
        folder = Path(context.system_properties["model_dir"])
        try:
            self._service = _load(folder, context)
            self._service.warm_up()
            importlib.import_module("handlers.self_testing").run_self_test(self._service)
            _keep_every_part()
            shadow = self._service.shadow
            _bound_messages(self._service.max_parts, None if shadow is None else shadow.release)
            self._start_recording(context)
            if shadow is not None:
                request_log = importlib.import_module("handlers.frontend.request_log")
                shadow.start(
                    self._service.recorder.meter,
                    self._metrics.request,
                    [sys.executable, "-P", os.path.realpath(__file__), _CANDIDATE],
                    request_log.load_decision_log(os.environ, self._service.identity.as_json()),
                )
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"this server's Python lacks '{error.name}', which the ensemble handler needs: "
                f"pip install -r requirements.txt (it lies in the archive, {folder})"
            ) from error
        except Exception as error:
            raise RuntimeError(f"cannot load ensemble '{context.model_name}': {error}") from error

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer one batch of requests, each with its own status.

        Args:
            data: for each request its parts and headers, as the replaced function passes them on.
            context: TorchServe's context, which takes the status and headers of each response.

        Returns:
            The body of each response, in the order of the requests.
        """
        arrived = time.monotonic()
        raw_request = importlib.import_module("handlers.requests.raw_request")
        encoding = importlib.import_module("handlers.answers.encoding")
        requests = [
            raw_request.RawRequest(
                parts=[raw_request.Part(*part) for part in request["parts"]],
                headers=raw_request.lower_case(request["headers"]),
                id=context.request_ids.get(index, ""),
            )
            for index, request in enumerate(data)
        ]
        is_describe = [request.headers.get("describe") == "True" for request in requests]
        if any(is_describe):
            # A describe request is alone in its batch, so no prediction waits while the worker is
            # held.
            # The worker may be ended while it is held, so it first reports what it has counted.
            self._report_now()
            timeout = float((context.model_yaml_config or {}).get("responseTimeout", 60))
            importlib.import_module("handlers.frontend.holding").hold_if_requested(timeout)
        to_predict = [
            request for request, describe in zip(requests, is_describe, strict=True) if not describe
        ]
        answers = iter(self._service.answer(to_predict, arrived=arrived) if to_predict else [])
        self._metrics.request()
        bodies = []
        for index, (request, describe) in enumerate(zip(requests, is_describe, strict=True)):
            response = encoding.encode(self._service.describe()) if describe else next(answers)
            phrase = http.HTTPStatus(response.status).phrase
            context.set_response_status(code=response.status, phrase=phrase, idx=index)
            context.set_response_content_type(index, response.content_type)
            for name, value in response.headers.items():
                context.set_response_header(index, name, value)
            if not request.headers:
                # Only gRPC requests have no headers: in HTTP there is at least Content-Length.
                # TorchServe ends the worker if the answer to StreamPredictions lacks this header,
                # and it never sends an answer over HTTP that has the header.
                context.set_response_header(index, "ts_stream_next", "false")
            bodies.append(response.body)
            if self._request_log is not None and not describe:
                self._request_log.write(
                    request_id=request.id,
                    traceparent=request.headers.get("traceparent", ""),
                    status=response.status,
                    error=response.error,
                    num_bytes=len(response.body),
                    batch_requests=len(requests),
                    seconds=time.monotonic() - arrived,
                )
        return bodies

    def _start_recording(self, context: Any) -> None:
        """Start to report metrics, and traces and a log of requests if the environment asks so.

        Raises:
            ValueError: a variable of the environment has a value that does not exist.
        """
        recorder, identity = self._service.recorder, self._service.identity
        model = identity.as_json()
        frontend = importlib.import_module("handlers.frontend.metric_lines")
        request_log = importlib.import_module("handlers.frontend.request_log")
        tracing = importlib.import_module("handlers.observability.tracing")
        recorder.start(_worker_id())
        self._metrics = frontend.MetricReporter(
            context.metrics,
            importlib.import_module("ts.metrics.metric_type_enum").MetricTypes,
            recorder.meter,
            {"model_name": identity.name, "model_version": identity.version},
            recorder.collect,
        )
        recorder.count_load()
        self._metrics.request()
        recorder.tracer = tracing.load_tracer(
            os.environ, {f"ensemble.{key}": str(value) for key, value in model.items()}
        )
        self._request_log = request_log.load_request_log(os.environ, model)

    def _report_now(self) -> None:
        """Report everything that was counted and traced."""
        self._metrics.report()
        if self._service.recorder.tracer is not None:
            self._service.recorder.tracer.flush()


def _worker_id() -> str:
    """Return this worker's identifier in the management API, from TorchServe's command line.

    TorchServe gives each worker a socket, ``--sock-name /tmp/.ts.sock.9000`` or ``--port 9000``,
    whose number is the identifier. A worker that is started again keeps it.
    """
    for option, value in zip(sys.argv, sys.argv[1:], strict=False):
        if option in ("--sock-name", "--port"):
            return value.rpartition(".")[2]
    return "0"


def _load(folder: Path, context: Any) -> Any:
    """Check the extracted archive and load it as an `EnsembleService`."""
    record = _verify(folder)
    verification = importlib.import_module("handlers.archive.verification")
    layout = importlib.import_module("handlers.base.archive_layout")
    spec = importlib.import_module("handlers.spec").load_spec(folder / layout.SPEC)
    manifest = (folder / layout.MANIFEST).read_bytes()
    verification.check_spec(spec, record, manifest, source=str(folder))
    deployment = importlib.import_module("handlers.deployment")
    service = importlib.import_module("handlers.service")
    gpu = context.system_properties.get("gpu_id")
    settings = context.model_yaml_config or {}
    siblings = importlib.import_module("handlers.frontend.siblings")
    return deployment.load_service(
        spec,
        folder / layout.ENSEMBLE,
        identity=service.Identity(context.model_name, spec.version, record.digest),
        device=deployment.choose_device(spec, gpu),
        # At the registration some of the others may not have started yet.
        workers=max(int(settings.get("minWorkers", 1)), siblings.count_workers()),
        compiled=spec.runtime.engine != "torch",
    )


def _verify(folder: Path) -> Any:
    """Make Python import `handlers` from the archive, and check all files against its record."""
    _import_from_sources(folder)
    verification = importlib.import_module("handlers.archive.verification")
    trusted = importlib.import_module("handlers.archive.trusted_keys").keys_of_environment()
    return verification.verify_folder(folder, entry_imported=True, trusted=trusted)


def _run_candidate(descriptor: int) -> None:
    """Run the new members of a shadow in this process, which a worker has started.

    Args:
        descriptor: number of the file descriptor of the connection to the worker.
    """
    folder = Path(_ROOT)
    _verify(folder)
    layout = importlib.import_module("handlers.base.archive_layout")
    main = importlib.import_module("handlers.rollout.candidate_main")
    main.main(folder / layout.SPEC, descriptor)


def _import_from_sources(folder: Path) -> None:
    """Make Python import `handlers` from the sources that the archive's record lists.

    Raises:
        RuntimeError: the record is missing or damaged, or another package with the name `handlers`
            was imported before.
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
    sys.meta_path.insert(0, _source_importer(folder, digests))


def _source_importer(folder: Path, digests: Mapping[str, str]) -> importlib.abc.MetaPathFinder:
    """Make the importer of `handlers`, which runs a source only if its digest is right.

    Args:
        folder: folder of the extracted archive.
        digests: path of a file in the archive -> its SHA-256.
    """

    # The class is defined in a function because TorchServe takes the only class of this module for
    # the handler.
    class SourceImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(
            self, fullname: str, path: object, target: object = None
        ) -> importlib.machinery.ModuleSpec | None:
            if fullname.partition(".")[0] != "handlers":
                return None
            path_of_module = fullname.replace(".", "/")
            # A package has no folders to search, so no other importer finds modules in it.
            for file, search_folders in (
                (f"{path_of_module}/__init__.py", []),
                (f"{path_of_module}.py", None),
            ):
                if file in digests:
                    return importlib.util.spec_from_file_location(
                        fullname,
                        folder / file,
                        loader=self,
                        submodule_search_locations=search_folders,
                    )
            return None

        def exec_module(self, module: ModuleType) -> None:
            path = Path(str(module.__file__))
            name = path.relative_to(folder).as_posix()
            source = path.read_bytes() if path.is_file() else None
            if source is None or hashlib.sha256(source).hexdigest() != digests[name]:
                problem = "is missing" if source is None else "was changed"
                raise RuntimeError(
                    f"{folder}: the archive is not as it was built: {name} {problem}; build it "
                    "again"
                )
            exec(compile(source, path, "exec", dont_inherit=True), vars(module))

    return SourceImporter()


def _keep_every_part() -> None:
    """Make TorchServe's worker pass on all parts of a form, also those with equal names.

    The worker puts the parts of a request into a dict. Of several parts with one name
    (``-F file=@a -F file=@b``) only the last one is left, and nothing reports the loss. Therefore
    the function that makes the dict is replaced, in this process only.

    Raises:
        RuntimeError: the worker of this TorchServe has no such function.
    """
    import ts
    from ts.service import Service

    original = Service.retrieve_data_for_inference
    if getattr(original, "keeps_every_part", False):
        return
    replaced = "ts.service.Service.retrieve_data_for_inference"
    if not ts.__version__.startswith(SUPPORTED_TORCHSERVE) or (
        "retrieve_data_for_inference" not in Service.predict.__code__.co_names
        or list(inspect.signature(original).parameters) != ["batch"]
    ):
        raise RuntimeError(
            f"TorchServe {ts.__version__} is not {SUPPORTED_TORCHSERVE}.x or its {replaced} has "
            "changed; form fields with equal names would be lost: install torchserve==0.12.0"
        )

    def retrieve_data_for_inference(batch: Any) -> tuple[Any, list[dict[str, Any]], Any]:
        headers, _, request_ids = original(batch)
        inputs = [
            {
                "parts": [
                    (part["name"], part["contentType"], part["value"])
                    for part in request["parameters"]
                ],
                "headers": [
                    (header["name"].decode("utf-8"), header["value"].decode("utf-8"))
                    for header in request.get("headers") or ()
                ],
            }
            for request in batch
        ]
        return headers, inputs, request_ids

    retrieve_data_for_inference.keeps_every_part = True  # type: ignore[attr-defined]
    Service.retrieve_data_for_inference = staticmethod(retrieve_data_for_inference)
    _check_repeated_names(Service)


def _bound_messages(max_parts: int, on_wait: Callable[[], None] | None) -> None:
    """Make the worker read requests with `FrontendMessages`, which drops parts beyond a limit.

    TorchServe's own reader also decodes JSON of any size; `FrontendMessages` leaves it as bytes.

    Args:
        max_parts: number of parts that one request may have.
        on_wait: called before the worker waits for requests.

    Raises:
        RuntimeError: the worker of this TorchServe does not call the functions to be replaced.
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
    frontend = importlib.import_module("handlers.frontend.messages")
    messages = frontend.FrontendMessages(max_parts, on_wait)
    protocol._retrieve_buffer = messages.retrieve_buffer
    protocol._retrieve_inference_msg = messages.retrieve_inference_msg


def _check_repeated_names(service: Any) -> None:
    """Check that two parts with equal names pass the replaced function.

    Raises:
        RuntimeError: a part is lost.
    """
    parts = [{"name": "file", "contentType": "", "value": value} for value in (b"a", b"b")]
    batch = [{"requestId": b"check", "parameters": parts, "headers": []}]
    _, inputs, _ = service.retrieve_data_for_inference(batch)
    if [part[2] for part in inputs[0]["parts"]] != [b"a", b"b"]:
        raise RuntimeError("form fields with equal names are lost in this TorchServe's worker")


if __name__ == "__main__" and sys.argv[1:2] == [_CANDIDATE]:
    _run_candidate(int(sys.argv[2]))
