"""Tests that every wire form gives the answers that the same images get one by one.

The tests use a real TorchServe, and the clients of Triton and KServe.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from PIL import Image
from probe_ensemble import image
from safetensors.numpy import save
from safetensors.torch import load

from torchserve_ensemble.handlers.base.errors import RequestError
from torchserve_ensemble.serving.client import Prediction
from torchserve_ensemble.serving.server import Server

pytestmark = pytest.mark.e2e

LEVELS = (0.1, 0.3, 0.45, 0.6, 0.8, 0.95)
IMAGES = [image(level) for level in LEVELS]
Answers = list[tuple[str, float]]


def url(server: Server, path: str) -> str:
    return f"{server.inference_address}{path}"


@pytest.fixture(scope="module")
def one_by_one(probe_server: Server) -> Answers:
    """Label and score of each image, sent alone as a raw body."""
    answers = []
    for each in IMAGES:
        answer = requests.post(
            url(probe_server, "/predictions/probes"),
            data=each,
            headers={"Content-Type": "image/png"},
            timeout=60,
        )
        (prediction,) = answer.json()["predictions"]
        answers.append((prediction["label"], prediction["score"]))
    return answers


def same(answers: Answers, expected: Answers) -> None:
    """Check that labels are equal, and scores but for rounding."""
    assert [label for label, _ in answers] == [label for label, _ in expected]
    # Kernels may add in another order in batches of other sizes. These members' sums then differ by
    # no more than this.
    scores = [score for _, score in expected]
    assert [score for _, score in answers] == pytest.approx(scores, abs=1e-6)


def of_json(content: dict[str, Any]) -> Answers:
    """Read labels and scores from an answer in JSON."""
    return [(p["label"], p["score"]) for p in content["predictions"]]


def of_outputs(content: Any) -> Answers:
    """Read labels and scores from the outputs of an Open Inference answer."""
    labels = [v.decode() if isinstance(v, bytes) else v for v in content("label").tolist()]
    return list(zip(labels, content("score").tolist(), strict=True))


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for index, content in enumerate(IMAGES):
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def zipped() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for index, content in enumerate(IMAGES):
            archive.writestr(f"{index}.png", content)
    return target.getvalue()


def pixels() -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in IMAGES])


def npy() -> bytes:
    target = io.BytesIO()
    np.save(target, pixels())
    return target.getvalue()


def frames() -> bytes:
    opened = [Image.open(io.BytesIO(each)) for each in IMAGES]
    target = io.BytesIO()
    opened[0].save(target, "TIFF", save_all=True, append_images=opened[1:])
    return target.getvalue()


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (tar, {}),
        (zipped, {}),
        (npy, {}),
        (lambda: save({"input": pixels()}), {}),
        (frames, {"frames": "true"}),
    ],
    ids=["tar.gz", "zip", "npy", "safetensors", "frames"],
)
def test_bundles_as_the_body(
    probe_server: Server,
    one_by_one: Answers,
    body: Callable[[], bytes],
    headers: dict[str, str],
) -> None:
    answer = requests.post(
        url(probe_server, "/predictions/probes"),
        data=body(),
        headers={"Content-Type": "application/octet-stream", **headers},
        timeout=60,
    )
    same(of_json(answer.json()), one_by_one)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_raw_body_of_any_format(probe_server: Server, form: str) -> None:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (229, 229, 229)).save(target, form)
    for content_type in ("image/whatever", ""):
        answer = requests.post(
            url(probe_server, "/predictions/probes"),
            data=target.getvalue(),
            headers={"Content-Type": content_type} if content_type else {},
            timeout=60,
        )
        ((label, score),) = of_json(answer.json())
        assert label == "bright"
        assert score == pytest.approx(0.982, abs=0.01)


def test_flexserves_client(probe_server: Server, one_by_one: Answers) -> None:
    """FlexServe's client posts every image under one name, and reads {member: [class, ...]}."""
    single = requests.post(
        url(probe_server, "/predictions/probes"),
        files=[("file", ("a.png", IMAGES[3], "image/png"))],
        data={"response": "flexserve"},
        timeout=60,
    )
    assert single.json() == {"a": ["bright"], "b": ["bright"], "c": ["dark"]}
    batch = requests.post(
        url(probe_server, "/predictions/probes"),
        files=[("file", (f"{i}.png", each, "image/png")) for i, each in enumerate(IMAGES)],
        data={"response": "flexserve"},
        timeout=60,
    )
    assert set(batch.json()) == {"a", "b", "c"}
    assert batch.json()["b"] == [label for label, _ in one_by_one], "b is the median member"


@pytest.mark.parametrize("route", ["/v1/models/probes:predict", "/predictions/probes"])
def test_tf_servings_form(probe_server: Server, one_by_one: Answers, route: str) -> None:
    instances = [{"b64": base64.b64encode(each).decode()} for each in IMAGES]
    answer = requests.post(url(probe_server, route), json={"instances": instances}, timeout=60)
    same(of_json(answer.json()), one_by_one)


def test_numbers_in_json(probe_server: Server, one_by_one: Answers) -> None:
    """The members of this ensemble take 2 x 2 pixels from 0 to 1."""
    small = pixels()[:, :2, :2].transpose(0, 3, 1, 2) / 255
    answer = requests.post(
        url(probe_server, "/v1/models/probes:predict"),
        json={"instances": small.tolist()},
        timeout=60,
    )
    same(of_json(answer.json()), one_by_one)


def test_kserves_client_v1(probe_server: Server, one_by_one: Answers) -> None:
    instances = [{"b64": base64.b64encode(each).decode()} for each in IMAGES]
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    content = asyncio.run(
        client.infer(probe_server.inference_address, {"instances": instances}, model_name="probes")
    )
    same(of_json(content), one_by_one)


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_client_v2(probe_server: Server, one_by_one: Answers, binary: bool) -> None:
    sent = InferInput("images", list(pixels().shape), "UINT8")
    sent.set_data_from_numpy(pixels(), binary_data=binary)
    request = InferRequest("probes", [sent], request_id="42")
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    response = asyncio.run(
        client.infer(probe_server.inference_address, request, model_name="probes")
    )
    assert response.id == "42"
    outputs = {output.name: output for output in response.outputs}
    same(of_outputs(lambda name: outputs[name].as_numpy()), one_by_one)


@pytest.fixture(scope="module")
def triton_client(probe_server: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(probe_server.inference_address.removeprefix("http://"))


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("kind", ["images", "pixels", "pixels in JSON"])
def test_tritons_client(
    triton_client: triton.InferenceServerClient,
    one_by_one: Answers,
    kind: str,
    binary_out: bool,
) -> None:
    if kind == "images":
        sent = triton.InferInput("images", [len(IMAGES)], "BYTES")
        sent.set_data_from_numpy(np.array(IMAGES, dtype=object))
    else:
        sent = triton.InferInput("images", list(pixels().shape), "UINT8")
        sent.set_data_from_numpy(pixels(), binary_data=kind == "pixels")
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary_out)
        for name in ("label", "score", "b.scores")
    ]
    result = triton_client.infer(
        "probes", [sent], outputs=outputs, request_id="x", parameters={"policy": "majority"}
    )
    same(of_outputs(result.as_numpy), one_by_one)
    assert result.get_response()["id"] == "x"
    assert result.as_numpy("b.scores").shape == (len(IMAGES), 1)


def test_tritons_client_sees_the_refusal(triton_client: triton.InferenceServerClient) -> None:
    sent = triton.InferInput("images", [1], "BYTES")
    sent.set_data_from_numpy(np.array([b"junk"], dtype=object))
    with pytest.raises(triton.InferenceServerException, match=r"sample 0 \(images\[0\]\)"):
        triton_client.infer("probes", [sent])


def test_grpc_answers_equal_rest_answers_to_the_last_digit(probe_server: Server) -> None:
    images = [(f"{i}.png", each) for i, each in enumerate(IMAGES)]
    with probe_server.client() as rest, probe_server.client(transport="grpc") as grpc:
        for options in ({}, {"policy": "any", "include": "scores,uncertainty"}):
            first = rest.predict("probes", images, options=options)
            second = grpc.predict("probes", images, options=options)
            for answer in (first, second):
                for prediction in answer["predictions"]:
                    del prediction["sample"]
            assert first == second
        with pytest.raises(RequestError, match="sample 1") as caught:
            grpc.predict("probes", [images[0], ("bad", b"<html>")])
        assert caught.value.status == 400
        with pytest.raises(
            RequestError, match="no model .nothing. is registered; registered: probes"
        ):
            grpc.predict("nothing", images)


def test_any_number_of_images_in_order(probe_server: Server, one_by_one: Answers) -> None:
    numbered = [(f"{i}.png", IMAGES[i % len(IMAGES)]) for i in range(200)]
    numbered[77] = ("bad.png", b"junk")
    with probe_server.client() as client:
        predictions = list(
            client.predict_all("probes", iter(numbered), options={"on_error": "skip"}, at_once=3)
        )
    names = [name for name, _ in numbered]
    assert [prediction.raw["sample"] for prediction in predictions] == names
    assert isinstance(predictions[77], Prediction)
    assert predictions[77].error is not None
    for index, prediction in enumerate(predictions):
        if index != 77:
            assert prediction.label == one_by_one[index % len(IMAGES)][0]


def test_answers_in_lines_and_tensors(probe_server: Server, one_by_one: Answers) -> None:
    def post(accept: str) -> requests.Response:
        return requests.post(
            url(probe_server, "/predictions/probes"),
            files=[("file", ("a.png", each, "image/png")) for each in IMAGES],
            headers={"Accept": accept},
            timeout=60,
        )

    lines = post("application/jsonl")
    assert lines.headers["content-type"] == "application/jsonl"
    assert json.loads(lines.headers["ensemble-policy"])["name"] == "majority"
    rows = [json.loads(line) for line in lines.text.splitlines()]
    same([(row["label"], row["score"]) for row in rows], one_by_one)
    tensors = load(post("application/octet-stream").content)
    assert tensors["scores"].flatten().tolist() == pytest.approx([s for _, s in one_by_one])


def test_too_many_samples(probe_server: Server) -> None:
    answer = requests.post(
        url(probe_server, "/predictions/probes"),
        files=[("file", ("a.png", IMAGES[0], "image/png"))] * 65,
        timeout=60,
    )
    assert answer.status_code == 413
    assert "limits.max_samples" in answer.json()["message"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.sampled_from(
            [b"PK\x03\x04", b"\x93NUMPY\x01", b"\x1f\x8b\x08", b'{"inputs":[{}]}']
        ).flatmap(lambda start: st.binary(max_size=80).map(lambda rest: start + rest)),
    ),
    content_type=st.sampled_from(
        ["", "image/png", "application/json", "application/octet-stream", "text/plain"]
    ),
    header=st.sampled_from([None, "0", "5", "99999", "-1", "x"]),
)
def test_the_worker_answers_any_body_of_any_type(
    probe_server: Server, body: bytes, content_type: str, header: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    if header is not None:
        headers["Inference-Header-Content-Length"] = header
    answer = requests.post(
        url(probe_server, "/predictions/probes"), data=body, headers=headers, timeout=30
    )
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    assert answer.json()
