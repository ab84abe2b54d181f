"""Tests TorchServe's own gRPC services with stubs that are generated from its .proto files."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_tools import protoc
from probe_ensemble import image

from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stubs")
    jar = Path(str(resources.files("ts"))) / "frontend" / "model-server.jar"
    with zipfile.ZipFile(jar) as archive:
        for name in archive.namelist():
            if name.endswith(".proto"):
                archive.extract(name, folder)
    names = ("inference", "management")
    arguments = ["", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    well_known = Path(str(resources.files("grpc_tools"))) / "_proto"
    arguments += [f"-I{well_known}", *(f"{name}.proto" for name in names)]
    arguments.append("google/rpc/status.proto")
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(folder))
    try:
        kinds = ("pb2", "pb2_grpc")
        yield {f"{n}_{k}": importlib.import_module(f"{n}_{k}") for n in names for k in kinds}
    finally:
        sys.path.remove(str(folder))


def test_predictions_stream_and_management(
    stubs: dict[str, Any], probe_store: Path, tmp_path: Path
) -> None:
    overrides = throw_away()
    settings = ServerSettings(probe_store, overrides=overrides)
    with Server.start(settings, tmp_path) as server:
        manage, ask = stubs["management_pb2"], stubs["inference_pb2"]
        with (
            grpc.insecure_channel(f"127.0.0.1:{overrides['grpc_management_port']}") as control,
            grpc.insecure_channel(f"127.0.0.1:{overrides['grpc_inference_port']}") as channel,
            server.client() as rest,
        ):
            management = stubs["management_pb2_grpc"].ManagementAPIsServiceStub(control)
            inference = stubs["inference_pb2_grpc"].InferenceAPIsServiceStub(channel)
            registered = management.RegisterModel(
                manage.RegisterModelRequest(url="probes-1.0.mar", synchronous=True), timeout=60
            )
            assert "registered with 1 initial workers" in registered.msg
            listed = management.ListModels(manage.ListModelsRequest(limit=100), timeout=60)
            assert json.loads(listed.msg)["models"][0]["modelName"] == "probes"
            inputs = {"file": image(0.9), "policy": b"any"}
            request = ask.PredictionsRequest(model_name="probes", input=inputs)
            expected = rest.predict("probes", [("a", image(0.9))], options={"policy": "any"})
            one = inference.Predictions(request, timeout=60)
            assert json.loads(one.prediction) == expected
            (streamed,) = inference.StreamPredictions(request, timeout=60)
            assert json.loads(streamed.prediction) == expected
            inputs = {"file": b"<html>"}
            refused = inference.Predictions(
                ask.PredictionsRequest(model_name="probes", input=inputs), timeout=60
            )
            assert json.loads(refused.prediction)["code"] == 400
            management.ScaleWorker(
                manage.ScaleWorkerRequest(
                    model_name="probes", min_worker=2, max_worker=2, synchronous=True
                ),
                timeout=60,
            )
            (version,) = server.wait_ready()
            assert sum(worker.ready for worker in version.workers) == 2
            management.UnregisterModel(
                manage.UnregisterModelRequest(model_name="probes"), timeout=60
            )
            with server.management() as http:
                assert http.models() == []
