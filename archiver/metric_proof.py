"""What the build asks of labelled data: does lower precision make the ensemble decide worse?

`tuning.metric_loss` has the answer. This module describes what it gives to the build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..handlers.engine.member_inputs import MemberInputs
from ..handlers.members.loading import LoadedMember
from ..handlers.spec import EnsembleSpec


@dataclass(frozen=True)
class MetricLoss:
    """How much worse the default policy decides when members run in lower precision.

    Attributes:
        right_before: share of the held-out images that the saved members decide right.
        right_after: the same share in lower precision.
        num_images: number of held-out images; of groups, if images belong to groups.
        num_worse: how many of these the saved members decide right, and lower precision wrong.
        upper_bound: 95 % upper confidence bound, over all images like these, of the share that is
            decided worse. Images that are decided better are not set off against them.
    """

    right_before: float
    right_after: float
    num_images: int
    num_worse: int
    upper_bound: float

    def __str__(self) -> str:
        return (
            f"{self.right_before:.2%} of the held-out decisions are right as saved, "
            f"{self.right_after:.2%} in lower precision; {self.num_worse} of {self.num_images} are "
            f"worse, at most {self.upper_bound:.2%} of all images with 95 % confidence"
        )


class MetricProof(Protocol):
    """Compares members in lower precision with the saved members, on labelled images.

    Precisions are chosen with the development images. The held-out images only prove the result.
    """

    @property
    def max_loss(self) -> float:
        """The largest `MetricLoss.upper_bound` allowed: the spec's ``runtime.max_metric_loss``."""
        ...

    def development_inputs(self, position: int) -> Tensor:
        """Make the inputs of a member for the development images.

        Args:
            position: the member's position in the ensemble.

        Returns:
            float32 (n, channels, height, width).
        """
        ...

    def development_loss(self, positions: Sequence[int], outputs: Tensor) -> float:
        """Compute the share of development images that are decided worse.

        Args:
            positions: the members that run in lower precision; all others run as they were saved.
            outputs: their raw outputs for the first n development images, (M members, n, outputs).
        """
        ...

    def held_out_inputs(self, position: int) -> Iterator[Tensor]:
        """Yield the inputs of a member for the held-out images, in batches.

        Args:
            position: the member's position in the ensemble.
        """
        ...

    def loss(self, outputs: Mapping[int, Tensor]) -> MetricLoss:
        """Bound how much worse the ensemble decides.

        Args:
            outputs: position of each member that runs in lower precision -> its raw outputs for
                all held-out images, float32 (N, outputs).
        """
        ...


ProofMaker = Callable[[EnsembleSpec, Path, Sequence[LoadedMember], MemberInputs], MetricProof]
"""Makes the proof for an ensemble, its folder, its saved members and the maker of their inputs."""
