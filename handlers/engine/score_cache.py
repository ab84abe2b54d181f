"""A cache of member scores: an image that was sent before is answered without running members."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .member_scores import MemberScores, State

_ENTRY_OVERHEAD_BYTES = 1024
"""Memory that an entry takes beside its numbers: the key, Python's objects and three tensors."""


@dataclass(frozen=True)
class CachedScores:
    """The scores that the members gave for one sample.

    Attributes:
        scores: (M members, C score labels) float32; NaN where a member has not run.
        logits: (M, C) float32; NaN where a member has not run or gives no logits.
        states: (M,) uint8 of `State`.
    """

    scores: Tensor
    logits: Tensor
    states: Tensor

    @property
    def size_bytes(self) -> int:
        """Memory that the entry takes in the cache, in bytes."""
        tensors = (self.scores, self.logits, self.states)
        return _ENTRY_OVERHEAD_BYTES + sum(each.numel() * each.element_size() for each in tensors)


class ScoreCache:
    """Keeps the scores of the most recently used samples in bounded memory.

    Two samples are equal if their encoded bytes are equal. The key also contains the digest of the
    archive, because the digest changes with the members, the labels and the preprocessing. Only
    scores are cached; the policy of each request combines them anew. Not thread-safe.

    Attributes:
        bytes: memory that all entries take, in bytes.
        hits: number of calls of `get` that returned an entry.
        misses: number of calls of `get` that returned None.
    """

    def __init__(self, max_bytes: int, archive: str) -> None:
        """Create an empty cache.

        Args:
            max_bytes: when the cache grows beyond this, the least recently used entries are
                evicted.
            archive: digest of the archive that the members come from.
        """
        self._max_bytes = max_bytes
        self._archive = archive.encode()
        self._entries: OrderedDict[bytes, CachedScores] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, encoded_image: bytes) -> bytes:
        """Compute the key under which the scores of an encoded image are stored."""
        return hashlib.sha256(self._archive + b"\0" + encoded_image).digest()

    def get(self, key: bytes, members: Sequence[int]) -> CachedScores | None:
        """Return the entry if it has the scores of all these members; count a hit or a miss.

        Args:
            key: what `key` returned for the encoded image.
            members: positions of the members whose scores are needed.
        """
        entry = self._entries.get(key)
        if entry is None or not bool((entry.states[list(members)] == State.ANSWERED).all()):
            self.misses += 1
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return entry

    def put(self, key: bytes, outputs: MemberScores, column: int) -> None:
        """Store the scores of one sample; members without an answer keep their earlier scores.

        Args:
            key: what `key` returned for the encoded image.
            outputs: scores of a batch.
            column: position of the sample in that batch.
        """
        entry = CachedScores(
            scores=outputs.scores[:, column].clone(),
            logits=outputs.logits[:, column].clone(),
            states=outputs.states[:, column].clone(),
        )
        answered = entry.states == State.ANSWERED
        earlier = self._entries.pop(key, None)
        if earlier is not None:
            self.bytes -= earlier.size_bytes
            # The earlier request may have run other members.
            entry = CachedScores(
                scores=torch.where(answered[:, None], entry.scores, earlier.scores),
                logits=torch.where(answered[:, None], entry.logits, earlier.logits),
                states=torch.where(answered, entry.states, earlier.states),
            )
        any_answered = bool((entry.states == State.ANSWERED).any())
        if not any_answered or entry.size_bytes > self._max_bytes:
            return
        self._entries[key] = entry
        self.bytes += entry.size_bytes
        while self.bytes > self._max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self.bytes -= evicted.size_bytes

    def describe(self) -> dict[str, int]:
        """Return hits, misses, entries and memory as JSON, for the worker's describe answer."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "samples": len(self),
            "bytes": self.bytes,
            "max_bytes": self._max_bytes,
        }


def merge_cached(
    computed: MemberScores, columns: Sequence[int], cached: Mapping[int, CachedScores]
) -> MemberScores:
    """Merge computed and cached scores into the scores of one batch.

    Args:
        computed: scores of the samples that were not in the cache.
        columns: position in the batch of each computed sample.
        cached: position in the batch -> cached scores, for all other samples.
    """
    if not cached:
        return computed
    num_members, _, num_labels = computed.scores.shape
    num_samples = len(columns) + len(cached)
    merged = MemberScores(
        scores=torch.full((num_members, num_samples, num_labels), float("nan")),
        logits=torch.full((num_members, num_samples, num_labels), float("nan")),
        states=torch.zeros((num_members, num_samples), dtype=torch.uint8),
        reasons={
            (member, columns[sample]): reason
            for (member, sample), reason in computed.reasons.items()
        },
        calls=computed.calls,
    )
    merged.scores[:, columns] = computed.scores
    merged.logits[:, columns] = computed.logits
    merged.states[:, columns] = computed.states
    for column, entry in cached.items():
        merged.scores[:, column] = entry.scores
        merged.logits[:, column] = entry.logits
        merged.states[:, column] = entry.states
    return merged
