"""Writes the results: one JSON file for programs, and one table in Markdown for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision

from .. import machine
from .rows import Outcome, Row

STEM = "check-gpu"


def write(rows: Sequence[Row], folder: Path, device: torch.device, seconds: float) -> Path:
    """Write ``check-gpu.json`` and ``check-gpu.md``, and return the path of the latter."""
    described = _describe(device)
    counts = {each: sum(row.outcome is each for row in rows) for each in Outcome}
    content = {
        "machine": described,
        "seconds": round(seconds),
        "counts": counts,
        "rows": [asdict(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / STEM
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["# Check of the members on a device", ""]
    lines += [f"- {name}: {value}" for name, value in described.items()]
    lines += [f"- time: {seconds:.0f} s; rows: " + _as_text(counts), ""]
    lines += ["| step | what | outcome | seconds | result |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        detail = " ".join(row.detail.split("\n", 1)[0].replace("|", "\\|").split())[:400]
        lines.append(f"| {row.step} | {row.name} | {row.outcome} | {row.seconds} | {detail} |")
    tables = [row for row in rows if "\n" in row.detail and row.outcome is not Outcome.FAILED]
    for row in tables:
        lines += ["", f"{row.name}:", "", "```text", row.detail.split("\n", 1)[1], "```"]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return stem.with_suffix(".md")


def _as_text(counts: dict[Outcome, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def _describe(device: torch.device) -> dict[str, object]:
    """Describe device, processor and versions, without the machine's name or paths."""
    described: dict[str, object] = {"device": "CPU, tiny sizes: its times say nothing"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described = {
            "device": f"{properties.name}, compute capability {properties.major}."
            f"{properties.minor}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 1e9:.1f} GB",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return described | {
        "host": f"{machine.describe(machine.machine())}, {os.cpu_count()} threads",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
