"""What was measured on, without the name or a path of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import psutil

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def machine() -> dict[str, object]:
    """Processor, memory and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    known = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    present = known.get("flags", "").split()
    return {
        "cpu": known.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in present],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    """Every installed package."""
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def describe(found: dict[str, object]) -> str:
    """`machine` in one line."""
    flags = found["flags"]
    assert isinstance(flags, list)
    return (
        f"{found['cpu']}, {found['cores']} cores ({', '.join(flags)}), "
        f"{found['memory_gb']} GB, {found['date']}"
    )
