"""Split labelled samples: which ones are fitted on, and which ones only measured.

Samples of one group, such as the frames of a video, always stay on the same side.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from ..handlers.base.errors import SpecError
from ..handlers.base.tasks import Task
from .fitting import Outputs

_STRATIFIED = (Task.CLASSIFICATION, Task.PRESENCE)


def hold_out(
    targets: Tensor, groups: Tensor | None, *, share: float, stratify: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """Choose at random the samples that nothing is fitted on.

    Args:
        targets: (N, C) of all samples.
        groups: (N,) int64 group of each sample; None: each is a group of its own.
        share: of the samples, or of the groups, that are held out.
        stratify: hold out this share of the samples of each label. Allowed only if the metric that
            is to be guaranteed is conditional on the label, such as recall: its samples are then as
            independent as before. Groups are never stratified.
        seed: of the choice.

    Returns:
        Row numbers of the development samples, and of the held-out ones, both ascending.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        units, unit_of_row = np.unique(groups.numpy(), return_inverse=True)
        chosen = _random_share(generator, np.arange(len(units)), share)
        is_held_out = np.isin(unit_of_row, chosen)
    else:
        rows = np.arange(len(targets))
        strata = _strata(targets).numpy() if stratify else np.zeros(len(rows))
        is_held_out = np.zeros(len(rows), dtype=bool)
        for stratum in np.unique(strata):
            is_held_out[_random_share(generator, rows[strata == stratum], share)] = True
    held_out = torch.from_numpy(is_held_out)
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _random_share(generator: np.random.Generator, items: np.ndarray, share: float) -> np.ndarray:
    return generator.permutation(items)[: round(share * len(items))]


def cross_validation(outputs: Outputs, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Split samples into folds, with equal shares of each class if a sample has one class.

    Returns:
        For each fold the rows to fit on and the rows to measure on. Every row is measured once.

    Raises:
        SpecError: fewer than two folds, or too few samples for them.
    """
    if folds < 2:
        raise SpecError(f"{folds} folds: cross-validation takes at least 2")
    targets, groups = outputs.targets, outputs.groups
    if outputs.panel.task not in _STRATIFIED:
        return _plain_folds(len(targets), groups, folds, seed)
    strata = _strata(targets)
    counts = [len(torch.unique(_unit_numbers(groups, strata == s))) for s in torch.unique(strata)]
    unit = "images" if groups is None else "groups"
    if len(counts) < 2:
        raise SpecError("all images have the same label; add images with another one")
    if min(counts) < folds:
        raise SpecError(
            f"a label has only {min(counts)} {unit}, too few for {folds} folds; add images, or "
            "take fewer folds"
        )
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return _as_tensors(splitter.split(strata, strata.numpy()))
    grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    pairs = _as_tensors(grouped.split(strata, strata.numpy(), groups.numpy()))
    for training, test in pairs:
        if len(test) == 0 or len(torch.unique(strata[training])) < len(counts):
            raise SpecError(
                f"the groups are too uneven for {folds} folds: a label would be missing from one; "
                "add groups, or take fewer folds"
            )
    return pairs


def _plain_folds(
    samples: int, groups: Tensor | None, folds: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    units, unit_of_row = torch.unique(
        torch.arange(samples) if groups is None else groups, return_inverse=True
    )
    if len(units) < folds:
        unit = "images" if groups is None else "groups"
        raise SpecError(f"{len(units)} {unit} are too few for {folds} folds; add images")
    splitter = KFold(folds, shuffle=True, random_state=seed)
    is_test = [torch.isin(unit_of_row, test) for _, test in _as_tensors(splitter.split(units))]
    return [((~test).nonzero().flatten(), test.nonzero().flatten()) for test in is_test]


def _strata(targets: Tensor) -> Tensor:
    """(N,) number of each sample's combination of labels."""
    strata: Tensor = torch.unique(targets, dim=0, return_inverse=True)[1]
    return strata


def _unit_numbers(groups: Tensor | None, selected: Tensor) -> Tensor:
    return selected.nonzero().flatten() if groups is None else groups[selected]


def _as_tensors(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.from_numpy(training), torch.from_numpy(test)) for training, test in pairs]
