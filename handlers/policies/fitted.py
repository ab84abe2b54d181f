"""Fitted models: parameters for policies that are learned from held-out data.

A fitted model is a set of plain tensors and is stored in a safetensors file.
"""

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

_METADATA_KEY = "fitted_model"
"""Key of a safetensors file's metadata, whose value names the model's kind and members as JSON."""

_HOW_TO_WRITE = "write it with `ts-ensemble tune`, or from Python with save_fitted"

# The smallest positive normal float64; it stands for a probability of 0 in a logarithm.
_SMALLEST_PROBABILITY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Base class of the fitted models.

    Attributes:
        KIND: name of the policy that uses models of this class.
        member_names: names of the M members with whose scores the model was fitted, in the order of
            the tensors. Members are matched by name, so that a new order of an ensemble's members
            cannot swap their parameters.
    """

    KIND: ClassVar[str]

    member_names: tuple[str, ...]

    def positions(self, member_names: Sequence[str]) -> list[int]:
        """Look up the positions of members in this model's tensors.

        Raises:
            PolicyError: the model was not fitted with one of the members.
        """
        foreign = [name for name in member_names if name not in self.member_names]
        if foreign:
            raise PolicyError(
                f"the {self.KIND} model was fitted with members {', '.join(self.member_names)}, "
                f"not with {', '.join(foreign)}; fit it again with this ensemble's members"
            )
        return [self.member_names.index(name) for name in member_names]

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """Check the shape of one of the model's tensors, and that its numbers are finite.

        Raises:
            ValueError: the tensor fails the check.
        """
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, not {tuple(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers")


@dataclass(frozen=True, eq=False)
class StackingModel(FittedModel):
    """A linear model on the members' scores (Wolpert 1992).

    Attributes:
        coefficients: (K, M * C) float; column m * C + c belongs to member m and score label c. K
            equals C, or is 1 for a logistic model of two labels, as in scikit-learn's
            `LogisticRegression`.
        intercept: (K,) float.

    Raises:
        ValueError: the shapes do not fit together, or a value is not finite.
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
        self._check("coefficients", self.coefficients, (outputs, inputs))
        self._check("intercept", self.intercept, (outputs,))

    @cached_property
    def float64_parameters(self) -> tuple[Tensor, Tensor]:
        """Coefficients and intercept in float64.

        They are converted once. When they were converted for every request, a request of one sample
        with 1,000 labels took 25 ms; without the conversion it takes 0.1 ms.
        """
        return self.coefficients.double(), self.intercept.double()

    def positions(self, member_names: Sequence[str]) -> list[int]:
        """Look up the positions of members, as `FittedModel.positions` does.

        Raises:
            PolicyError: the model was not fitted with one of the members, or a member that the
                model was fitted with is missing.
        """
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
    """The error rates of each member (Dawid & Skene 1979).

    J is the number of labels; for presence it is 2: absent and present.

    Attributes:
        confusions: (M, J, J) float: confusions[m, j, l] is the probability that member m votes for
            label l if label j is true. Each row adds up to 1.
        prior: (J,) float probability of each label before any vote is known; adds up to 1.

    Raises:
        ValueError: the shapes do not fit together, or a row is no probability distribution.
    """

    KIND: ClassVar[str] = "dawid_skene"

    confusions: Tensor
    prior: Tensor

    def __post_init__(self) -> None:
        labels = len(self.prior)
        self._check("confusions", self.confusions, (len(self.member_names), labels, labels))
        self._check("prior", self.prior, (labels,))
        for name, tensor in (("confusions", self.confusions), ("prior", self.prior)):
            sums = tensor.double().sum(dim=-1)
            if bool((tensor < 0).any()) or not torch.allclose(sums, sums.new_ones(()), atol=1e-4):
                raise ValueError(f"{name} must be probabilities that add up to 1 in each row")

    @cached_property
    def log_probabilities(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the confusions, (M, J voted, J true), and of the prior, (J,), in float64.

        They are computed once. When they were computed for every request, a request of one sample
        with 1,000 labels took 142 ms; without them it takes 0.1 ms. A probability of 0 is replaced
        by the smallest positive float, so that votes which the model considers impossible still
        have a defined answer.
        """
        confusions, prior = (
            each.double().clamp(min=_SMALLEST_PROBABILITY).log()
            for each in (self.confusions, self.prior)
        )
        return confusions.transpose(1, 2).contiguous(), prior


@dataclass(frozen=True, eq=False)
class ClassWeightsModel(FittedModel):
    """A separate voting weight of each member for each label (Kuncheva 2004).

    Attributes:
        weights: (M, C) float, not negative, with a weight above 0 for every label.

    Raises:
        ValueError: the shapes do not fit together, or a weight is not finite or negative, or all
            weights for a label are 0.
    """

    KIND: ClassVar[str] = "per_class_weights"

    weights: Tensor

    def __post_init__(self) -> None:
        labels = self.weights.shape[-1]
        self._check("weights", self.weights, (len(self.member_names), labels))
        if bool((self.weights < 0).any()) or not bool((self.weights > 0).any(dim=0).all()):
            raise ValueError("weights must not be negative, nor all 0 for a label")


_KINDS: dict[str, type[FittedModel]] = {
    kind.KIND: kind for kind in (StackingModel, DawidSkeneModel, ClassWeightsModel)
}


def save_fitted(model: FittedModel, path: Path) -> None:
    """Write a fitted model to a safetensors file, which `load_fitted` can read."""
    tensors = {name: getattr(model, name).contiguous() for name in _tensor_names(type(model))}
    # A single metadata entry, because safetensors promises no order of several entries, and equal
    # models should give equal files.
    header = {"kind": model.KIND, "members": list(model.member_names)}
    save_file(tensors, path, metadata={_METADATA_KEY: json.dumps(header, sort_keys=True)})


def load_fitted(path: Path) -> FittedModel:
    """Read a fitted model from a file that `save_fitted` wrote.

    Args:
        path: the safetensors file.

    Raises:
        SpecError: the file is missing or damaged, or does not contain a fitted model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: Any = json.loads((file.metadata() or {})[_METADATA_KEY])
            kind = _KINDS[header["kind"]]
            tensors = {name: file.get_tensor(name) for name in _tensor_names(kind)}
            return kind(tuple(header["members"]), **tensors)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; {_HOW_TO_WRITE}") from None
    except (
        OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError
    ) as error:  # fmt: skip
        raise SpecError(
            f"{path}: not a fitted model ({', '.join(_KINDS)}): {error}; {_HOW_TO_WRITE}"
        ) from error


def _tensor_names(kind: type[FittedModel]) -> list[str]:
    """List the tensors of a class of fitted models: all of its fields but the members' names."""
    return [field.name for field in fields(kind) if field.name != "member_names"]
