"""Proves with labelled images that an ensemble in lower precision decides as well as it was saved.

An image counts as worse if the default policy decides it right with the saved members, and wrong
with members in lower precision. The share of such images is bounded from above by Clopper and
Pearson (1934), on images by which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..archiver.metric_proof import MetricLoss
from ..handlers.base.errors import PreprocessingError, RequestError, SpecError
from ..handlers.base.tasks import Task
from ..handlers.decisions.choosing import Choice, Chooser
from ..handlers.deployment import catalogue
from ..handlers.engine.member_inputs import MemberInputs, PreparedImage
from ..handlers.members.loading import LoadedMember, scores
from ..handlers.requests.options import RequestOptions
from ..handlers.spec import EnsembleSpec
from .labelled_data import LabelledData
from .risk_bounds import Method, min_trials, upper_bound
from .splitting import hold_out

_CONFIDENCE = 0.95
_HELD_OUT_SHARE = 0.8
_BATCH_SIZE = 16

_MAX_DEVELOPMENT_INPUTS = 300
"""Their inputs are in memory together, and NNCF runs them again for each layer that it restores."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The development images or the held-out images.

    Attributes:
        images: N images, prepared for all members.
        outputs: for each member its raw outputs as it was saved, float32 (N, outputs).
        targets: (N, C) bool.
        is_right: (N,) bool, whether the default policy decides every label right with them.
    """

    images: Sequence[PreparedImage]
    outputs: Sequence[Tensor]
    targets: Tensor
    is_right: Tensor


class LabelledProof:
    """Compares members in lower precision with the saved members: the build's `MetricProof`."""

    def __init__(
        self,
        spec: EnsembleSpec,
        folder: Path,
        loaded: Sequence[LoadedMember],
        inputs: MemberInputs,
        data: LabelledData,
        on_member: Callable[[int], None] = lambda total: None,
    ) -> None:
        """Run the saved members over the labelled images.

        Args:
            spec: the ensemble.
            folder: the folder to which the paths in the spec are relative.
            loaded: the saved members.
            inputs: makes the members' inputs.
            data: the labelled images.
            on_member: called with the number of members, after each has run over a part of the
                images.

        Raises:
            SpecError: an image cannot be read, the task has no decisions, or there are too few
                images for a proof.
        """
        development, held_out = split(spec, data)
        self._spec, self._folder = spec, folder
        self._inputs = inputs
        self._groups = None if data.groups is None else data.groups[held_out].numpy()

        def part(rows: Tensor) -> _Part:
            images = [
                _prepared(inputs, data.paths[row], spec.limits.max_pixels) for row in rows.tolist()
            ]
            outputs = []
            # Member after member, since a build holds few large members at a time.
            for position, member in enumerate(loaded):
                batches = self._batches(position, images)
                outputs.append(torch.cat([member(batch) for batch in batches]))
                on_member(len(loaded))
            targets = data.targets[rows]
            return _Part(images, outputs, targets, self._is_right(outputs, targets))

        self._development, self._held_out = part(development), part(held_out)

    @property
    def max_loss(self) -> float:
        """The largest upper bound allowed, see `MetricProof.max_loss`."""
        return self._spec.runtime.max_metric_loss

    def development_inputs(self, position: int) -> Tensor:
        """Make the inputs for the development images, see `MetricProof.development_inputs`."""
        group = self._inputs.group_of_member[position]
        return self._inputs.batch(group, self._development.images[:_MAX_DEVELOPMENT_INPUTS])

    def development_loss(self, positions: Sequence[int], outputs: Tensor) -> float:
        """Compute the share that is decided worse, see `MetricProof.development_loss`."""
        num_images = outputs.shape[1]
        changed = [each[:num_images] for each in self._development.outputs]
        for position, raw in zip(positions, outputs, strict=True):
            changed[position] = raw
        after = self._is_right(changed, self._development.targets[:num_images])
        return float((self._development.is_right[:num_images] & ~after).double().mean())

    def held_out_inputs(self, position: int) -> Iterator[Tensor]:
        """Yield the inputs for the held-out images, see `MetricProof.held_out_inputs`."""
        return self._batches(position, self._held_out.images)

    def loss(self, outputs: Mapping[int, Tensor]) -> MetricLoss:
        """Bound how much worse the ensemble decides, see `MetricProof.loss`."""
        part = self._held_out
        changed = [outputs.get(position, saved) for position, saved in enumerate(part.outputs)]
        before = part.is_right
        after = self._is_right(changed, part.targets)
        is_worse = _by_group((before & ~after).numpy(), self._groups)
        return MetricLoss(
            right_before=float(before.double().mean()),
            right_after=float(after.double().mean()),
            num_images=len(is_worse),
            num_worse=int(is_worse.sum()),
            upper_bound=upper_bound(is_worse, _CONFIDENCE, Method.BINOMIAL),
        )

    @cached_property
    def _choice(self) -> Choice:
        """The default policy, with the spec's weights and thresholds."""
        policies = catalogue(self._spec, self._folder)
        return Chooser(self._spec, policies, {}).choose(RequestOptions())

    def _batches(self, position: int, images: Sequence[PreparedImage]) -> Iterator[Tensor]:
        """Yield the inputs of a member for some images."""
        group = self._inputs.group_of_member[position]
        for start in range(0, len(images), _BATCH_SIZE):
            yield self._inputs.batch(group, images[start : start + _BATCH_SIZE])

    def _is_right(self, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """(N,) bool: whether the default policy decides every label of an image right."""
        spec = self._spec
        pairs = [
            scores(raw.float(), spec.task, spec.output_of(member), member.temperature)
            for member, raw in zip(spec.members, outputs, strict=True)
        ]
        logits = [each for _, each in pairs if each is not None]
        ballot = self._choice.panel.ballot(
            torch.stack([values for values, _ in pairs]),
            torch.stack(logits) if len(logits) == len(pairs) else None,
        )
        outcome = self._choice.policy.combine(ballot)
        assert outcome.decisions is not None, "only a regression has no decisions"
        is_right = (outcome.decisions == targets).all(dim=1)
        return is_right if outcome.abstained is None else is_right & ~outcome.abstained


def split(spec: EnsembleSpec, data: LabelledData) -> tuple[Tensor, Tensor]:
    """Divide the labelled images, and check that they can prove the spec's ``max_metric_loss``.

    Returns:
        Row numbers of the development images, and of the held-out images.

    Raises:
        SpecError: the task has no decisions, or there are too few images or groups.
    """
    if spec.task is Task.REGRESSION:
        raise SpecError(
            "--data: a regression has no decisions that could become worse; leave --data out, and "
            "runtime.tolerance decides"
        )
    development, held_out = hold_out(
        data.targets, data.groups, share=_HELD_OUT_SHARE, stratify=False, seed=0
    )
    max_loss = spec.runtime.max_metric_loss
    needed = min_trials(max_loss, _CONFIDENCE)
    kind, units = "images", len(held_out)
    if data.groups is not None:
        kind, units = "groups", len(np.unique(data.groups[held_out].numpy()))
    if needed is None or units < needed:
        remedy = (
            "set it above 0"
            if needed is None
            else f"that takes {needed} held-out {kind}, and so {-int(-needed // _HELD_OUT_SHARE)} "
            f"labelled ones"
        )
        raise SpecError(
            f"--data {data.name}: {units} held-out {kind} cannot prove runtime.max_metric_loss: "
            f"{max_loss:g}; {remedy}; without --data, runtime.tolerance decides"
        )
    return development, held_out


def _by_group(is_worse: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Turn one flag for each image into one for each group: whether any of its images has it."""
    if groups is None:
        return is_worse
    unit_of_row = np.unique(groups, return_inverse=True)[1]
    is_any: np.ndarray = np.bincount(unit_of_row, weights=is_worse) > 0
    return is_any


def _prepared(inputs: MemberInputs, path: Path, max_pixels: int) -> PreparedImage:
    try:
        return inputs.prepare_file(path.read_bytes(), str(path), max_pixels=max_pixels)
    except (RequestError, PreprocessingError, OSError) as error:
        raise SpecError(f"{path}: {error}; remove or replace this image in the data") from error
