"""All response formats contain the same labels and scores."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_ensemble import form, image, probes, read
from safetensors import safe_open
from safetensors.torch import load

from torchserve_ensemble.handlers.answers.encoding import Response
from torchserve_ensemble.handlers.answers.json_lines import MEDIA_TYPE as LINES
from torchserve_ensemble.handlers.answers.tensors import MEDIA_TYPE as TENSORS
from torchserve_ensemble.handlers.requests.raw_request import HEADER_LENGTH, Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService

DARK, GRAY, BRIGHT = image(0.1), image(0.6), image(0.9)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> EnsembleService:
    return probes(tmp_path_factory.mktemp("probes"))


def answer(service: EnsembleService, *images: bytes, accept: str = "", **options: str) -> Response:
    """Send images as a form, and return the response, which must be no refusal."""
    headers = {"accept": accept} if accept else {}
    (response,) = service.answer([form(*images, headers=headers, **options)])
    assert response.status == 200, response.body
    return response


def infer(
    service: EnsembleService, *images: bytes, outputs: list[str] | None = None, **parameters: Any
) -> Response:
    """Send images as a request of Open Inference v2, and return the response."""
    document: dict[str, Any] = {
        "id": "7",
        "inputs": [
            {
                "name": "images",
                "datatype": "BYTES",
                "shape": [len(images)],
                "data": [base64.b64encode(each).decode() for each in images],
                "parameters": {"content_type": "base64"},
            }
        ],
        "parameters": parameters,
    }
    if outputs is not None:
        document["outputs"] = [{"name": name} for name in outputs]
    (response,) = service.answer([RawRequest([Part("body", "application/json", document)])])
    return response


def test_json_lines_are_the_predictions_of_the_json_answer(service: EnsembleService) -> None:
    expected = read(answer(service, DARK, b"junk", BRIGHT, on_error="skip"))
    response = answer(service, DARK, b"junk", BRIGHT, on_error="skip", accept=LINES)
    assert response.content_type == LINES
    lines = [json.loads(line) for line in response.body.splitlines()]
    assert [line.pop("index") for line in lines] == [0, 1, 2]
    assert lines == expected["predictions"]
    assert json.loads(response.headers["ensemble-policy"]) == expected["policy"]
    assert response.headers["ensemble-version"] == "1.0"


def test_flexserve_lists_the_labels_of_each_member(service: EnsembleService) -> None:
    response = answer(service, DARK, b"junk", GRAY, on_error="skip", response="flexserve")
    assert read(response) == {
        "a": ["dark", None, "bright"],
        "b": ["dark", None, "bright"],
        "c": ["dark", None, "dark"],
    }


def test_flexserve_classify_has_the_label_of_the_first_sample(service: EnsembleService) -> None:
    """FlexServe's route /classify answers for the first file only, and without lists."""
    response = answer(service, GRAY, DARK, response="flexserve-classify")
    assert read(response) == {"a": "bright", "b": "bright", "c": "dark"}


def test_tensors_are_the_scores_of_the_json_answer(
    service: EnsembleService, tmp_path: Path
) -> None:
    expected = read(answer(service, DARK, GRAY, include="scores"))["predictions"]
    response = answer(service, DARK, b"junk", GRAY, on_error="skip", accept=TENSORS)
    tensors = load(response.body)
    assert tensors["answered"].tolist() == [True, False, True]
    assert tensors["scores"].isnan().any(dim=1).tolist() == [False, True, False]
    for row, prediction in zip((0, 2), expected, strict=True):
        assert tensors["scores"][row].tolist() == pytest.approx(list(prediction["scores"].values()))
        for position, name in enumerate("abc"):
            member = prediction["members"][name]["scores"].values()
            assert tensors["member_scores"][position, row].tolist() == pytest.approx(list(member))
    (tmp_path / "answer").write_bytes(response.body)
    with safe_open(tmp_path / "answer", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["labels"]) == ["dark", "bright"]
    assert json.loads(metadata["members"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, application/json;q=0.9", "application/json"),
        ("application/x-ndjson", LINES),
        ("image/webp, application/octet-stream", TENSORS),
        ("nonsense", "application/json"),
    ],
)
def test_the_accept_header_chooses_the_format(
    service: EnsembleService, accept: str, content_type: str
) -> None:
    assert answer(service, DARK, accept=accept).content_type == content_type


class TestOpenInference:
    def test_all_outputs(self, service: EnsembleService) -> None:
        content = read(infer(service, DARK, GRAY, include="uncertainty"))
        expected = read(answer(service, DARK, GRAY, include="scores,uncertainty"))["predictions"]
        assert content["id"] == "7"
        assert (content["model_name"], content["model_version"]) == ("probes", "1.0")
        outputs = {output["name"]: output for output in content["outputs"]}
        assert outputs["label"]["data"] == [p["label"] for p in expected]
        assert outputs["score"]["data"] == [p["score"] for p in expected]
        assert outputs["scores"]["shape"] == [2, 2]
        flat = [score for p in expected for score in p["scores"].values()]
        assert outputs["scores"]["data"] == flat
        member = [score for p in expected for score in p["members"]["c"]["scores"].values()]
        assert outputs["c.scores"]["data"] == member
        for name in ("predictive_entropy", "mutual_information", "disagreement"):
            assert outputs[name]["data"] == [p["uncertainty"][name] for p in expected]

    def test_chosen_outputs_and_policy(self, service: EnsembleService) -> None:
        content = read(infer(service, GRAY, outputs=["label", "a.scores"], policy="any"))
        assert [output["name"] for output in content["outputs"]] == ["label", "a.scores"]
        assert content["parameters"]["policy"] == "any"

    def test_an_unknown_output(self, service: EnsembleService) -> None:
        response = infer(service, DARK, outputs=["lable"])
        assert response.status == 400
        assert "output 'lable' does not exist" in read(response)["error"]

    def test_a_refusal_has_the_key_error_of_the_protocol(self, service: EnsembleService) -> None:
        response = infer(service, DARK, policy="nonsense")
        content = read(response)
        assert response.status == 400
        assert content["error"] == content["message"]
        response = infer(service, b"junk")
        assert (response.status, read(response)["index"]) == (400, 0)

    def test_skipped_samples(self, service: EnsembleService) -> None:
        content = read(infer(service, DARK, b"junk", on_error="skip"))
        outputs = {output["name"]: output["data"] for output in content["outputs"]}
        assert outputs["label"] == ["dark", ""]
        assert outputs["score"][1] is None
        assert outputs["answered"] == [True, False]
        assert outputs["error"][0] == ""
        assert "sample 1" in outputs["error"][1]

    def test_pixels_and_inputs(self, service: EnsembleService) -> None:
        pixels = np.full((1, 4, 4, 3), 230, np.uint8)
        inputs = np.full((1, 3, 2, 2), 230 / 255, np.float32)
        both = [self.scores(service, each) for each in (pixels, inputs)]
        expected = read(answer(service, image(230 / 255), include="scores"))["predictions"][0]
        for scores in both:
            assert scores == pytest.approx(list(expected["scores"].values()), abs=1e-6)

    @staticmethod
    def scores(service: EnsembleService, array: np.ndarray[Any, Any]) -> list[float]:
        """Send an array as binary data, and return the combined scores."""
        datatype = "UINT8" if array.dtype == np.uint8 else "FP32"
        document = {
            "inputs": [
                {
                    "name": "x",
                    "datatype": datatype,
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "outputs": [{"name": "scores"}],
        }
        header = json.dumps(document).encode()
        request = RawRequest(
            [Part("body", "application/octet-stream", bytearray(header + array.tobytes()))],
            {HEADER_LENGTH: str(len(header))},
        )
        (response,) = service.answer([request])
        scores: list[float] = read(response)["outputs"][0]["data"]
        return scores


class TestPreprocessedInputs:
    def test_instances_of_numbers(self, service: EnsembleService) -> None:
        bright = np.full((3, 2, 2), 0.9).tolist()
        document = {"instances": [bright, {"image": {"b64": base64.b64encode(DARK).decode()}}]}
        (response,) = service.answer([RawRequest([Part("body", "application/json", document)])])
        labels = [p["label"] for p in read(response)["predictions"]]
        assert labels == ["bright", "dark"]

    @pytest.mark.parametrize(
        ("instance", "words"),
        [
            (np.zeros((3, 2, 3)).tolist(), "has shape (3, 2, 3), and the members take (3, 2, 2)"),
            ([[[float("nan")] * 2] * 2] * 3, "must be finite"),
            ([[1, 2], [3]], "rectangular"),
            ([1, 2], "send (channels, height, width)"),
        ],
    )
    def test_numbers_that_no_member_accepts_are_refused(
        self, service: EnsembleService, instance: Any, words: str
    ) -> None:
        document = {"instances": [instance]}
        (response,) = service.answer([RawRequest([Part("body", "application/json", document)])])
        assert response.status == 400
        assert words in read(response)["message"]

    def test_an_overflow_of_preprocessed_inputs_is_the_clients_mistake(
        self, service: EnsembleService
    ) -> None:
        document = {"instances": [np.full((3, 2, 2), 3e38).tolist()]}
        (response,) = service.answer([RawRequest([Part("body", "application/json", document)])])
        assert response.status == 400
        assert "member a: " in read(response)["message"]

    def test_members_with_different_preprocessings_accept_images_only(self, tmp_path: Path) -> None:
        probes(tmp_path)
        members = json.loads((tmp_path / "ensemble.yaml").read_text())["members"]
        members[0]["preprocessing"] = {"resize": [4, 4]}
        members[1]["preprocessing"] = members[2]["preprocessing"] = "small"
        service = probes(tmp_path, members=members)
        document = {"instances": [np.zeros((3, 2, 2)).tolist()]}
        (response,) = service.answer([RawRequest([Part("body", "application/json", document)])])
        assert "different preprocessings" in read(response)["message"]
