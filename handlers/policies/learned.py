"""Policies whose parameters are learned from held-out data and come from a fitted model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import PolicyError
from ..base.tasks import Task
from .averages import decide
from .ballot import ALL_TASKS, LABEL_TASKS, Ballot, Outcome
from .fitted import ClassWeightsModel, DawidSkeneModel, StackingModel
from .registry import policy


@policy("stacking", tasks=ALL_TASKS)
def stacking(ballot: Ballot, *, model: StackingModel) -> Outcome:
    """A fitted linear or logistic model computes the answer from the scores of all members.

    Raises:
        PolicyError: the model was fitted with other members, or with another number of labels.
    """
    model.positions(ballot.member_names)
    aligned = ballot.select(ballot.indices(model.member_names)).scores
    members, samples, labels = aligned.shape
    inputs, outputs = model.coefficients.shape[1], len(model.intercept)
    is_binary = ballot.task is Task.CLASSIFICATION and labels == 2 and outputs == 1
    if inputs != members * labels or (outputs != labels and not is_binary):
        raise PolicyError(
            f"the stacking model computes {outputs} outputs from {inputs} scores, but {members} "
            f"members with {labels} labels give {members * labels} scores; fit it again for this "
            "ensemble"
        )
    features = aligned.double().permute(1, 0, 2).reshape(samples, members * labels)
    coefficients, intercept = (_float64_on(each, aligned) for each in model.float64_parameters)
    raw = features @ coefficients.T + intercept
    if ballot.task is Task.REGRESSION:
        return decide(ballot, raw)
    if is_binary:
        return decide(ballot, torch.cat([(-raw).sigmoid(), raw.sigmoid()], dim=-1))
    if ballot.task is Task.CLASSIFICATION:
        return decide(ballot, raw.softmax(dim=-1))
    return decide(ballot, raw.sigmoid())


@policy("dawid_skene", tasks=frozenset({Task.CLASSIFICATION, Task.PRESENCE}))
def dawid_skene(ballot: Ballot, *, model: DawidSkeneModel) -> Outcome:
    """The probability of each label, given all votes and the error rates of each member.

    Source: Dawid & Skene (1979).

    Raises:
        PolicyError: the model was fitted with other members, or with another number of labels.
    """
    positions = model.positions(ballot.member_names)
    is_presence = ballot.task is Task.PRESENCE
    labels = 2 if is_presence else ballot.scores.shape[-1]
    if labels != len(model.prior):
        raise PolicyError(
            f"the dawid_skene model has {len(model.prior)} labels, this ensemble has "
            f"{labels}; fit it again for this ensemble"
        )
    # The label that each member votes for: (M, N).
    voted = ballot.votes[..., 0].long() if is_presence else ballot.scores.argmax(dim=-1)
    # Logarithms are added, because the product of many members' probabilities may underflow.
    evidence, prior = (_float64_on(each, ballot.scores) for each in model.log_probabilities)
    total = prior.repeat(voted.shape[1], 1)
    for position, labels_voted in zip(positions, voted, strict=True):
        total += evidence[position, labels_voted]
    posterior = total.softmax(dim=-1)
    return decide(ballot, posterior[:, 1:] if is_presence else posterior)


@policy("per_class_weights", tasks=LABEL_TASKS)
def per_class_weights(ballot: Ballot, *, model: ClassWeightsModel) -> Outcome:
    """The mean of the members' scores, weighted by a separate weight for each member and label.

    Raises:
        PolicyError: the model was fitted with other members or with another number of labels, or
            all members of the ballot have weight 0 for a label.
    """
    weights = _float64_on(model.weights[model.positions(ballot.member_names)], ballot.scores)
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


def _float64_on(parameters: Tensor, scores: Tensor) -> Tensor:
    """Convert parameters to float64 on the device of the scores."""
    return parameters.to(device=scores.device, dtype=torch.float64)
