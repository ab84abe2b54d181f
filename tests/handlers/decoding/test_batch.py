"""The decode stage: one bad or too large request does not change what its neighbours get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probe_ensemble import image, probes

from torchserve_ensemble.handlers.base.errors import BusyError, SampleError, TooLargeError
from torchserve_ensemble.handlers.decoding.batch import (
    DecodedSamples,
    SamplesToDecode,
    decode_batch,
)
from torchserve_ensemble.handlers.engine.member_scores import MemberScores, State
from torchserve_ensemble.handlers.engine.score_cache import ScoreCache
from torchserve_ensemble.handlers.requests.budget import RequestBudget
from torchserve_ensemble.handlers.requests.parsing import Sample
from torchserve_ensemble.handlers.service import EnsembleService

NEVER = float("inf")
DARK, BRIGHT = image(0.1), image(0.9)


@pytest.fixture
def service(tmp_path: Path) -> EnsembleService:
    return probes(tmp_path, limits={"max_request_pixels": 1000})


def request(
    service: EnsembleService, *images: bytes, may_use_cache: bool = True
) -> SamplesToDecode:
    """Make a request of some image files for the decode stage."""
    samples = [Sample(f"image {i}", i, data) for i, data in enumerate(images)]
    return SamplesToDecode(samples, (0, 1, 2), RequestBudget(service.spec.limits), may_use_cache)


def decode(service: EnsembleService, *requests: SamplesToDecode, **settings: Any) -> list[Any]:
    """Decode a batch, without a cache and a time limit unless `settings` has them."""
    settings = {"cache": None, "end": NEVER, **settings}
    return decode_batch(requests, service._decoder, **settings)


def test_an_unreadable_sample_and_an_exceeded_budget_stay_with_their_requests(
    service: EnsembleService,
) -> None:
    first, excess, last = decode(
        service,
        request(service, DARK, b"junk", BRIGHT),
        request(service, *[DARK] * 9),
        request(service, BRIGHT),
    )
    assert isinstance(excess, TooLargeError)
    assert first.indices == (0, 2)
    assert isinstance(first.errors[1], SampleError)
    brightness = [
        each.by_preprocessing[0].pixels.float().mean().item() / 255
        for each in (*first.inputs, *last.inputs)
    ]
    assert brightness == pytest.approx([0.1, 0.9, 0.9], abs=0.01)


def test_samples_with_cached_scores_are_not_decoded(service: EnsembleService) -> None:
    cache = ScoreCache(100_000, "archive")
    scores = MemberScores(
        scores=torch.rand(3, 1, 2),
        logits=torch.rand(3, 1, 2),
        states=torch.full((3, 1), State.ANSWERED, dtype=torch.uint8),
    )
    cache.put(cache.key(DARK), scores, 0)
    both, lazy = decode(
        service,
        request(service, BRIGHT, DARK),
        request(service, DARK, may_use_cache=False),
        cache=cache,
    )
    assert isinstance(both, DecodedSamples)
    assert list(both.cached) == [1]
    assert torch.equal(both.cached[1].scores, scores.scores[:, 0])
    assert both.keys == {0: cache.key(BRIGHT), 1: cache.key(DARK)}
    assert (lazy.cached, lazy.keys) == ({}, {})
    assert (cache.hits, cache.misses) == (1, 1)


def test_images_that_are_not_decoded_in_time_may_be_sent_again(service: EnsembleService) -> None:
    (late,) = decode(service, request(service, DARK), end=-NEVER)
    assert isinstance(late.errors[0], BusyError)
