"""Decoded samples and scores on their way between a worker and its candidate's process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..engine.member_inputs import Input, PreparedImage
from ..engine.member_scores import MemberScores
from ..inputs.preprocessing import Resized

Array = np.ndarray[Any, Any]
InputMessage = Array | tuple[Array | None, ...]
"""Pixels or preprocessed numbers; or for each preprocessing the resized image."""


def inputs_to_message(inputs: Sequence[Input], groups: Sequence[int]) -> list[InputMessage]:
    """Make a message of decoded samples.

    Args:
        inputs: N samples as the worker's members take them.
        groups: for each preprocessing of the candidate's new members its position among those of
            the worker.
    """
    message: list[InputMessage] = []
    for each in inputs:
        if isinstance(each, PreparedImage):
            images = [each.by_preprocessing[group] for group in groups]
            message.append(
                tuple(None if image is None else image.pixels.cpu().numpy() for image in images)
            )
        else:
            message.append(each.cpu().numpy())
    return message


def inputs_from_message(message: Sequence[InputMessage]) -> list[Input]:
    """Read what `inputs_to_message` made, as the new members' runtime takes it."""
    inputs: list[Input] = []
    for each in message:
        if isinstance(each, tuple):
            images = tuple(
                None if pixels is None else Resized(torch.from_numpy(pixels)) for pixels in each
            )
            inputs.append(PreparedImage((), images))
        else:
            inputs.append(torch.from_numpy(each))
    return inputs


def scores_to_message(scores: MemberScores) -> tuple[Any, ...]:
    """Make a message of the members' scores."""
    return scores.scores.numpy(), scores.logits.numpy(), scores.states.numpy(), scores.reasons


def scores_from_message(message: tuple[Any, ...]) -> MemberScores:
    """Read what `scores_to_message` made."""
    scores, logits, states, reasons = message
    return MemberScores(
        torch.from_numpy(scores), torch.from_numpy(logits), torch.from_numpy(states), reasons
    )
