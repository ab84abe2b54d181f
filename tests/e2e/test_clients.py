"""Tests what docs/requests.md lists: how TorchServe's frontend answers clients of other servers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import tritonclient.http as triton
from kserve import InferenceRESTClient, RESTConfig
from probe_ensemble import image
from tritonclient.utils import InferenceServerException

from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

REQUEST = {"instances": [{"b64": base64.b64encode(image(0.9)).decode()}]}


@pytest.fixture(scope="module", params=["false", "true"])
def open_inference(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "true")


@pytest.fixture(scope="module")
def server(
    probe_store: Path, tmp_path_factory: pytest.TempPathFactory, open_inference: bool
) -> Iterator[Server]:
    overrides = throw_away() | {"ts_open_inference_protocol": str(open_inference).lower()}
    settings = ServerSettings(probe_store, ("probes-1.0.mar",), overrides=overrides)
    with Server.start(settings, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready()
        yield server


def test_routes(server: Server, open_inference: bool) -> None:
    versioned = 501 if open_inference else 404
    for method, path, status in [
        ("POST", "/v1/models/probes:predict", 200),
        ("GET", "/v1/models/probes", 404),
        ("GET", "/v1/models/probes/metadata", 404),
        ("POST", "/v1/models/probes:classify", 404),
        ("POST", "/v1/models/probes/versions/1:predict", versioned),
        ("POST", "/v2/models/probes/versions/1.0/infer", versioned),
        ("GET", "/v2/models/probes", 404),
        ("GET", "/v2/models/probes/ready", 404),
        ("GET", "/v2/health/live", 200 if open_inference else 404),
        ("POST", "/batch", 404),
        ("POST", "/classify", 404),
        ("GET", "/models", 404),
    ]:
        answer = requests.request(
            method,
            f"{server.inference_address}{path}",
            json=REQUEST if method == "POST" else None,
            timeout=30,
        )
        assert answer.status_code == status, f"{method} {path}"


def test_tritons_client(server: Server, open_inference: bool) -> None:
    with triton.InferenceServerClient(server.inference_address.removeprefix("http://")) as client:
        assert client.is_server_live() is open_inference
        assert client.is_server_ready() is open_inference
        assert client.is_model_ready("probes") is False
        for ask in (client.get_model_metadata, client.get_model_config):
            with pytest.raises(InferenceServerException, match="404"):
                ask("probes")


def test_kserves_client(server: Server, open_inference: bool) -> None:
    async def refusals(protocol: str) -> dict[str, object]:
        client = InferenceRESTClient(RESTConfig(protocol=protocol))
        answers: dict[str, object] = {}
        for name, arguments in (("is_server_live", ()), ("is_model_ready", ("probes",))):
            try:
                answers[name] = await getattr(client, name)(server.inference_address, *arguments)
            except Exception as error:
                answers[name] = str(error)
        return answers

    first = asyncio.run(refusals("v1"))
    assert "405" in str(first["is_server_live"])
    assert "404" in str(first["is_model_ready"])
    second = asyncio.run(refusals("v2"))
    assert second["is_model_ready"] is False
    assert (second["is_server_live"] is True) is open_inference


def test_without_a_token_every_route_is_400(
    probe_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    overrides = throw_away() | {"disable_token_authorization": "false"}
    settings = ServerSettings(probe_store, ("probes-1.0.mar",), overrides=overrides)
    with Server.start(settings, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready()
        for method, path in (
            ("POST", "/v1/models/probes:predict"),
            ("POST", "/batch"),
            ("GET", "/models"),
        ):
            answer = requests.request(method, f"{server.inference_address}{path}", timeout=30)
            assert (answer.status_code, "Token" in answer.text) == (400, True), path
