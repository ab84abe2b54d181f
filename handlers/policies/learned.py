"""Policies that combine with a model fitted on held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import PolicyError
from ..base.tasks import Task
from .averages import decide
from .ballot import ALL_TASKS, DECIDING, Ballot, Outcome
from .fitted import ClassWeightsModel, DawidSkeneModel, StackingModel
from .registry import policy


@policy("stacking", tasks=ALL_TASKS)
def stacking(ballot: Ballot, *, model: StackingModel) -> Outcome:
    """A fitted linear or logistic model on the scores of all members."""
    model.positions(ballot.member_names)
    aligned = ballot.select(ballot.indices(model.member_names)).scores
    members, samples, labels = aligned.shape
    outputs = len(model.intercept)
    binary = ballot.task is Task.CLASSIFICATION and labels == 2 and outputs == 1
    if model.coefficients.shape[1] != members * labels or (outputs != labels and not binary):
        raise PolicyError(
            f"the stacking model has {outputs} outputs of {model.coefficients.shape[1]} scores, "
            f"but {members} members with {labels} labels give {members * labels} scores; "
            "fit it again for this ensemble"
        )
    features = aligned.double().permute(1, 0, 2).reshape(samples, members * labels)
    coefficients, intercept = (_like(each, aligned) for each in model.parameters)
    raw = features @ coefficients.T + intercept
    if ballot.task is Task.REGRESSION:
        return decide(ballot, raw)
    if binary:
        return decide(ballot, torch.cat([(-raw).sigmoid(), raw.sigmoid()], dim=-1))
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, raw.softmax(dim=-1))
    return decide(ballot, raw.sigmoid())


@policy("dawid_skene", tasks=frozenset({Task.CLASSIFICATION, Task.PRESENCE}))
def dawid_skene(ballot: Ballot, *, model: DawidSkeneModel) -> Outcome:
    """The probability of each label given all votes and how often each member errs."""
    positions = model.positions(ballot.member_names)
    presence = ballot.task is Task.PRESENCE
    labels = 2 if presence else ballot.scores.shape[-1]
    if labels != len(model.prior):
        raise PolicyError(
            f"the dawid_skene model has {len(model.prior)} labels, this ensemble has "
            f"{labels}; fit it again for this ensemble"
        )
    # (M, N) the label that each member votes for.
    voted = ballot.votes[..., 0].long() if presence else ballot.scores.argmax(dim=-1)
    # In log space, so that many members do not underflow.
    evidence, prior = (_like(each, ballot.scores) for each in model.logarithms)
    total = prior.repeat(voted.shape[1], 1)
    for position, labels_voted in zip(positions, voted, strict=True):
        total += evidence[position, labels_voted]
    posterior = total.softmax(dim=-1)
    return decide(ballot, posterior[:, 1:] if presence else posterior)


@policy("per_class_weights", tasks=DECIDING)
def per_class_weights(ballot: Ballot, *, model: ClassWeightsModel) -> Outcome:
    """For each label the mean of the members' scores, with weights of that label."""
    weights = _like(model.weights[model.positions(ballot.member_names)], ballot.scores)
    if weights.shape[1] != ballot.scores.shape[2]:
        raise PolicyError(
            f"the per_class_weights model has {weights.shape[1]} labels, this ensemble has "
            f"{ballot.scores.shape[2]}; fit it again for this ensemble"
        )
    totals = weights.sum(dim=0)
    if bool((totals <= 0).any()):
        raise PolicyError(
            f"the members {', '.join(ballot.member_names)} all have weight 0 for some label in the "
            "per_class_weights model; choose another policy or more members"
        )
    weighted = torch.einsum("mc,mnc->nc", weights, ballot.scores.double())
    return decide(ballot, weighted / totals)


def _like(parameters: Tensor, scores: Tensor) -> Tensor:
    return parameters.to(device=scores.device, dtype=torch.float64)
