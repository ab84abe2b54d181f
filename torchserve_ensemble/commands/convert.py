"""The verb ``convert``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..archiver.convert import Conversion

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MAX_NAMES_SHOWN = 5


def add_command(subparsers: Subparsers) -> None:
    """Add ``convert``."""
    convert = subparsers.add_parser(
        "convert",
        help="make a safetensors file from a checkpoint that holds more than tensors",
        description="Take the tensors out of a checkpoint that `build` refuses because its pickle "
        "holds objects: Lightning checkpoints, whole pickled modules, training states. The file is "
        "unpickled in a process that can open no file, use no network and start no process, and "
        "its classes and functions are not run: only tensors survive.",
    )
    convert.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="what torch.save wrote"
    )
    convert.add_argument("weights", type=Path, metavar="WEIGHTS.safetensors", help="the new file")
    convert.add_argument(
        "--key",
        help="where the tensors are in the checkpoint, e.g. ema.state_dict (default: state_dict, "
        "model, module, ..., or the only place that has tensors)",
    )
    convert.add_argument(
        "--prefix",
        help="take only the tensors whose names begin with this, and remove it, e.g. 'model.' of "
        "Lightning (default: all tensors, without 'module.' and '_orig_mod.' of wrappers)",
    )
    convert.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long loading may take (default: %(default)s)",
    )
    convert.add_argument(
        "--memory",
        type=int,
        metavar="MB",
        help="memory that loading may take (default: three times the file's size, and 1 GiB)",
    )
    convert.add_argument("--force", action="store_true", help="replace the new file if it exists")
    convert.add_argument(
        "--without-sandbox",
        action="store_true",
        help="go on where this machine cannot confine a process; only for files that you trust",
    )
    convert.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from ..archiver.convert import convert
    from ..handlers.base.errors import SpecError

    for option in ("timeout", "memory"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < float("inf"):
            raise SpecError(f"--{option} {value}: must be a number above 0")
    conversion = convert(
        arguments.checkpoint,
        arguments.weights,
        key=arguments.key,
        prefix=arguments.prefix,
        seconds=arguments.timeout,
        memory_bytes=None if arguments.memory is None else arguments.memory * 10**6,
        confined=not arguments.without_sandbox,
        overwrite=arguments.force,
    )
    _print(conversion, arguments.weights)
    return 0


def _print(conversion: Conversion, weights: Path) -> None:
    where = f"'{conversion.path}'" if conversion.path else "the top of the checkpoint"
    print(
        f"{weights}: {conversion.num_tensors} tensors, {conversion.num_bytes / 1e6:.1f} MB, from "
        f"{where}"
    )
    if conversion.prefix:
        print(f"the prefix '{conversion.prefix}' was removed from their names")
    if conversion.num_shared:
        print(f"{conversion.num_shared} of them shared memory with another; each has its own now")
    if conversion.other_tensors:
        sets = [f"'{path}' ({count} tensors)" for path, count in conversion.other_tensors.items()]
        print(f"not taken: {_listed(sets)}; --key takes another one")
    if conversion.others:
        others = [f"{path} ({kind})" for path, kind in conversion.others.items()]
        print(f"left out, since they are no tensors: {_listed(others)}")
    if conversion.asked_for:
        print(f"asked for by the pickle, and not run: {_listed([*conversion.asked_for])}")
    print(f"in the spec: weights: {os.fspath(weights)}")


def _listed(names: list[str]) -> str:
    num_hidden = len(names) - _MAX_NAMES_SHOWN
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    return shown if num_hidden <= 0 else f"{shown} and {num_hidden} more"
