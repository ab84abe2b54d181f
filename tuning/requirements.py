"""The packages of the extra ``tune``, which most users never need."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ..handlers.base.errors import SpecError

TUNING_MODULES = ("sklearn", "scipy", "matplotlib", "ruamel.yaml")
"""What `tune` and `evaluate` import."""


def require_installed(modules: Sequence[str], who: str) -> None:
    """Name the module of the extra ``tune`` that is missing.

    Args:
        modules: that are needed.
        who: what needs them, with its verb.

    Raises:
        SpecError: one is not installed.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SpecError(f"{who} '{name}': pip install 'torchserve-ensemble[tune]'") from error
