"""Helper that runs code in a Python process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def printed_by(code: str, **environment: str) -> list[str]:
    """Run code in a new Python process, which must not fail, and return the lines that it prints.

    Args:
        code: Python code.
        environment: variables in addition to those of this process.
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.splitlines()
