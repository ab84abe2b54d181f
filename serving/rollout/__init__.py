"""Replaces the served version of a model by another one, and returns to the one before.

Enters: a running server, and an archive in its model store.
Leaves: the new version as the default one, or the old one as it was. What was done so far is read
from the server alone, so a rollout that was killed is continued by the next one.
"""

from .comparison import Bounds
from .rollout import Rollout, Strategy
from .steps import RolloutSettings, Step

__all__ = ["Bounds", "Rollout", "RolloutSettings", "Step", "Strategy"]
