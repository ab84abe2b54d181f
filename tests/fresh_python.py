"""Code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def printed_by(code: str, **environment: str) -> list[str]:
    """The lines that a fresh Python prints, which must not fail."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.splitlines()
