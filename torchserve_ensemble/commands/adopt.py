"""The verb ``adopt``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``adopt``."""
    adopt = subparsers.add_parser(
        "adopt",
        help="make a spec from archives of TorchServe's image_classifier",
        description="Make a spec from archives that a stock TorchServe serves with its handler "
        "image_classifier (a model file with its state dict, or TorchScript). It writes "
        "ensemble.yaml, and beside it the archives' weights, labels and architectures. The "
        "archives' code is copied and not run; `ts-ensemble build` runs it, as TorchServe does.",
    )
    adopt.add_argument("archives", nargs="+", metavar="ARCHIVE", help="a .mar file")
    adopt.add_argument("--name", required=True, help="name of the ensemble")
    adopt.add_argument("--version", default="1.0", help="version of the ensemble (default: 1.0)")
    adopt.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="new folder for these files (default: a folder with the ensemble's name)",
    )
    adopt.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels in the format of index_to_name.json, for archives without labels",
    )
    adopt.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> int:
    from ..archiver.adopt import adopt

    adoption = adopt(
        [Path(archive) for archive in arguments.archives],
        arguments.output or Path(arguments.name),
        name=arguments.name,
        version=arguments.version,
        labels=arguments.labels,
    )
    for sentence in adoption.members:
        print(sentence)
    print("\nWhat the archives do not say (also in the spec):")
    for sentence in adoption.notes:
        print(f"- {sentence}")
    print(f"\n{adoption.spec}: read it, then run ts-ensemble build {adoption.spec}")
    return 0
