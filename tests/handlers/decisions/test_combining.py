"""Tests that requests which share a batch or a choice are answered as if each were alone."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_ensemble import ask, form, image, probes, refusal
from torch import Tensor

from torchserve_ensemble.handlers import service as service_module
from torchserve_ensemble.handlers.base.errors import PolicyError
from torchserve_ensemble.handlers.decisions.choosing import Chooser
from torchserve_ensemble.handlers.engine.member_inputs import PreparedImage
from torchserve_ensemble.handlers.engine.member_scores import MemberScores, State
from torchserve_ensemble.handlers.engine.runtime import NOT_FINITE
from torchserve_ensemble.handlers.policies import (
    ClassWeightsModel,
    FittedModel,
    StackingModel,
)
from torchserve_ensemble.handlers.requests.options import RequestOptions, parse_options
from torchserve_ensemble.handlers.requests.raw_request import RawRequest
from torchserve_ensemble.handlers.service import EnsembleService

NUM_MEMBERS = 6
NUM_LEVELS = 16
TASKS = ("classification", "presence", "multilabel", "regression")


def tabled(folder: Path, task: str, on_failure: str) -> EnsembleService:
    """Load an ensemble of six members whose scores come from a table of 16 levels of brightness.

    The scores of an image are therefore exactly equal in every batch. Some members fail on some
    images, and one member gives logits for some images only.
    """
    folder.mkdir()
    service = probes(
        folder,
        task=task,
        bounds=(0.1, 0.3, 0.4, 0.6, 0.7, 0.9),
        failures={"on_failure": on_failure, "min_members": 2, "deadline_ms": 1e9},
        policies={"default": "mean"},
    )
    generator = torch.Generator().manual_seed(7)
    labels = len(service.spec.score_labels)
    logits = torch.randn(NUM_MEMBERS, NUM_LEVELS, labels, generator=generator)
    logits[:, 0] = 0.25
    scores = logits.softmax(dim=-1) if task == "classification" else logits.sigmoid()
    states = torch.full((NUM_MEMBERS, NUM_LEVELS), int(State.ANSWERED), dtype=torch.uint8)
    states[2, 5] = states[3, 5] = states[1, 9] = State.FAILED
    states[0, 11] = State.LATE
    states[:, 13] = State.FAILED
    logits[4, 1::3] = torch.inf

    def run(
        images: Sequence[PreparedImage],
        *,
        selected: Tensor,
        deadlines: Sequence[float | None],
        end: float,
    ) -> MemberScores:
        resized = [image.by_preprocessing[0] for image in images]
        levels = [int(each.pixels[0, 0, 0]) // NUM_LEVELS for each in resized if each is not None]
        outputs = MemberScores(
            scores=scores[:, levels],
            logits=logits[:, levels],
            states=torch.where(selected, states[:, levels], torch.tensor(0, dtype=torch.uint8)),
        )
        for member, sample in (outputs.states == State.FAILED).nonzero().tolist():
            outputs.reasons[member, sample] = f"no table for {levels[sample]}"
        return outputs

    service._runtime.run = run  # type: ignore[method-assign,assignment]
    return service


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], EnsembleService]:
    folder = tmp_path_factory.mktemp("tabled")
    return {
        (task, rule): tabled(folder / f"{task}-{rule}", task, rule)
        for task in TASKS
        for rule in ("fail", "drop", "neutral")
    }


IMAGES = [image((level + 0.5) * NUM_LEVELS / 255) for level in range(NUM_LEVELS)]
POLICIES = (
    *("mean", "weighted_mean", "median", "trimmed_mean", "geometric_mean", "product", "logit_mean"),
    *("borda", "max", "any", "majority", "at_least(k=5)", "plurality", "weighted_vote"),
    *("unanimous", "cascade(confidence=0.8)", "a and not b", "mean(min_confidence=0.6)"),
    *("mean(max_disagreement=0.3)", "mean(threshold=0.4)", "nonsense"),
)
OPTIONS = {
    "policy": POLICIES,
    "members": ("a", "c,a", "f,e,d,c,b,a", "a,z"),
    "weights": ('{"a": 2.5}', '{"a": 0, "b": 0.1}', '{"a": -1}'),
    "thresholds": ('{"a": 0.1}', '{"b": 0.9}'),
    "top_k": ("1", "3"),
    "fields": (
        *("label", "labels,members", "scores,values", "score,model", "uncertainty,label"),
        "label,labels,members,model,policy,sample,score,values",
    ),
    "include": ("uncertainty", "scores"),
    "response": ("json", "lines", "flexserve"),
    "stream": ("one", "two"),
    "frame_order": ("1", "2,1", "1,3,2"),
    "smooth": ("majority", "average"),
}


def random_request(generator: random.Random) -> RawRequest:
    """Make a request with random images and options; the service can answer many of them."""
    samples = generator.choices(IMAGES, k=generator.choice([1, 1, 2, 3]))
    if generator.random() < 0.1:
        samples[-1] = b"junk"
    names = generator.sample(sorted(OPTIONS), generator.choice([0, 1, 1, 2]))
    options = {name: generator.choice(OPTIONS[name]) for name in names}
    return form(*samples, on_error=generator.choice(["fail", "skip"]), **options)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rule", ["fail", "drop", "neutral"])
def test_each_byte_of_an_answer_is_as_if_it_were_alone(
    services: dict[tuple[str, str], EnsembleService], task: str, rule: str
) -> None:
    service, generator = services[task, rule], random.Random(task + rule)
    answered = 0
    for _ in range(40):
        batch = [random_request(generator) for _ in range(8)]
        together = service.answer(batch)
        service._chooser._choices.clear()
        assert together == [service.answer([request])[0] for request in batch]
        answered += sum(response.status == 200 for response in together)
    assert answered > 100, "of 320"


def test_answers_that_cannot_be_written_together_are_written_one_by_one(
    services: dict[tuple[str, str], EnsembleService], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(results: object) -> None:
        raise ZeroDivisionError

    service = services["classification", "drop"]
    batch = [form(image(0.3)), form(image(0.4)), form(image(0.5), policy="any")]
    expected = service.answer(batch)
    monkeypatch.setattr(service_module, "predictions_of", broken)
    assert service.answer(batch) == expected


SIMILAR_OPTIONS: list[dict[str, Any]] = [
    {},
    *({"policy": "at_least", "policy_parameters": {"k": k}} for k in (1, 1.0, True, "1", 2, [1])),
    *({"policy": "mean", "policy_parameters": {"threshold": t}} for t in (0.0, -0.0, None, 1)),
    *({"weights": {"a": weight}} for weight in (0, -0.0, 1)),
    {"weights": {"b": 1}},
    {"thresholds": {"b": 1}},
    *({"members": members} for members in ("a,b", "b,a", "a", "z")),
    *({"deadline_ms": limit} for limit in (1, 2)),
    *({"lazy": lazy, "policy": "any"} for lazy in (None, True, False)),
    *({"include": fields} for fields in ("uncertainty", "scores")),
    *({"fields": fields} for fields in ("uncertainty", "scores")),
    {"response": "flexserve"},
    {"policy": "nonsense"},
]


def content_of_choice(chooser: Chooser, options: RequestOptions) -> Any:
    """Return everything that the choice for some options contains, or the refusal's message."""
    try:
        choice = chooser.choose(options)
    except PolicyError as error:
        return error.message
    panel = choice.panel
    tensors = [repr(each.tolist()) for each in (panel.weights, panel.member_thresholds)]
    policy = repr(choice.policy)
    return policy, tensors, choice.members, choice.deadline_ms, choice.lazy, repr(choice.options)


class TestCachedChoices:
    def test_a_cached_choice_equals_a_new_one(
        self, services: dict[tuple[str, str], EnsembleService]
    ) -> None:
        chooser = services["presence", "fail"]._chooser
        for options in map(parse_options, SIMILAR_OPTIONS * 2):
            new = Chooser(chooser.spec, chooser.catalogue, chooser.model)
            assert content_of_choice(chooser, options) == content_of_choice(new, options)

    def test_equal_options_share_a_choice(
        self, services: dict[tuple[str, str], EnsembleService]
    ) -> None:
        chooser = services["presence", "fail"]._chooser
        one = chooser.choose(parse_options({"policy": "any", "stream": "one"}))
        assert chooser.choose(parse_options({"policy": "any", "frame_order": "1,2"})) is one
        assert (one.options.stream, one.options.frame_order) == (None, None)
        assert chooser.choose(parse_options({"policy": "any", "top_k": 1})) is not one

    def test_the_number_of_cached_choices_is_limited(
        self, services: dict[tuple[str, str], EnsembleService]
    ) -> None:
        chooser = services["presence", "fail"]._chooser
        first = chooser.choose(parse_options({"top_k": 1}))
        for count in range(2, 600):
            chooser.choose(parse_options({"top_k": count}))
            assert chooser.choose(parse_options({"top_k": 1})) is first, "the most recent one"
        assert len(chooser._choices) == 256
        chooser.choose(parse_options({"policy": "at_least", "policy_parameters": {"k": "1"}}))
        before = set(chooser._choices)
        padded = {"policy": "at_least", "policy_parameters": {"k": " " * 4000 + "1"}}
        assert dict(chooser.choose(parse_options(padded)).policy.parameters) == {"k": 1}
        assert set(chooser._choices) == before

    @pytest.mark.parametrize("k", ["99", '"x"', "[[[1]]]", "{}", "true"])
    def test_a_refusal_is_not_cached(
        self, services: dict[tuple[str, str], EnsembleService], k: str
    ) -> None:
        chooser = services["presence", "fail"]._chooser
        chooser._choices.clear()
        options = {"policy": "at_least", "policy_parameters": f'{{"k": {k}}}'}
        with pytest.raises(PolicyError, match="parameter k"):
            chooser.choose(parse_options(options))
        assert not chooser._choices


class TestMissingMembers:
    """Each sample reports the members that failed on it or were late for it."""

    @staticmethod
    def service(
        folder: Path,
        states: list[list[State]],
        *,
        reasons: dict[tuple[int, int], str] | None = None,
        members: int = 3,
        task: str = "presence",
        **failures: Any,
    ) -> EnsembleService:
        """Load an ensemble whose members answer, fail or are late as given.

        Args:
            folder: folder for the files.
            states: for each member the state of each sample.
            reasons: (member, sample) -> why the member fails.
            members: number of members, which are named a, b ...
            task: the task of the spec.
            failures: keys of the spec under ``failures``.
        """
        bounds = (0.1, 0.2, 0.3, 0.4, 0.6)[:members]
        service = probes(
            folder, task=task, bounds=bounds, failures={"deadline_ms": 1e9, **failures}
        )
        run_all = service._runtime.run

        def run(images: Sequence[PreparedImage], **options: Any) -> MemberScores:
            outputs = run_all(images, **options)
            for member, of_samples in enumerate(states):
                for sample, state in enumerate(of_samples[: len(images)]):
                    if state is State.FAILED:
                        reason = (reasons or {}).get((member, sample), "broken")
                        outputs.fail(member, torch.tensor([sample]), reason)
                    if state is State.LATE:
                        outputs.states[member, sample] = state
                    if state is not State.ANSWERED:
                        outputs.scores[member, sample] = outputs.logits[member, sample] = torch.nan
            return outputs

        service._runtime.run = run  # type: ignore[method-assign,assignment]
        return service

    ANSWERED, FAILED, LATE = State.ANSWERED, State.FAILED, State.LATE

    def test_each_sample_has_its_own_reasons(self, tmp_path: Path) -> None:
        states = [
            [self.ANSWERED] * 4,
            [self.FAILED, self.FAILED, self.LATE, self.FAILED],
            [self.ANSWERED] * 4,
        ]
        reasons = {(1, 0): "not finite", (1, 1): "too bright", (1, 3): "not finite"}
        service = self.service(tmp_path, states, reasons=reasons, on_failure="drop")
        rows = ask(service, *[image(0.5)] * 4)["predictions"]
        assert [row.get("failed_members") for row in rows] == [
            {"b": "not finite"},
            {"b": "too bright"},
            None,
            {"b": "not finite"},
        ]
        assert [row.get("late_members") for row in rows] == [None, None, ["b"], None]
        assert len({json.dumps(row["members"]) for row in rows}) == 1

    def test_members_that_change_places_are_not_mixed(self, tmp_path: Path) -> None:
        states = [
            [self.FAILED, self.LATE],
            [self.LATE, self.FAILED],
            [self.ANSWERED, self.ANSWERED],
        ]
        service = self.service(tmp_path, states, on_failure="neutral")
        first, second = ask(service, image(0.5), image(0.5), policy="any")["predictions"]
        assert (first["failed_members"], first["late_members"]) == ({"a": "broken"}, ["b"])
        assert (second["failed_members"], second["late_members"]) == ({"b": "broken"}, ["a"])

    @pytest.mark.parametrize("failures", [{"on_failure": "fail"}, {"on_failure": "drop"}])
    def test_each_refused_sample_has_its_own_status(
        self, tmp_path: Path, failures: dict[str, Any]
    ) -> None:
        states = [
            [self.ANSWERED] * 4,
            [self.FAILED, self.LATE, self.FAILED, self.ANSWERED],
            [self.ANSWERED] * 4,
        ]
        reasons = {(1, 0): "not finite", (1, 2): "too bright"}
        service = self.service(tmp_path, states, reasons=reasons, min_members=3, **failures)
        rows = ask(service, *[image(0.5)] * 4, on_error="skip")["predictions"]
        assert [row["error"]["code"] for row in rows[:3]] == [500, 504, 500]
        assert "not finite" in rows[0]["error"]["message"]
        assert "deadline" in rows[1]["error"]["message"]
        assert "too bright" in rows[2]["error"]["message"]
        assert "error" not in rows[3]

    @pytest.mark.parametrize("rule", ["drop", "neutral"])
    @pytest.mark.parametrize(
        ("policy", "needs"),
        [
            ("at_least(k=3)", "3"),
            ("a and b", "needs member b"),
            ("not b", "needs member b"),
            ("b", "needs member b"),
            ('member("b") or mean >= 0.9', "needs member b"),
            ("any(a, b) and mean(c, b) > 0.1", "needs member b"),
            ("a and at_least(k=3)", "k=3"),
            ("a or at_least(k=3) >= 0.5", "k=3"),
            ("average_of_maximum(buckets=3)", "buckets=3"),
            ("maximum_of_average(buckets=3, threshold=0.4)", "buckets=3"),
            ("at_least(k=3, min_confidence=0.1)", "3"),
            ("weighted_mean", "voting weights of a, c are all 0"),
            ("weighted_vote(max_disagreement=0.5)", "voting weights of a, c are all 0"),
            ("a and weighted_mean >= 0.2", "voting weights of a, c are all 0"),
        ],
    )
    def test_a_policy_that_cannot_do_without_a_member_is_no_mistake_of_the_client(
        self, tmp_path: Path, rule: str, policy: str, needs: str
    ) -> None:
        states = [[self.ANSWERED] * 3, [self.FAILED, self.LATE, self.ANSWERED], [self.ANSWERED] * 3]
        service = self.service(tmp_path, states, on_failure=rule)
        options = {"policy": policy, "weights": '{"a": 0, "c": 0}'}
        rows = ask(service, *[image(0.5)] * 3, **options, on_error="skip")["predictions"]
        failed, late = (row["error"] for row in rows[:2])
        assert (failed["code"], failed["type"]) == (500, "MemberError")
        assert "sample 0 (file[0]): member b: broken; " in failed["message"]
        assert needs in failed["message"]
        assert (late["code"], late["type"]) == (504, "LateError")
        assert needs in late["message"]
        assert "error" not in rows[2]

    def test_both_missing_members_are_named(self, tmp_path: Path) -> None:
        states = [[self.FAILED], [self.LATE], [self.ANSWERED]]
        service = self.service(tmp_path, states, on_failure="drop")
        error = refusal(service, image(0.5), policy="b or c")
        assert error["code"] == 500
        assert "member a: broken; member b: had not begun in time; " in error["message"]

    @pytest.mark.parametrize("rule", ["drop", "neutral"])
    @pytest.mark.parametrize("policy", ["weighted_mean", "a or weighted_vote"])
    def test_a_clients_mistake_stays_one_when_a_member_fails(
        self, tmp_path: Path, rule: str, policy: str
    ) -> None:
        service = self.service(
            tmp_path, [[self.ANSWERED], [self.FAILED], [self.ANSWERED]], on_failure=rule
        )
        weights = '{"a": 0, "b": 0, "c": 0}'
        error = refusal(service, image(0.5), policy=policy, weights=weights)
        assert (error["code"], error["type"]) == (400, "PolicyError")
        assert "voting weights of a, b, c are all 0" in error["message"]
        error = refusal(service, image(0.5), policy="at_least(k=3)", members="a,c")
        assert error["code"] == 400

    @pytest.mark.parametrize("kind", ["stacking", "per_class_weights"])
    def test_a_fitted_policy_without_one_of_its_members(self, tmp_path: Path, kind: str) -> None:
        service = self.service(
            tmp_path, [[self.ANSWERED], [self.FAILED], [self.ANSWERED]], on_failure="drop"
        )
        names = ("a", "b", "c")
        fitted: dict[str, FittedModel] = {
            "stacking": StackingModel(names, torch.ones(1, 3), torch.zeros(1)),
            "per_class_weights": ClassWeightsModel(names, torch.tensor([[0.0], [1.0], [0.0]])),
        }
        chooser = service._chooser
        catalogue = replace(chooser.catalogue, fitted=fitted)
        service._chooser = Chooser(chooser.spec, catalogue, chooser.model)
        error = refusal(service, image(0.5), policy=kind)
        message = error["message"]
        assert (error["code"], error["type"]) == (500, "MemberError")
        assert "member b: broken; the" in message or "all have weight 0" in message

    def test_policies_that_can_do_without_a_member_do(self, tmp_path: Path) -> None:
        service = self.service(
            tmp_path, [[self.ANSWERED], [self.FAILED], [self.ANSWERED]], on_failure="drop"
        )
        for policy in ("majority", "at_least(k=2)", "a and c", "cascade(confidence=1)", "all"):
            (row,) = ask(service, image(0.5), policy=policy)["predictions"]
            assert row["failed_members"] == {"b": "broken"}

    @pytest.mark.parametrize(
        ("state", "reason", "code"),
        [
            (State.FAILED, NOT_FINITE, 400),
            (State.FAILED, "RuntimeError: broken", 400),
            (State.LATE, "", 504),
        ],
    )
    def test_a_failure_on_preprocessed_numbers_is_their_senders_and_lateness_is_not(
        self, tmp_path: Path, state: State, reason: str, code: int
    ) -> None:
        service = self.service(tmp_path, [[state]], reasons={(0, 0): reason})
        file = io.BytesIO()
        np.save(file, np.zeros((1, 3, 2, 2), dtype=np.float32))
        (response,) = service.answer([form(file.getvalue())])
        assert response.status == code, response.body
