"""The verb ``doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import run_folder_option

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``doctor``."""
    doctor = subparsers.add_parser(
        "doctor",
        help="check the machine, the configuration, a spec and the running server",
        description="Checks against the known traps of TorchServe, and prints what to do.",
        parents=[run_folder_option()],
    )
    doctor.add_argument("spec", type=Path, nargs="?", help="an ensemble's YAML file")
    doctor.add_argument("--config", type=Path, default=Path("config.properties"))
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from ..serving.doctor import Level, diagnose

    findings = diagnose(
        config=arguments.config, spec=arguments.spec, run_folder=arguments.run_folder
    )
    console = Console(soft_wrap=True)
    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
    for finding in findings:
        level = Text(f"{finding.level:<8}", colours[finding.level])
        # Findings repeat keys and names of files, which may hold what rich takes for markup.
        console.print(level, Text(finding.what))
        if finding.remedy:
            console.print(Text(f"         -> {finding.remedy}"))
    return int(any(finding.level is Level.PROBLEM for finding in findings))
