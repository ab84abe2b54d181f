"""Run the members over labelled images, in the worker's own pipeline."""

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
    """Run every member over the labelled images.

    Args:
        spec: the ensemble.
        folder: the folder of the ensemble's files.
        data: labelled images.
        on_image: called with the number of images, after each.

    Raises:
        SpecError: images cannot be read; the message names all of them.
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
            # No member runs any more. The other images are read all the same, so that the message
            # names every image that has to be replaced.
            continue
        results = runtime.run(images)
        failed = (results.states != State.ANSWERED).nonzero()
        if len(failed):
            member, row = failed[0].tolist()
            raise MemberError(
                f"member {spec.members[member].name} on {data.paths[start + row]}: "
                f"{results.reasons[member, row]}"
            )
        scores.append(results.scores)
        logits.append(results.logits)
    if unreadable:
        raise SpecError("\n".join([*unreadable, "remove or replace these images in the data"]))
    panel = Chooser(spec, catalogue(spec, folder), {}).panel
    return Outputs(
        panel, torch.cat(scores, dim=1), torch.cat(logits, dim=1), data.targets, data.groups
    )
