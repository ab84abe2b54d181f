"""The protocol of everything that computes members: one or several members in one call.

Three classes implement it. `SingleMember` runs a member as it was saved, `fused.FusedMembers` runs
small members of one architecture through `torch.vmap`, and `compiled.CompiledMembers` runs what the
build made for OpenVINO or AOTInductor. `executables.load_executables` chooses between them, and is
where a further one is added.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from .loading import LoadedMember

UNLIMITED = sys.maxsize
"""The `max_batch_size` of an executable that takes any number of samples in one call."""


class Executable(Protocol):
    """Computes the raw outputs of one or several members for a batch."""

    @property
    def members(self) -> tuple[int, ...]:
        """Positions in the ensemble of the members that the executable computes, ascending."""

    @property
    def concurrent(self) -> bool:
        """Whether several threads may call it at the same time."""

    @property
    def uses_all_threads(self) -> bool:
        """Whether a call computes on all threads of the worker, whichever thread makes it."""

    @property
    def max_batch_size(self) -> int:
        """The largest number of samples that one call takes."""

    def pays_for(self, num_samples: int) -> bool:
        """Return whether it computes so many samples faster than its members run one by one."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute the members on a batch.

        Args:
            batch: float32 (N, channels, height, width).

        Returns:
            Raw outputs, float32 (M members, N samples, outputs).
        """


@dataclass(frozen=True, eq=False)
class SingleMember:
    """Runs one member with the library that its weights format belongs to.

    Attributes:
        position: position of the member in the ensemble.
        loaded: the member as a function, (N, channels, height, width) -> (N, outputs).
    """

    position: int
    loaded: LoadedMember
    concurrent: ClassVar[bool] = False
    uses_all_threads: ClassVar[bool] = False
    max_batch_size: ClassVar[int] = UNLIMITED

    @property
    def members(self) -> tuple[int, ...]:
        """The position of the member, alone."""
        return (self.position,)

    def pays_for(self, num_samples: int) -> bool:
        """Return True: no other executable computes a smaller part of the member."""
        return True

    def __call__(self, batch: Tensor) -> Tensor:
        """Compute raw outputs, float32 (1, N samples, outputs)."""
        return self.loaded(batch).unsqueeze(0)
