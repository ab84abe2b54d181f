"""Policies that combine with a model fitted on held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PolicyError
from ..tasks import Task
from .averages import decide
from .ballot import ALL_TASKS, DECIDING, Ballot, Outcome
from .fitted import ClassWeightsModel, DawidSkeneModel, StackingModel
from .registry import policy

_SMALLEST = torch.finfo(torch.float64).tiny


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
    raw = features @ _like(model.coefficients, aligned).T + _like(model.intercept, aligned)
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
    votes = ballot.votes
    if ballot.task is Task.PRESENCE:
        votes = torch.cat([~votes, votes], dim=-1)
    if votes.shape[-1] != len(model.prior):
        raise PolicyError(
            f"the dawid_skene model has {len(model.prior)} labels, this ensemble has "
            f"{votes.shape[-1]}; fit it again for this ensemble"
        )
    # In log space, so that many members do not underflow; a probability of 0 becomes the smallest
    # float, so that votes that the model holds impossible still end in a defined answer.
    confusions = _like(model.confusions[positions], ballot.scores).clamp(min=_SMALLEST).log()
    prior = _like(model.prior, ballot.scores).clamp(min=_SMALLEST).log()
    evidence = torch.einsum("mjl,mnl->nj", confusions, votes.double())
    posterior = (prior + evidence).softmax(dim=-1)
    return decide(ballot, posterior if ballot.task is Task.CLASSIFICATION else posterior[:, 1:])


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
