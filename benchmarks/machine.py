"""Describes the machine of a measurement, without its name and without any path on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""The processor's instruction sets that change how fast members are computed."""


def machine() -> dict[str, object]:
    """Describe processor, memory, system and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    cpu_info = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = cpu_info.get("flags", "").split()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_info.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gb": round(memory_bytes / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    """List the versions of all installed packages, by name."""
    packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return dict(sorted(packages.items(), key=lambda pair: pair[0].lower()))


def describe(machine: dict[str, object]) -> str:
    """Write the result of `machine` in one line."""
    flags = machine["flags"]
    assert isinstance(flags, list)
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(flags)}), "
        f"{machine['memory_gb']} GB, {machine['date']}"
    )
