"""The verb ``build``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .completion import DEFAULT_MODEL_STORE
from .printing import reported_work

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``build``."""
    build = subparsers.add_parser(
        "build",
        help="build a model archive from a spec",
        description="Build NAME-VERSION.mar from an ensemble spec, after loading and running every "
        "member once. The result is a plain TorchServe archive.",
    )
    build.add_argument("spec", type=Path, metavar="SPEC", help="the ensemble's YAML file")
    build.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=DEFAULT_MODEL_STORE,
        help="folder for the archive (default: %(default)s)",
    )
    build.add_argument(
        "--no-check",
        action="store_true",
        help="write the archive without loading and running the members first",
    )
    build.add_argument(
        "--samples",
        type=Path,
        metavar="FOLDER",
        help="images like those that will be sent: members that run with another engine than torch "
        "must answer on them as the saved ones do",
    )
    build.add_argument(
        "--keep-samples",
        type=int,
        metavar="N",
        default=0,
        help="put the first N images of --samples into the archive, as probes of its self-test; "
        "whoever has the archive or may describe the model can see them (default: none)",
    )
    build.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from ..archiver.build import build_archive

    with reported_work(f"building {arguments.spec}") as report:
        archive = build_archive(
            arguments.spec,
            arguments.output,
            check=not arguments.no_check,
            samples=arguments.samples,
            kept_samples=arguments.keep_samples,
            report=report,
        )
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0
