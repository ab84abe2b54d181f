"""A comparison of two deciders on the same samples that may be looked at every day.

The usual test of paired decisions (McNemar 1947) holds for one look at a number of samples that was
fixed before. Whoever looks again and again, and stops when it is significant, is misled far more
often than in 5 % of the cases. The evidence here is a test martingale: whatever is looked at and
whenever it is stopped, it reaches 20 with a probability of at most 1/20 if there is no difference
(Ville 1939). See Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38(4), 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_BISECTIONS = 60
"""Steps in which an end of an interval between 0 and 1 is found, to the last digit of a float."""


@dataclass(frozen=True)
class PairedEvidence:
    """Evidence that two deciders are right with different probabilities.

    Only samples on which exactly one of the two is right tell anything. If both are equally good,
    each of these is a fair coin. The evidence is the likelihood of a coin of unknown bias, averaged
    over all biases (Robbins 1970: a uniform mixture), divided by that of the fair coin. It does not
    depend on the order of the samples.

    Attributes:
        num_first: samples on which only the first is right.
        num_second: samples on which only the second is right.
    """

    num_first: int
    num_second: int

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the evidence against the fair coin."""
        return self._log_ratio(0.5)

    @property
    def evidence(self) -> float:
        """Evidence against the fair coin; from 20 on a difference is shown at 95 % confidence."""
        return math.exp(min(700.0, self.log_evidence))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Compute an interval of the coin's bias that holds at all looks together.

        The bias is the share of the second among the samples on which exactly one is right. The
        interval has each bias against which the evidence is below ``1 / (1 - confidence)``.
        """
        limit = -math.log1p(-confidence)
        total = self.num_first + self.num_second
        if total == 0:
            return (0.0, 1.0)
        best = self.num_second / total
        return self._end(0.0, best, limit), self._end(1.0, best, limit)

    def _end(self, outside: float, inside: float, limit: float) -> float:
        """Find the end of the interval between a bias outside of it and one inside."""
        if self._log_ratio(outside) < limit:
            return outside
        for _ in range(_BISECTIONS):
            middle = (outside + inside) / 2
            if self._log_ratio(middle) < limit:
                inside = middle
            else:
                outside = middle
        return outside

    def _log_ratio(self, bias: float) -> float:
        """Logarithm of the averaged likelihood divided by that of one bias."""
        first, second = self.num_first, self.num_second
        averaged = (
            math.lgamma(first + 1) + math.lgamma(second + 1) - math.lgamma(first + second + 2)
        )
        return averaged - _times_log(second, bias) - _times_log(first, 1 - bias)


def _times_log(count: int, probability: float) -> float:
    """Compute ``count * log(probability)``, which is 0 for no trials of any probability."""
    if count == 0:
        return 0.0
    return count * math.log(probability) if probability > 0 else -math.inf
