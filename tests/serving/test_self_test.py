"""What a client of the self-test says of models that are no ensembles, and of large probes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from torchserve_ensemble.handlers.archive.self_test import Probe, SelfTest
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.self_test import repeat_self_test

PROBE = Probe("one.png", b"image", {"a": (0.9,)}, {"label": "cat"}, decision_is_stable=True)
LARGE = replace(PROBE, name="two.png", content=None)
SELF_TEST = SelfTest((PROBE, LARGE), ("cat",), "scores", {"include": "scores"}, 0.01)
PREDICTION = {"label": "cat", "members": {"a": {"scores": {"cat": 0.9}}}}


class Client(InferenceClient):
    """A client whose every request has the same answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answer = answer

    def predict(self, *arguments: Any, **options: Any) -> Any:
        return self.answer


def test_probes_that_a_description_leaves_out_are_counted() -> None:
    client = Client({"model": {"archive": "sha256:0"}, "predictions": [PREDICTION]})
    passed = repeat_self_test(client, "pets", SELF_TEST)
    assert (passed.num_probes, passed.num_left_out) == (1, 1)
    assert passed.archive == "sha256:0"
    with pytest.raises(ServerError, match="too large for a description; name its archive"):
        repeat_self_test(client, "pets", replace(SELF_TEST, probes=(LARGE,)))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"predictions": 1, "model": {}},
        {"predictions": [], "model": {"archive": None}},
        {"predictions": [1], "model": {"archive": None}},
        {"predictions": [{"members": {"a": {"scores": {"cat": "?"}}}}], "model": {"archive": ""}},
    ],
)
def test_a_model_that_is_no_ensemble_is_named(answer: Any) -> None:
    with pytest.raises(ServerError, match="pets at .* does not answer as an ensemble"):
        repeat_self_test(Client(answer), "pets", SELF_TEST)
