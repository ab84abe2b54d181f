"""Checks for the known traps of TorchServe, each with what to do about it.

Enters: nothing, or a config.properties, a spec or the run folder of a server.
Leaves: findings. Nothing is changed or removed.
"""

from .diagnosis import diagnose
from .findings import Finding, Level

__all__ = ["Finding", "Level", "diagnose"]
