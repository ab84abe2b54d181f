"""Sends the same images to two versions of a model, and compares decisions and latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...handlers.archive.self_test import decision_of
from ...handlers.base.errors import EnsembleError, RequestError, ServerError
from ..client import InferenceClient
from ..load import percentile

_MIN_REQUESTS = 20
"""Each version gets at least so many requests, so that one slow answer is not its median."""

_MAX_SHOWN_DISAGREEMENTS = 3

_MAX_RELATIVE_DIFFERENCE = 0.01
"""Two values of a regression agree if they differ by no more than this share of the larger one."""


@dataclass(frozen=True)
class Bounds:
    """What a comparison must show; None sets no bound.

    Attributes:
        min_agreement: smallest share of images for which both versions decide the same.
        max_slowdown: largest ratio of the new version's median latency to the old one's.
    """

    min_agreement: float | None = None
    max_slowdown: float | None = None


@dataclass
class Comparison:
    """How two versions answered the same images.

    Attributes:
        num_images: number of images that both versions answered.
        disagreements: for each image that they decide otherwise its name and both decisions.
        old_seconds: latencies of the old version.
        new_seconds: latencies of the new version.
        old_failure: why the old version gave no answer, after which it was not asked again; empty
            if it answered.
    """

    num_images: int = 0
    disagreements: list[str] = field(default_factory=list)
    old_seconds: list[float] = field(default_factory=list)
    new_seconds: list[float] = field(default_factory=list)
    old_failure: str = ""

    @property
    def agreement(self) -> float:
        """Share of the images for which both versions decide the same."""
        return 1 - len(self.disagreements) / self.num_images

    @property
    def slowdown(self) -> float:
        """Ratio of the new version's median latency to the old one's."""
        return statistics.median(self.new_seconds) / statistics.median(self.old_seconds)

    def __str__(self) -> str:
        if self.old_failure:
            return (
                f"not compared, since the old version does not answer ({self.old_failure}); "
                f"latency median {_milliseconds(self.new_seconds, 0.5)}"
            )
        same = self.num_images - len(self.disagreements)
        shown = "; ".join(self.disagreements[:_MAX_SHOWN_DISAGREEMENTS])
        return (
            f"{same} of {self.num_images} decisions are the same"
            + (f" ({shown}{', ...' if len(self.disagreements) > 3 else ''})" if shown else "")
            + f"; latency median {_milliseconds(self.old_seconds, 0.5)} -> "
            f"{_milliseconds(self.new_seconds, 0.5)}, p99 {_milliseconds(self.old_seconds, 0.99)}"
            f" -> {_milliseconds(self.new_seconds, 0.99)}"
        )

    def check(self, bounds: Bounds) -> None:
        """Check that the new version keeps to the bounds.

        Raises:
            ServerError: it does not, or the bounds cannot be checked since the old version does
                not answer.
        """
        has_bounds = bounds.min_agreement is not None or bounds.max_slowdown is not None
        if self.old_failure:
            if has_bounds:
                raise ServerError(
                    "--min-agreement and --max-slowdown need the answers of the old version, which "
                    f"does not answer ({self.old_failure}): leave them out"
                )
            return
        if bounds.min_agreement is not None and self.agreement < bounds.min_agreement:
            raise ServerError(
                f"the versions agree on {self.agreement:.3f} of the images, and --min-agreement is "
                f"{bounds.min_agreement:g}: {self}"
            )
        if bounds.max_slowdown is not None and self.slowdown > bounds.max_slowdown:
            raise ServerError(
                f"the new version takes {self.slowdown:.2f} times as long as the old one, and "
                f"--max-slowdown is {bounds.max_slowdown:g}: {self}"
            )


def compare(
    client: InferenceClient,
    name: str,
    old: str,
    new: str,
    images: Sequence[tuple[str, bytes]],
    *,
    on_request: Callable[[int], None] = lambda total: None,
) -> Comparison:
    """Send images to both versions in turns, one image a request.

    Args:
        client: a client of the server.
        name: name of the model.
        old: version that serves now.
        new: version that is to serve.
        images: file name and contents of each image; at least one. Few images are sent repeatedly.
        on_request: called with the number of images to send, after each.

    Raises:
        RequestError: the new version refuses an image.
        ServerError: the new version does not answer, or fails.
    """
    result = Comparison()
    # The first answer of a version may take longer, because its connection is new.
    _ask(client, name, new, images[0])
    total = max(len(images), _MIN_REQUESTS)
    for number in range(total):
        image = images[number % len(images)]
        is_repetition = number >= len(images)
        before = None
        if not result.old_failure:
            try:
                before, seconds = _ask(client, name, old, image)
                result.old_seconds.append(seconds)
            except RequestError as error:
                before = {"refused": str(error)}
            except EnsembleError as error:
                result.old_failure = error.message
        after, seconds = _ask(client, name, new, image)
        result.new_seconds.append(seconds)
        if before is not None and not is_repetition:
            result.num_images += 1
            if not _agree(before, after):
                result.disagreements.append(f"{image[0]}: {_text(before)} -> {_text(after)}")
        on_request(total)
    return result


def _ask(
    client: InferenceClient, name: str, version: str, image: tuple[str, bytes]
) -> tuple[dict[str, Any], float]:
    """Return what a version decides for an image, and the seconds until its answer.

    Raises:
        RequestError: the version refuses the image.
        ServerError: the version does not answer, or fails.
    """
    begin = time.monotonic()
    try:
        predictions = client.predict(name, [image], version=version)["predictions"]
    except EnsembleError as error:
        explained = type(error)(f"{name} {version} does not answer {image[0]}: {error}")
        raise explained from error
    seconds = time.monotonic() - begin
    # A bundle holds several samples, all of which are compared.
    decisions = {
        str(each.get("sample", number)): decision_of(each) or each.get("values", {})
        for number, each in enumerate(predictions)
    }
    return decisions, seconds


def _agree(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if before.keys() != after.keys():
        return False
    for key, value in before.items():
        other = after[key]
        if isinstance(value, float) and isinstance(other, float | int):
            if not math.isclose(value, other, rel_tol=_MAX_RELATIVE_DIFFERENCE, abs_tol=1e-9):
                return False
        elif isinstance(value, Mapping) and isinstance(other, Mapping):
            if not _agree(value, other):
                return False
        elif value != other:
            return False
    return True


def _text(decisions: Mapping[str, Any]) -> str:
    """Write the decisions for one image for people."""
    if "refused" in decisions:
        return "refused"
    return ", ".join(
        str(each.get("label") or each.get("labels") or ("nothing" if "abstained" in each else each))
        for each in decisions.values()
    )


def _milliseconds(seconds: Sequence[float], share: float) -> str:
    value = percentile(seconds, share)
    return "unknown" if value is None else f"{1000 * value:.1f} ms"
