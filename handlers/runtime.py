"""All members on one batch of images: each distinct preprocessing once, every member once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import MemberError
from .members import LoadedMember, check_member, load_member, scores
from .preprocess import Preprocessor, group, resolve
from .spec import EnsembleSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberScores:
    """What all members say about a batch, on the CPU.

    Attributes:
        scores: (M members, N samples, C score labels) float32.
        logits: same shape, where every member gives logits; else None.
    """

    scores: Tensor
    logits: Tensor | None


class Runtime:
    """The loaded members of an ensemble on one device."""

    def __init__(
        self,
        spec: EnsembleSpec,
        members: Sequence[LoadedMember],
        preprocessors: Sequence[Preprocessor],
        group_of_member: Sequence[int],
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.device = device
        self._members = members
        self._preprocessors = preprocessors
        self._group_of_member = group_of_member

    @classmethod
    def load(cls, spec: EnsembleSpec, folder: Path, device: torch.device) -> Runtime:
        """Load every member and run it once, so that a mistake shows before the first request.

        Args:
            spec: the ensemble.
            folder: where the files that the spec names are.
            device: where all members live.

        Raises:
            MemberError: a member's file, architecture or output does not fit.
            SpecError: a preprocessing that does not exist.
        """
        settings = [resolve(spec.preprocessing_of(member)) for member in spec.members]
        groups, group_of_member = group(settings)
        preprocessors = [Preprocessor(group_settings, device) for group_settings in groups]
        members = []
        for member in spec.members:
            started = time.perf_counter()
            members.append(load_member(spec, member, folder, device))
            logger.info(
                "member %s loaded on %s in %.0f ms",
                member.name,
                device,
                1000 * (time.perf_counter() - started),
            )
        runtime = cls(spec, members, preprocessors, group_of_member, device)
        runtime._check()
        return runtime

    def run(self, images: Sequence[Tensor]) -> MemberScores:
        """Scores of all members.

        Args:
            images: N uint8 tensors (3, height, width), of any sizes.

        Raises:
            MemberError: a member fails.
        """
        chunk = self.spec.runtime.micro_batch
        parts = [
            self._run_chunk(images[start : start + chunk])
            for start in range(0, max(len(images), 1), chunk)
        ]
        if len(parts) == 1:
            return parts[0]
        logits = [part.logits for part in parts if part.logits is not None]
        return MemberScores(
            scores=torch.cat([part.scores for part in parts], dim=1),
            logits=torch.cat(logits, dim=1) if len(logits) == len(parts) else None,
        )

    @torch.inference_mode()
    def _run_chunk(self, images: Sequence[Tensor]) -> MemberScores:
        inputs = [preprocessor(images) for preprocessor in self._preprocessors]
        all_scores: list[Tensor] = []
        all_logits: list[Tensor | None] = []
        for index, member in enumerate(self.spec.members):
            raw = self._forward(index, inputs[self._group_of_member[index]])
            member_scores, member_logits = scores(
                raw, self.spec.task, self.spec.output_of(member), member.temperature
            )
            all_scores.append(member_scores)
            all_logits.append(member_logits)
        known_logits = [logits for logits in all_logits if logits is not None]
        return MemberScores(
            scores=torch.stack(all_scores).cpu(),
            logits=(
                torch.stack(known_logits).cpu() if len(known_logits) == len(all_logits) else None
            ),
        )

    def _forward(self, index: int, batch: Tensor) -> Tensor:
        try:
            return self._members[index](batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise MemberError(
                f"member '{self.spec.members[index].name}' failed on a batch of "
                f"{tuple(batch.shape)}: {error}"
            ) from error

    def _check(self) -> None:
        """Run once on noise, at the sizes that members will see."""
        generator = torch.Generator().manual_seed(0)
        images = [
            torch.randint(0, 256, (3, 64, 48), dtype=torch.uint8, generator=generator)
            for _ in range(3)
        ]
        batches = [preprocessor(images) for preprocessor in self._preprocessors]
        for index, loaded in enumerate(self._members):
            batch = batches[self._group_of_member[index]]
            check_member(loaded, self.spec, self.spec.members[index], batch)
