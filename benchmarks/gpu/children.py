"""How the check starts further processes of itself, from a checkout that is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The folder of the checkout."""


def command(module: str, *options: object) -> list[str]:
    """Make the command that runs a module of this checkout with this Python."""
    # -P keeps the current folder out of the search for modules.
    return [sys.executable, "-P", "-m", module, *map(str, options)]


def environment() -> dict[str, str]:
    """Return this process's environment, in which modules of the checkout are found."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
