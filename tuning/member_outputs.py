"""What the members say about labelled images, in the worker's own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..handlers.base.errors import MemberError, PreprocessingError, RequestError, SpecError
from ..handlers.decisions.choosing import Chooser
from ..handlers.deployment import catalogue, choose_device
from ..handlers.engine.member_scores import State
from ..handlers.engine.runtime import Runtime
from ..handlers.spec import EnsembleSpec
from .fitting import Outputs
from .labelled_data import LabelledData


def member_outputs(
    spec: EnsembleSpec,
    folder: Path,
    data: LabelledData,
    *,
    on_image: Callable[[int], None] = lambda total: None,
) -> Outputs:
    """Run every member over the data.

    Args:
        spec: the ensemble.
        folder: where its files are.
        data: labelled images.
        on_image: called with the number of images, after each.

    Raises:
        SpecError: images cannot be read; every one of them is named.
        MemberError: a member fails, or gives NaN.
    """
    runtime = Runtime.load(spec, folder, choose_device(spec, gpu=None))
    scores, logits = [], []
    unreadable: list[str] = []
    step = spec.runtime.micro_batch
    for start in range(0, len(data.paths), step):
        images = []
        for path in data.paths[start : start + step]:
            try:
                images.append(runtime.prepare_file(path.read_bytes(), str(path)))
            except (RequestError, PreprocessingError, OSError) as error:
                unreadable.append(f"{path}: {error}")
            on_image(len(data.paths))
        if unreadable:
            # The rest is read all the same, so that all can be mended at once.
            continue
        found = runtime.run(images)
        failed = (found.states != State.ANSWERED).nonzero()
        if len(failed):
            member, row = failed[0].tolist()
            raise MemberError(
                f"member {spec.members[member].name} on {data.paths[start + row]}: "
                f"{found.reasons[member, row]}"
            )
        scores.append(found.scores)
        logits.append(found.logits)
    if unreadable:
        raise SpecError("\n".join([*unreadable, "remove or replace these images in the data"]))
    panel = Chooser(spec, catalogue(spec, folder), {}).panel
    return Outputs(panel, torch.cat(scores, dim=1), torch.cat(logits, dim=1), data.targets)
