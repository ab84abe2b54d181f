"""Loads the members of an ensemble one by one for a build, so that memory holds few of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..handlers.base.memory import return_free_memory
from ..handlers.base.threads import SERIAL
from ..handlers.deployment import catalogue, choose_device
from ..handlers.engine.member_inputs import MemberInputs
from ..handlers.engine.runtime import Runtime
from ..handlers.inputs.preprocessing import preprocessors_of
from ..handlers.members.executable import SingleMember
from ..handlers.members.executables import Executables, load_saved
from ..handlers.members.loading import LoadedMember
from ..handlers.service import EnsembleService, Identity
from ..handlers.spec import EnsembleSpec

_MAX_KEPT_BYTES = 256 * 1024**2
"""Members stay loaded while their files together have at most this size. Beyond it those that were
not used for the longest time are freed, and loaded again when they are needed."""


class SavedMembers(Sequence[LoadedMember]):
    """The members of an ensemble as they were saved, each loaded when it is asked for.

    Args:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.
        load: function from a member's position to the member.
    """

    def __init__(
        self, spec: EnsembleSpec, folder: Path, load: Callable[[int], LoadedMember]
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._load = load
        # Position of a member -> the member; the one that was used last is the last.
        self._loaded: dict[int, LoadedMember] = {}

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self._spec.members)

    def __getitem__(self, position: Any) -> Any:
        """Return the member at a position.

        Raises:
            MemberError: the member cannot be loaded.
            IndexError: there is no such member.
        """
        if position >= len(self):
            raise IndexError(position)
        loaded = self._loaded.pop(position, None)
        if loaded is None:
            self._free_all_but(_MAX_KEPT_BYTES - self._num_bytes(position))
            loaded = self._load(position)
        self._loaded[position] = loaded
        return loaded

    def _free_all_but(self, num_bytes: int) -> None:
        """Free members until the others have at most so many bytes."""
        total = sum(map(self._num_bytes, self._loaded))
        for position in list(self._loaded):
            if total <= num_bytes:
                return
            total -= self._num_bytes(position)
            del self._loaded[position]
            free_memory()

    def _num_bytes(self, position: int) -> int:
        path = self._folder / self._spec.members[position].weights
        return path.stat().st_size if path.is_file() else 0


def service_of(spec: EnsembleSpec, folder: Path) -> EnsembleService:
    """Make a service that runs members with torch as a worker does, and frees large ones after use.

    Args:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.

    Raises:
        SpecError: a policy or preprocessing does not exist.
        MemberError: a member cannot be loaded, or does not fit the spec.
    """
    policies = catalogue(spec, folder)
    if spec.rollout is not None:
        catalogue(spec, folder, candidate=True)  # A wrong policy of the candidate ends the build.
    device = choose_device(spec, gpu=None)
    preprocessors, group_of_member = preprocessors_of(spec, folder, device)
    example_inputs = [each(each.examples(3)) for each in preprocessors]

    def load(position: int) -> LoadedMember:
        return load_saved(spec, position, folder, example_inputs[group_of_member[position]])

    members = SavedMembers(spec, folder, load)
    for position in range(len(members)):
        # While it answers a request, a service takes an error of loading for one of the sample.
        members[position]
    singles = [
        SingleMember(position, LoadedMember(member.name, partial(_run, members, position), None))
        for position, member in enumerate(spec.members)
    ]
    inputs = MemberInputs(preprocessors, group_of_member, device)
    runtime = Runtime(spec, Executables(singles), inputs, dict.fromkeys(singles, 0.0), device)
    identity = Identity(spec.name, spec.version)
    return EnsembleService(spec, runtime, identity, policies, SERIAL, None)


def _run(members: SavedMembers, position: int, batch: Tensor) -> Tensor:
    outputs: Tensor = members[position](batch)
    return outputs


def free_memory() -> None:
    """Return the memory of members that are no longer referred to to the system."""
    gc.collect()
    return_free_memory()
