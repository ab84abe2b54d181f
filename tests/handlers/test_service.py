"""The whole pipeline without a server: requests in, responses out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from probe_ensemble import ask, form, image, probes, read, refusal

from torchserve_ensemble.handlers import service as service_module
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.engine import runtime
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService

DARK, DIM, GRAY, BRIGHT = image(0.1), image(0.4), image(0.6), image(0.9)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> EnsembleService:
    return probes(tmp_path_factory.mktemp("probes"))


def test_every_sample_is_answered_in_order(service: EnsembleService) -> None:
    answer = ask(service, BRIGHT, DARK, GRAY, policy="majority")
    assert [p["label"] for p in answer["predictions"]] == ["bright", "dark", "bright"]
    last = answer["predictions"][2]
    assert {name: m["label"] for name, m in last["members"].items()} == {
        "a": "bright",
        "b": "bright",
        "c": "dark",
    }
    assert last["members"]["a"]["score"] == pytest.approx(torch.tensor(3.5).sigmoid().item(), 1e-3)
    assert answer["model"] == {"name": "probes", "version": "1.0", "archive": None}
    assert answer["policy"] == {"name": "majority", "parameters": {}}


@pytest.mark.parametrize(
    ("policy", "label"), [("any", "bright"), ("all", "dark"), ("at_least(k=2)", "dark")]
)
def test_each_request_of_a_batch_has_its_own_policy(
    tmp_path: Path, policy: str, label: str
) -> None:
    service = probes(tmp_path, task="presence")
    requests = [form(DIM, policy=policy), form(DARK, policy="any"), form(BRIGHT, policy="all")]
    labels = [read(response)["predictions"][0]["label"] for response in service.answer(requests)]
    assert labels == [label, "dark", "bright"]


def test_a_bad_request_leaves_its_neighbours_alone(service: EnsembleService) -> None:
    requests = [form(BRIGHT), form(b"<html>"), form(DARK, policy="nonsense"), form(), form(DARK)]
    responses = service.answer(requests)
    assert [response.status for response in responses] == [200, 400, 400, 400, 200]
    assert read(responses[1])["type"] == "SampleError"
    assert read(responses[2])["type"] == "PolicyError"
    assert read(responses[4])["predictions"][0]["label"] == "dark"


def test_half_a_character_in_a_key_is_the_clients_mistake(service: EnsembleService) -> None:
    bad = RawRequest([Part("body", "application/json", {"instances": [], "\ud800": 1})])
    good, refused = service.answer([form(DARK), bad])
    assert (good.status, refused.status) == (200, 400)
    assert read(refused)["message"]


def test_an_unforeseen_error_fails_its_request_alone(
    service: EnsembleService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: RawRequest, limits: object) -> None:
        if request.headers:
            raise ZeroDivisionError
        return original(request, limits)

    original = service_module.parse_request
    monkeypatch.setattr(service_module, "parse_request", broken)
    good, bad = service.answer([form(DARK), form(DARK, headers={"x": "y"})])
    assert (good.status, bad.status) == (200, 500)
    assert "worker's log" in read(bad)["message"]


def test_answers_do_not_depend_on_the_neighbours(service: EnsembleService) -> None:
    alone = [read(service.answer([form(each)])[0]) for each in (DARK, GRAY, BRIGHT)]
    together = service.answer([form(DARK), form(b"junk"), form(GRAY), form(BRIGHT)])
    assert [read(together[i]) for i in (0, 2, 3)] == alone


def test_a_bad_sample_is_named_or_skipped(service: EnsembleService) -> None:
    refused = refusal(service, DARK, b"junk", b"", BRIGHT)
    assert (refused["code"], refused["index"]) == (400, 1)
    assert [sample["index"] for sample in refused["samples"]] == [1, 2]
    predictions = ask(service, DARK, b"junk", BRIGHT, on_error="skip")["predictions"]
    assert [p.get("label") for p in predictions] == ["dark", None, "bright"]
    assert predictions[1]["error"]["index"] == 1
    assert refusal(service, b"junk", on_error="skip")["code"] == 400


def test_an_abstaining_presence_names_no_label(tmp_path: Path) -> None:
    service = probes(tmp_path, task="presence")
    sure, unsure = ask(service, BRIGHT, GRAY, policy="unanimous")["predictions"]
    assert (sure["label"], sure["abstained"]) == ("bright", False)
    assert (unsure["label"], unsure["labels"], unsure["abstained"]) == (None, [], True)


def test_multilabel_gives_labels_and_scores(tmp_path: Path) -> None:
    service = probes(tmp_path, task="multilabel")
    (prediction,) = ask(service, BRIGHT)["predictions"]
    assert prediction["labels"] == ["bright"]
    assert set(prediction["scores"]) == {"bright", "dark"}
    assert "label" not in prediction


def test_regression_gives_values_and_their_spread(tmp_path: Path) -> None:
    service = probes(tmp_path, task="regression", policies={"default": "mean"})
    (prediction,) = ask(service, image(0.6))["predictions"]
    assert prediction["values"]["brightness"] == pytest.approx(1.0, abs=0.02)
    assert prediction["standard_deviation"]["brightness"] > 0
    assert "uncertainty" in refusal(service, DARK, include="uncertainty")["message"]


class TestFields:
    def test_narrow(self, service: EnsembleService) -> None:
        assert ask(service, DARK, fields="label") == {"predictions": [{"label": "dark"}]}

    def test_scores_of_all_labels(self, service: EnsembleService) -> None:
        (prediction,) = ask(service, DARK, include="scores")["predictions"]
        assert sum(prediction["scores"].values()) == pytest.approx(1)
        assert set(prediction["members"]["a"]["scores"]) == {"dark", "bright"}

    def test_top_k(self, service: EnsembleService) -> None:
        (prediction,) = ask(service, DARK, top_k="1")["predictions"]
        assert [best["label"] for best in prediction["top_k"]] == ["dark"]
        assert prediction["top_k"][0]["score"] == prediction["score"]

    def test_uncertainty(self, service: EnsembleService) -> None:
        sure, unsure = ask(service, image(0.0), GRAY, include="uncertainty")["predictions"]
        for name in ("predictive_entropy", "mutual_information", "disagreement"):
            assert 0 <= sure["uncertainty"][name] < unsure["uncertainty"][name]


class TestConsumersOwnChoice:
    def test_members(self, service: EnsembleService) -> None:
        (prediction,) = ask(service, DIM, members="b,c", policy="all")["predictions"]
        assert list(prediction["members"]) == ["b", "c"]
        assert prediction["label"] == "dark"

    def test_only_members_that_someone_wants_are_run(
        self, service: EnsembleService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[int] = []
        original = runtime.Runtime._run_executable

        def spy(
            self: runtime.Runtime, executable: object, batch: torch.Tensor, *rest: object
        ) -> None:
            ran.append(len(batch))
            original(self, executable, batch, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(runtime.Runtime, "_run_executable", spy)
        service.answer([form(DARK, DIM, members="a"), form(GRAY, members="a,c")])
        assert ran == [3, 1]

    def test_weights(self, service: EnsembleService) -> None:
        one = ask(service, GRAY, policy="weighted_mean", weights='{"a": 0, "b": 0}')
        assert one["predictions"][0]["label"] == "dark"

    def test_thresholds(self, tmp_path: Path) -> None:
        service = probes(tmp_path, task="presence")
        assert ask(service, DIM, policy="any")["predictions"][0]["label"] == "bright"
        strict = '{"a": 1.0}'
        (prediction,) = ask(service, DIM, policy="any", thresholds=strict)["predictions"]
        assert prediction["label"] == "dark"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"members": "a,d"}, "no member 'd'"),
            ({"members": "a,a"}, "twice"),
            ({"weights": '{"aa": 1}'}, "did you mean 'a'"),
            ({"weights": '{"a": -1}'}, "weights"),
            ({"thresholds": '{"a": 2}'}, "thresholds"),
            ({"members": "a,b", "policy": "at_least(k=3)"}, "exceeds the number of members, 2"),
        ],
    )
    def test_mistakes(self, service: EnsembleService, options: dict[str, str], words: str) -> None:
        refused = refusal(service, DARK, **options)
        assert refused["code"] == 400
        assert words in refused["message"]

    def test_a_deployment_may_forbid_it(self, tmp_path: Path) -> None:
        service = probes(tmp_path, policies={"client_overrides": False})
        assert "not allowed here" in refusal(service, DARK, members="a")["message"]


class TestFailedMembers:
    def test_fail_is_the_default(self, tmp_path: Path) -> None:
        service = probes(tmp_path, arguments={"b": {"raises_above": 0.8}})
        (bad,) = service.answer([form(BRIGHT)])
        assert bad.status == 500
        assert "member b: it failed" in read(bad)["message"]
        assert "too bright" in read(bad)["message"]

    def test_a_sample_that_a_member_cannot_take_fails_alone(self, tmp_path: Path) -> None:
        service = probes(tmp_path, arguments={"b": {"raises_above": 0.8}})
        images = [[DARK], [GRAY, DIM], [BRIGHT], [DIM], [DARK, BRIGHT]]
        responses = service.answer([form(*each) for each in images])
        assert [response.status for response in responses] == [200, 200, 500, 200, 500]
        assert read(responses[0]) == ask(service, DARK)

    def test_drop_answers_with_the_others(self, tmp_path: Path) -> None:
        service = probes(
            tmp_path, arguments={"b": {"nan_below": 0.2}}, failures={"on_failure": "drop"}
        )
        dark, bright = ask(service, DARK, BRIGHT)["predictions"]
        assert list(dark["members"]) == ["a", "c"]
        assert "not finite" in dark["failed_members"]["b"]
        assert dark["label"] == "dark"
        assert list(bright["members"]) == ["a", "b", "c"]
        assert "failed_members" not in bright

    def test_too_few_members_refuse(self, tmp_path: Path) -> None:
        service = probes(
            tmp_path,
            arguments={"b": {"nan_below": 0.2}},
            failures={"on_failure": "drop", "min_members": 3},
        )
        refused = refusal(service, DARK)
        assert refused["code"] == 500
        assert "min_members is 3" in refused["message"]

    def test_a_policy_that_the_rest_cannot_satisfy(self, tmp_path: Path) -> None:
        service = probes(
            tmp_path, arguments={"b": {"nan_below": 0.2}}, failures={"on_failure": "drop"}
        )
        refused = refusal(service, DARK, policy="at_least(k=3)")
        assert "exceeds the number of members, 2" in refused["message"]

    def test_nan_names_the_sample(self, tmp_path: Path) -> None:
        service = probes(tmp_path, arguments={"b": {"nan_below": 0.2}})
        refused = refusal(service, BRIGHT, DARK)
        assert refused["code"] == 500
        assert "sample 1 (file[1]): member b: its scores are not finite" in refused["message"]

    def test_neutral_asks_for_as_many_votes_as_before(self, tmp_path: Path) -> None:
        """b is missing; a says bright, c dark: one vote of three is no majority, of two a tie."""
        arguments = {"b": {"nan_below": 0.45}}
        labels_by_rule = {}
        for rule in ("drop", "neutral"):
            folder = tmp_path / rule
            folder.mkdir()
            service = probes(
                folder, task="presence", arguments=arguments, failures={"on_failure": rule}
            )
            labels_by_rule[rule] = [
                ask(service, DIM, GRAY, policy=policy)["predictions"][0]["label"]
                for policy in ("any", "all", "majority", "at_least(k=1)", "mean")
            ]
            if rule == "drop":
                assert "exceeds" in refusal(service, DIM, policy="at_least(k=3)")["message"]
            else:
                refused = refusal(service, DIM, policy="at_least(k=3)")["message"]
                assert "needs 3 votes, and 2 of 3 members answered" in refused
        assert labels_by_rule["drop"] == labels_by_rule["neutral"]
        service = probes(
            tmp_path,
            task="presence",
            bounds=(0.2, 0.3, 0.5, 0.5, 0.5),
            arguments={name: {"nan_below": 0.45} for name in "cd"},
            failures={"on_failure": "neutral"},
        )
        (prediction,) = ask(service, DIM, policy="majority")["predictions"]
        assert prediction["label"] == "dark", "two of three votes, where five members need three"
        assert len(prediction["failed_members"]) == 2


class TestLazy:
    POLICIES = ("any", "all", "majority", "at_least(k=2)", "unanimous", "plurality")

    def test_decisions_stay_the_same_and_members_are_saved(self, tmp_path: Path) -> None:
        service = probes(tmp_path, task="presence")
        images = [image(level / 20) for level in range(21)]
        for policy in (*self.POLICIES, "cascade(confidence=0.9)"):
            full = ask(service, *images, policy=policy)["predictions"]
            lazy = ask(service, *images, policy=policy, lazy="true")["predictions"]
            assert [p["label"] for p in lazy] == [p["label"] for p in full], policy
            assert all("members" not in p for p in lazy)
            used = [p["members_used"] for p in lazy]
            assert set(used) <= {1, 2, 3}
            assert sum(used) < 3 * len(images), policy

    def test_requests_of_one_policy_share_their_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = probes(tmp_path, task="presence", policies={"lazy": True, "default": "any"})
        ran: list[int] = []
        original = runtime.Runtime._run_executable

        def spy(
            self: runtime.Runtime, executable: object, batch: torch.Tensor, *rest: object
        ) -> None:
            ran.append(len(batch))
            original(self, executable, batch, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(runtime.Runtime, "_run_executable", spy)
        responses = service.answer([form(BRIGHT), form(DARK, BRIGHT), form(BRIGHT, lazy="false")])
        assert [response.status for response in responses] == [200] * 3
        assert ran[0] == 3
        assert ran[1:] == [1, 1, 1], "dark goes on alone; the last request runs all, as one"
        assert "members" in read(responses[2])["predictions"][0]

    def test_large_requests_in_micro_batches(self, tmp_path: Path) -> None:
        service = probes(tmp_path, task="presence", runtime={"micro_batch": 2})
        images = [DARK, BRIGHT, GRAY, DIM, BRIGHT]
        full = ask(service, *images, policy="all")["predictions"]
        lazy = ask(service, *images, policy="all", lazy="true")["predictions"]
        assert [p["label"] for p in lazy] == [p["label"] for p in full]

    def test_a_failing_member_falls_back_to_the_deployments_rule(self, tmp_path: Path) -> None:
        service = probes(
            tmp_path,
            task="presence",
            arguments={"b": {"raises_above": 0.55}},
            failures={"on_failure": "drop"},
        )
        (prediction,) = ask(service, BRIGHT, policy="all", lazy="true")["predictions"]
        assert list(prediction["failed_members"]) == ["b"]

    def test_policies_that_need_all_members_get_them(self, tmp_path: Path) -> None:
        service = probes(tmp_path, task="presence")
        (prediction,) = ask(service, GRAY, policy="mean", lazy="true")["predictions"]
        assert len(prediction["members"]) == 3


class TestDeadline:
    def test_all_late(self, service: EnsembleService) -> None:
        past = time.monotonic() - 10
        (response,) = service.answer([form(DARK, deadline_ms="9000")], arrived=past)
        assert response.status == 504
        assert "deadline of 9000 ms" in read(response)["message"]

    def test_a_request_in_time_is_answered_beside_a_late_one(
        self, service: EnsembleService
    ) -> None:
        past = time.monotonic() - 10
        responses = service.answer(
            [form(DARK, deadline_ms="9000"), form(BRIGHT), form(GRAY, deadline_ms="90000")],
            arrived=past,
        )
        assert [response.status for response in responses] == [504, 200, 200]

    def test_members_that_ran_in_time_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service = probes(tmp_path, failures={"on_failure": "drop", "deadline_ms": 1500})
        now = 0.0
        run = runtime.Runtime._run_members

        def run_for_a_second(*arguments: Any) -> None:
            nonlocal now
            if arguments[1]:
                now += 1
            run(*arguments)

        monkeypatch.setattr(runtime.Runtime, "_run_members", run_for_a_second)
        monkeypatch.setattr(runtime.time, "monotonic", lambda: now)
        (response,) = service.answer([form(DARK)], arrived=0.0)
        (prediction,) = read(response)["predictions"]
        assert len(prediction["late_members"]) == 1
        assert sorted([*prediction["members"], *prediction["late_members"]]) == ["a", "b", "c"]


class TestSequences:
    def test_majority_of_the_window(self, service: EnsembleService) -> None:
        frames = [DARK, BRIGHT, DARK, DARK, BRIGHT, BRIGHT]
        answer = ask(service, *frames, smooth="majority", smooth_window="3", stream="camera-1")
        assert answer["stream"] == "camera-1"
        smoothed = [p["smoothed"]["label"] for p in answer["predictions"]]
        assert smoothed == ["dark", None, "dark", "dark", "dark", "bright"]
        assert answer["sequence"]["label"] == "bright"

    def test_moving_average(self, service: EnsembleService) -> None:
        answer = ask(service, DARK, BRIGHT, smooth="average", smooth_alpha="0.4")
        first, second = answer["predictions"]
        assert first["smoothed"]["score"] == first["score"]
        assert second["smoothed"]["label"] == "dark"

    def test_frame_order_is_time(self, service: EnsembleService) -> None:
        answer = ask(
            service, BRIGHT, DARK, DARK, smooth="majority", frame_order="3,1,2", smooth_window="1"
        )
        assert [p["label"] for p in answer["predictions"]] == ["bright", "dark", "dark"]
        assert answer["sequence"]["label"] == "bright"
        refused = refusal(service, DARK, frame_order="1,2")
        assert "2 numbers for 1 samples" in refused["message"]

    def test_requests_do_not_influence_each_other(self, service: EnsembleService) -> None:
        request = form(BRIGHT, smooth="average", stream="one")
        first, _, again = service.answer([request, form(DARK, stream="one"), request])
        assert first.body == again.body


class TestLimits:
    def test_samples(self, tmp_path: Path) -> None:
        refused = refusal(probes(tmp_path, limits={"max_samples": 2}), DARK, DARK, DARK)
        assert refused["code"] == 413
        assert "limits.max_samples" in refused["message"]

    def test_bytes(self, tmp_path: Path) -> None:
        refused = refusal(probes(tmp_path, limits={"max_request_bytes": 100}), DARK, DARK)
        assert refused["code"] == 413
        assert "limits.max_request_bytes" in refused["message"]

    def test_pixels(self, tmp_path: Path) -> None:
        refused = refusal(probes(tmp_path, limits={"max_pixels": 8}), DARK)
        assert refused["code"] == 413
        assert "limits.max_pixels" in refused["message"]


def test_describe_lists_all_that_a_client_may_choose(service: EnsembleService) -> None:
    description = service.describe()
    assert [member["name"] for member in description["members"]] == ["a", "b", "c"]
    assert description["labels"] == ["dark", "bright"]
    assert description["input_shape"] == (3, 2, 2)
    assert {"policy", "on_error", "fields"} <= {option["name"] for option in description["options"]}
    assert json.loads(json.dumps(description))


def test_a_wrong_default_policy_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="policies of ensemble 'probes'"):
        probes(tmp_path, policies={"default": "meen"})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["body", "file", "policy", "fields", "frames", "members", "x"]),
            st.sampled_from(["", "image/png", "application/json", "text/plain"]),
            st.one_of(
                st.binary(max_size=64),
                st.sampled_from([DARK, BRIGHT, b"any", b"true", b"\x93NUMPY", b"PK\x03\x04"]),
                st.recursive(
                    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda inner: (
                        st.lists(inner, max_size=3)
                        | st.dictionaries(
                            st.sampled_from(["instances", "inputs", "b64", "parameters", "name"]),
                            inner,
                            max_size=3,
                        )
                    ),
                    max_leaves=6,
                ),
            ),
        ),
        max_size=4,
    ),
    headers=st.dictionaries(
        st.sampled_from(["accept", "policy", "inference-header-content-length", "response"]),
        st.text(max_size=8),
        max_size=2,
    ),
)
def test_whatever_comes_is_answered_or_refused_as_the_clients_mistake(
    service: EnsembleService, parts: list[tuple[str, str, object]], headers: dict[str, str]
) -> None:
    request = RawRequest([Part(*part) for part in parts], headers)
    neighbour, response = service.answer([form(DARK), request])
    assert neighbour.status == 200
    assert response.status == 200 or 400 <= response.status < 500, response.body


class TestKernels:
    """oneDNN makes a kernel for each layer and number of samples."""

    def batch_sizes_of_warm_up(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return the sizes of the batches that a service with batch_size 5 runs to warm up."""
        service = probes(folder, serving={"batch_size": 5})
        sizes: list[int] = []
        monkeypatch.setattr(service._runtime, "run", lambda images: sizes.append(len(images)))
        service.warm_up()
        return sizes

    def test_kernels_of_every_batch_size_are_made_before_the_first_request(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.batch_sizes_of_warm_up(tmp_path, monkeypatch) == [5, 1, 2, 3, 4]

    def test_a_slow_ensemble_is_ready_after_the_full_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service_module, "_MAX_WARM_UP_SECONDS", 0.0)
        assert self.batch_sizes_of_warm_up(tmp_path, monkeypatch) == [5]

    @pytest.mark.parametrize("configured", [None, "77"])
    def test_more_kernels_are_cached_than_by_default_unless_the_environment_sets_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str | None
    ) -> None:
        name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
        monkeypatch.setenv(name, configured or "")
        if configured is None:
            monkeypatch.delenv(name)
        probes(tmp_path)
        assert os.environ[name] == (configured or "16384")


@pytest.mark.parametrize("default", ["any", "mean"])
def test_a_named_policy_may_have_a_policys_own_name(tmp_path: Path, default: str) -> None:
    """It may have this name whether it is the default or not."""
    policies = {"default": default, "named": {"any": "any"}}
    service = probes(tmp_path, task="presence", policies=policies)
    assert ask(service, BRIGHT, policy="any")["predictions"][0]["label"] == "bright"
