"""Models fitted on held-out data that combine the members: plain tensors, kept as safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.errors import PolicyError, SpecError

_METADATA = "fitted_model"

_SMALLEST = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Base of the fitted models.

    Attributes:
        member_names: M members, in the order of the tensors. Members are matched by name, so that
            reordering an ensemble's members cannot swap their parameters.
    """

    KIND: ClassVar[str]

    member_names: tuple[str, ...]

    def positions(self, member_names: Sequence[str]) -> list[int]:
        """Where a panel's members stand in this model.

        Raises:
            PolicyError: the model was not fitted with one of them.
        """
        foreign = [name for name in member_names if name not in self.member_names]
        if foreign:
            raise PolicyError(
                f"the {self.KIND} model was fitted with members {', '.join(self.member_names)}, "
                f"not with {', '.join(foreign)}; fit it again with this ensemble's members"
            )
        return [self.member_names.index(name) for name in member_names]

    def _require(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers")


@dataclass(frozen=True, eq=False)
class StackingModel(FittedModel):
    """A linear model on the members' scores (Wolpert 1992).

    Attributes:
        coefficients: (K, M * C) float; column m * C + c belongs to member m, score label c. K is C,
            or 1 for a logistic model of two labels (as scikit-learn's `LogisticRegression` has it).
        intercept: (K,) float.
    """

    KIND: ClassVar[str] = "stacking"

    coefficients: Tensor
    intercept: Tensor

    def __post_init__(self) -> None:
        outputs = len(self.intercept)
        inputs = self.coefficients.shape[-1]
        if outputs == 0 or inputs == 0 or inputs % len(self.member_names):
            raise ValueError(
                f"coefficients need one column for each of {len(self.member_names)} members and "
                f"each label, not {inputs}"
            )
        self._require("coefficients", self.coefficients, (outputs, inputs))
        self._require("intercept", self.intercept, (outputs,))

    @cached_property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """Coefficients and intercept in float64; of 1,000 labels they take long to convert."""
        return self.coefficients.double(), self.intercept.double()

    def positions(self, member_names: Sequence[str]) -> list[int]:
        """As `FittedModel.positions`; every member that the model was fitted with must be there."""
        positions = super().positions(member_names)
        missing = [name for name in self.member_names if name not in member_names]
        if missing:
            raise PolicyError(
                f"the {self.KIND} model needs the scores of all the members that it was fitted "
                f"with; {', '.join(missing)} is missing"
            )
        return positions


@dataclass(frozen=True, eq=False)
class DawidSkeneModel(FittedModel):
    """How often each member votes what, given the truth (Dawid & Skene 1979).

    Attributes:
        confusions: (M, J, J) float: confusions[m, j, l] is the probability that member m votes for
            label l where label j is true; rows add up to 1. J is the number of labels; presence
            has two, absent and present.
        prior: (J,) float: how frequent each label is; adds up to 1.
    """

    KIND: ClassVar[str] = "dawid_skene"

    confusions: Tensor
    prior: Tensor

    def __post_init__(self) -> None:
        labels = len(self.prior)
        self._require("confusions", self.confusions, (len(self.member_names), labels, labels))
        self._require("prior", self.prior, (labels,))
        for name, tensor in (("confusions", self.confusions), ("prior", self.prior)):
            sums = tensor.double().sum(dim=-1)
            if bool((tensor < 0).any()) or not torch.allclose(sums, sums.new_ones(()), atol=1e-4):
                raise ValueError(f"{name} must be probabilities that add up to 1 in each row")

    @cached_property
    def logarithms(self) -> tuple[Tensor, Tensor]:
        """Logarithms in float64: of the votes' probabilities, (M, L voted, J true), and the prior.

        A probability of 0 becomes the smallest float, so that votes that the model holds impossible
        still end in a defined answer.
        """
        confusions, prior = (
            each.double().clamp(min=_SMALLEST).log() for each in (self.confusions, self.prior)
        )
        return confusions.transpose(1, 2).contiguous(), prior


@dataclass(frozen=True, eq=False)
class ClassWeightsModel(FittedModel):
    """How much each member counts for each label.

    Attributes:
        weights: (M, C) float, none below 0, in no column all 0.
    """

    KIND: ClassVar[str] = "per_class_weights"

    weights: Tensor

    def __post_init__(self) -> None:
        labels = self.weights.shape[-1]
        self._require("weights", self.weights, (len(self.member_names), labels))
        if bool((self.weights < 0).any()) or not bool((self.weights > 0).any(dim=0).all()):
            raise ValueError("weights must not be negative, nor all 0 for a label")


_KINDS: dict[str, type[FittedModel]] = {
    kind.KIND: kind for kind in (StackingModel, DawidSkeneModel, ClassWeightsModel)
}


def save_fitted(model: FittedModel, path: Path) -> None:
    """Write a fitted model; `load_fitted` reads it."""
    tensors = {name: getattr(model, name).contiguous() for name in _tensor_names(type(model))}
    # One metadata entry: safetensors does not promise an order of several.
    header = {"kind": model.KIND, "members": list(model.member_names)}
    save_file(tensors, path, metadata={_METADATA: json.dumps(header, sort_keys=True)})


def load_fitted(path: Path) -> FittedModel:
    """Read a model that `save_fitted` wrote.

    Raises:
        SpecError: the file is missing or damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {})[_METADATA])
            kind = _KINDS[header["kind"]]
            tensors = {name: file.get_tensor(name) for name in _tensor_names(kind)}
            return kind(tuple(header["members"]), **tensors)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; write it with save_fitted") from None
    except (
        OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError
    ) as error:  # fmt: skip
        raise SpecError(
            f"{path}: not a fitted model ({', '.join(_KINDS)}): {error}; write it with save_fitted"
        ) from error


def _tensor_names(kind: type[FittedModel]) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "member_names"]
