"""Scores of samples that were seen before, so that no member runs for them again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .runtime import MemberScores, State

_OVERHEAD = 1024
"""Bytes that an entry takes beside its numbers: the key, Python's objects, three tensors."""


@dataclass(frozen=True)
class CachedScores:
    """What the members said about one sample.

    Attributes:
        scores: (M members, C score labels) float32; NaN where a member was not asked.
        logits: same shape.
        states: (M,) uint8 of `State`.
    """

    scores: Tensor
    logits: Tensor
    states: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = (self.scores, self.logits, self.states)
        return _OVERHEAD + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class ScoreCache:
    """The scores of the samples asked for last, in bounded memory.

    Two samples are the same if their bytes are; the archive's digest, which its members, labels and
    preprocessing are part of, belongs to the key. What a policy makes of the scores is computed
    anew, so that each request may have its own. Not for several threads.
    """

    def __init__(self, max_bytes: int, archive: str) -> None:
        """An empty one.

        Args:
            max_bytes: beyond it the samples go that were not asked for for the longest time.
            archive: its digest.
        """
        self._most = max_bytes
        self._archive = archive.encode()
        self._known: OrderedDict[bytes, CachedScores] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._known)

    def key(self, sample: bytes) -> bytes:
        """Of an encoded image."""
        return hashlib.sha256(self._archive + b"\0" + sample).digest()

    def find(self, key: bytes, members: Sequence[int]) -> CachedScores | None:
        """Scores in which all these members answered; counts a hit or a miss."""
        known = self._known.get(key)
        if known is None or not bool((known.states[list(members)] == State.ANSWERED).all()):
            self.misses += 1
            return None
        self._known.move_to_end(key)
        self.hits += 1
        return known

    def keep(self, key: bytes, outputs: MemberScores, column: int) -> None:
        """Remember what the members that answered said about one sample of a batch."""
        found = CachedScores(
            scores=outputs.scores[:, column].clone(),
            logits=outputs.logits[:, column].clone(),
            states=outputs.states[:, column].clone(),
        )
        answered = found.states == State.ANSWERED
        before = self._known.pop(key, None)
        if before is not None:
            self.bytes -= before.size
            # Other members may have been asked then.
            found = CachedScores(
                scores=torch.where(answered[:, None], found.scores, before.scores),
                logits=torch.where(answered[:, None], found.logits, before.logits),
                states=torch.where(answered, found.states, before.states),
            )
        if not bool((found.states == State.ANSWERED).any()) or found.size > self._most:
            return
        self._known[key] = found
        self.bytes += found.size
        while self.bytes > self._most:
            _, oldest = self._known.popitem(last=False)
            self.bytes -= oldest.size

    def describe(self) -> dict[str, int]:
        """How it fares."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "samples": len(self),
            "bytes": self.bytes,
            "max_bytes": self._most,
        }


def with_cached(
    computed: MemberScores, columns: Sequence[int], known: Mapping[int, CachedScores]
) -> MemberScores:
    """Computed and known scores as those of one batch.

    Args:
        computed: of the samples that were not known.
        columns: for each of them its position in the batch.
        known: of the others, by their position.
    """
    if not known:
        return computed
    members, _, labels = computed.scores.shape
    samples = len(columns) + len(known)
    whole = MemberScores(
        scores=torch.full((members, samples, labels), float("nan")),
        logits=torch.full((members, samples, labels), float("nan")),
        states=torch.zeros((members, samples), dtype=torch.uint8),
        reasons={
            (member, columns[sample]): reason
            for (member, sample), reason in computed.reasons.items()
        },
    )
    whole.scores[:, columns] = computed.scores
    whole.logits[:, columns] = computed.logits
    whole.states[:, columns] = computed.states
    for column, found in known.items():
        whole.scores[:, column] = found.scores
        whole.logits[:, column] = found.logits
        whole.states[:, column] = found.states
    return whole
