"""Tests that repeated images get the same answer without running members, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probe_ensemble import ask, form, image, probes, read

from torchserve_ensemble.handlers.engine.member_scores import MemberScores, State
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.engine.score_cache import CachedScores, ScoreCache, merge_cached
from torchserve_ensemble.handlers.service import EnsembleService

DARK, DIM, GRAY, BRIGHT = image(0.1), image(0.4), image(0.6), image(0.9)


@pytest.fixture
def service(tmp_path: Path) -> EnsembleService:
    return probes(tmp_path, task="presence", runtime={"score_cache_mb": 1})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each batch the number of samples that the members were run on."""
    num_samples: list[int] = []
    original = Runtime.run

    def spy(self: Runtime, images: Any, **settings: Any) -> MemberScores:
        num_samples.append(len(images))
        return original(self, images, **settings)

    monkeypatch.setattr(Runtime, "run", spy)
    return num_samples


def counts(service: EnsembleService) -> tuple[int, int]:
    """Return the numbers of hits and misses of a service's cache."""
    assert service.cache is not None
    return service.cache.hits, service.cache.misses


def test_the_cache_is_off_by_default(tmp_path: Path) -> None:
    service = probes(tmp_path)
    assert service.cache is None
    assert service.describe()["score_cache"] is None


def test_repeats_run_no_members_and_get_the_same_answer(
    service: EnsembleService, ran: list[int]
) -> None:
    first = ask(service, DARK, BRIGHT)
    assert ask(service, DARK, BRIGHT) == first
    bright, _, dark = ask(service, BRIGHT, GRAY, DARK)["predictions"]
    # Samples are named after their place in the request, which is another one here.
    places = [{"sample": "file[1]"}, {"sample": "file[0]"}]
    assert [bright | places[0], dark | places[1]] == first["predictions"][::-1]
    assert ran == [2, 0, 1]
    assert counts(service) == (4, 3)
    assert service.describe()["score_cache"]["samples"] == 3
    assert service.describe()["score_cache"]["max_bytes"] == 1_000_000


def test_each_request_has_its_own_policy_over_the_same_scores(
    service: EnsembleService, ran: list[int]
) -> None:
    labels = [
        ask(service, DIM, policy=policy)["predictions"][0]["label"] for policy in ("any", "all")
    ]
    assert labels == ["bright", "dark"]
    assert ran == [1, 0]


def test_members_that_an_earlier_request_left_out_are_run_later(
    service: EnsembleService, ran: list[int]
) -> None:
    ask(service, DIM, members="a,b")
    ask(service, DIM, members="b")
    whole = ask(service, DIM)
    assert ran == [1, 0, 1]
    assert list(whole["predictions"][0]["members"]) == ["a", "b", "c"]
    ask(service, DIM, members="a,c")
    assert ran[-1] == 0


def test_a_damaged_image_leaves_its_cached_neighbours_alone(service: EnsembleService) -> None:
    for _ in range(2):
        good, bad, mixed = service.answer([form(DARK), form(b"nothing"), form(DARK, BRIGHT)])
        assert (good.status, bad.status, mixed.status) == (200, 400, 200)
        assert [p["label"] for p in read(mixed)["predictions"]] == ["dark", "bright"]


def test_failures_are_not_cached(tmp_path: Path, ran: list[int]) -> None:
    service = probes(
        tmp_path,
        arguments={"b": {"raises_above": 0.8}},
        failures={"on_failure": "drop"},
        runtime={"score_cache_mb": 1},
    )
    for _ in range(2):
        assert ask(service, BRIGHT, DARK)["predictions"][0]["label"] == "bright"
    assert ran == [2, 1]


def test_lazy_requests_do_not_use_the_cache(service: EnsembleService) -> None:
    ask(service, DIM, policy="any", lazy="true")
    assert counts(service) == (0, 0)


def outputs(value: float) -> MemberScores:
    """Make the scores of two members for one sample, all of them equal to a value."""
    return MemberScores(
        scores=torch.full((2, 1, 3), value),
        logits=torch.full((2, 1, 3), value),
        states=torch.full((2, 1), State.ANSWERED, dtype=torch.uint8),
    )


def test_the_archive_is_part_of_the_key() -> None:
    assert ScoreCache(10, "sha256:a").key(b"x") != ScoreCache(10, "sha256:b").key(b"x")


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 6000))
def test_the_least_recently_used_entries_are_evicted(images: list[int], max_bytes: int) -> None:
    cache = ScoreCache(max_bytes, "a")
    for number in images:
        key = cache.key(bytes([number]))
        entry = cache.get(key, [0, 1])
        if entry is not None:
            assert float(entry.scores[0, 0]) == number
        else:
            cache.put(key, outputs(number), 0)
        assert cache.bytes <= max_bytes
        assert cache.bytes == sum(entry.size_bytes for entry in cache._entries.values())
    assert cache.hits + cache.misses == len(images)
    capacity = max_bytes // cached(outputs(0)).size_bytes
    latest = list(dict.fromkeys(reversed(images)))[:capacity]
    assert set(cache._entries) == {cache.key(bytes([number])) for number in latest}


def cached(outputs: MemberScores) -> CachedScores:
    """Make the cache entry of the first sample."""
    return CachedScores(outputs.scores[:, 0], outputs.logits[:, 0], outputs.states[:, 0])


def test_reasons_of_failures_stay_with_their_samples_among_cached_ones() -> None:
    computed = outputs(1.0)
    computed.fail(1, torch.tensor([0]), "broken")
    entry = cached(outputs(5.0))
    whole = merge_cached(computed, [1], {0: entry, 2: entry})
    assert whole.reasons == {(1, 1): "broken"}
    assert whole.scores[0, :, 0].tolist() == [5.0, 1.0, 5.0]
    assert whole.states.tolist() == [[1, 1, 1], [1, 2, 1]]
