"""Bound an expected error from independent errors on finitely many images.

Pure functions of numbers. `guarantee` says which errors belong to which metric, and why the
guarantee that is built on these bounds holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom
from torch import Tensor


class Method(StrEnum):
    """How errors on held-out images are turned into a bound of the error on all images."""

    BINOMIAL = "exact binomial"
    HOEFFDING_BENTKUS = "Hoeffding-Bentkus"
    BOOTSTRAP = "bootstrap"

    @property
    def is_approximate(self) -> bool:
        """Whether the bound has its confidence only for many images."""
        return self is Method.BOOTSTRAP


def p_value(losses: np.ndarray, max_loss: float, method: Method) -> float:
    """Bound the probability of so small a mean loss if the expected loss were `max_loss` or more.

    Args:
        losses: (n,) independent numbers from 0 to 1; 0 or 1 for `Method.BINOMIAL`.
        max_loss: the expected loss that is to be refuted.
        method: binomial: ``P(Bin(n, max_loss) <= sum)``. Otherwise the smaller of Hoeffding's bound
            ``exp(-n kl(mean, max_loss))`` (Hoeffding 1963, theorem 1) and Bentkus' bound
            ``e P(Bin(n, max_loss) <= ceil(sum))`` (Bentkus 2004, theorem 1.2), as in Learn then
            Test.
    """
    num, total = len(losses), float(losses.sum())
    if num == 0:
        return 1.0
    if method is Method.BINOMIAL:
        return float(binom.cdf(round(total), num, max_loss))
    hoeffding = math.exp(-num * _divergence(min(total / num, max_loss), max_loss))
    # A sum that is a whole number but for its rounding must not be rounded up.
    bentkus = math.e * float(binom.cdf(math.ceil(total - 1e-9), num, max_loss))
    return min(1.0, hoeffding, bentkus)


def upper_bound(losses: np.ndarray, confidence: float, method: Method) -> float:
    """The upper confidence bound of the expected loss: the largest value that is not refuted.

    For the binomial it is that of Clopper and Pearson (1934).
    """
    num, total = len(losses), float(losses.sum())
    if num == 0 or total >= num:
        return 1.0
    if method is Method.BINOMIAL:
        return float(beta.ppf(confidence, round(total) + 1, num - round(total)))

    def excess(loss: float) -> float:
        return p_value(losses, loss, method) - (1 - confidence)

    return float(brentq(excess, total / num, 1.0))


def min_trials(max_loss: float, confidence: float) -> int | None:
    """The number of trials, all without an error, that is needed to refute `max_loss`.

    If the expected loss were `max_loss`, n trials would all be without an error with a probability
    of at most ``(1 - max_loss) ** n``. None: no number is enough, as no loss is below 0.
    """
    if max_loss <= 0:
        return None
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_loss)) if max_loss < 1 else 1


def max_errors(num_trials: int, max_loss: float, confidence: float) -> int:
    """The largest number of errors in so many trials that refutes `max_loss`; -1 if none does."""
    # The quantile is the smallest number of errors that is likely enough. Every smaller one passes.
    return int(binom.ppf(1 - confidence, num_trials, max_loss)) - 1


def num_passed(p_values: Iterable[float], confidence: float) -> int:
    """The number of tests of a fixed sequence that pass before the first one fails."""
    passed = 0
    for value in p_values:
        if value > 1 - confidence:
            break
        passed += 1
    return passed


def losses_of_units(is_counted: Tensor, is_wrong: Tensor, groups: Tensor | None) -> np.ndarray:
    """The share of wrong answers of each image or group, without those that have no answer.

    Args:
        is_counted: (N,) or (N, C) bool, whether an answer counts.
        is_wrong: bool of the same shape.
        groups: (N,) int64 group of each image; None: each is a group of its own.
    """
    num_counted = is_counted.reshape(len(is_counted), -1).sum(dim=1).numpy()
    num_wrong = (is_counted & is_wrong).reshape(len(is_counted), -1).sum(dim=1).numpy()
    if groups is not None:
        unit_of_row = np.unique(groups.numpy(), return_inverse=True)[1]
        num_counted = np.bincount(unit_of_row, weights=num_counted)
        num_wrong = np.bincount(unit_of_row, weights=num_wrong)
    is_present = num_counted > 0
    shares: np.ndarray = num_wrong[is_present] / num_counted[is_present]
    return shares


def losses_of_labels(label_of_image: Tensor, is_wrong: Tensor) -> np.ndarray:
    """Errors whose mean estimates the mean over the labels of each label's share of wrong answers.

    The rarest label has n images. The images of every other label are dealt into n heaps, and the
    mean of each heap is one error. So each label has n independent errors, each of which is
    expected to be the label's share of wrong answers.

    Args:
        label_of_image: (N, C) bool, at most one label in a row.
        is_wrong: (N,) bool.
    """
    num_heaps = int(label_of_image.sum(dim=0).min())
    if num_heaps == 0:
        return np.zeros(0)
    wrong = is_wrong.double().numpy()
    losses = []
    for has_label in label_of_image.T.numpy():
        of_label = wrong[has_label]
        bounds = np.linspace(0, len(of_label), num_heaps + 1).astype(int)
        losses.append(np.add.reduceat(of_label, bounds[:-1]) / np.diff(bounds))
    return np.concatenate(losses)


def _divergence(first: float, second: float) -> float:
    """Kullback-Leibler divergence of two Bernoulli variables with these means."""
    divergence = 0.0
    for p, q in ((first, second), (1 - first, 1 - second)):
        if p > 0:
            if q <= 0:
                return math.inf
            divergence += p * math.log(p / q)
    return divergence
