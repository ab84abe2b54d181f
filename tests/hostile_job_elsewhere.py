"""`hostile_job` on a machine that has no filter of system calls."""

from __future__ import annotations

import platform

from hostile_job import answer

__all__ = ["answer", "warm_up"]


def warm_up() -> None:
    platform.machine = lambda: "riscv64"
