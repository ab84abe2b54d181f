"""The verb ``doctor``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import run_folder_option
from .printing import standard_output

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``doctor``."""
    doctor = subparsers.add_parser(
        "doctor",
        help="check the machine, the configuration, a spec and the running server",
        description="Look for mistakes that TorchServe does not report, and print what to do about "
        "each. The exit status is 1 if there is a problem; warnings alone give 0.",
        parents=[run_folder_option()],
    )
    doctor.add_argument(
        "spec", type=Path, nargs="?", metavar="SPEC", help="an ensemble's YAML file"
    )
    doctor.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path("config.properties"),
        help="settings of TorchServe to check, if the file exists (default: %(default)s)",
    )
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.text import Text

    from ..serving.doctor import Level, diagnose

    findings = diagnose(
        config=arguments.config, spec=arguments.spec, run_folder=arguments.run_folder
    )
    console = standard_output(soft_wrap=True)
    colours = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}
    for finding in findings:
        level = Text(f"{finding.level:<8}", colours[finding.level])
        # Keys and file names in findings may look like rich's markup; Text prints them as they are.
        console.print(level, Text(finding.what))
        if finding.remedy:
            console.print(Text(f"         -> {finding.remedy}"))
    return int(any(finding.level is Level.PROBLEM for finding in findings))
