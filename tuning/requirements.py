"""The packages of the extra ``tune``, which most users never need."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ..handlers.base.errors import SpecError

TUNING_MODULES = ("sklearn", "scipy", "matplotlib", "ruamel.yaml")
"""Modules that `tune` and `evaluate` import; `diff` imports scipy alone."""


def require_installed(modules: Sequence[str], who: str) -> None:
    """Check that modules of the extra ``tune`` are installed.

    Args:
        modules: names of the modules.
        who: subject and verb of the error message, such as ``tuning needs``.

    Raises:
        SpecError: a module is not installed; the message names it and says how to install it.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SpecError(f"{who} '{name}': pip install 'torchserve-ensemble[tune]'") from error
