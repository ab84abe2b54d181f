"""Converts a checkpoint that only an unrestricted unpickler can read into a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from ..handlers.base.errors import MemberError
from ..handlers.base.quoting import printable
from .sandbox import Bounds, run_confined

_JOB = f"{__package__}.checkpoint_tensors"
_MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Conversion:
    """What was converted, and what was left out.

    Attributes:
        num_tensors: number of tensors that were written.
        num_bytes: their bytes.
        path: where in the checkpoint they were; empty: at its top.
        prefix: what was removed from the beginning of every name.
        num_shared: number of tensors that share memory with another one; each has its own copy now.
        other_tensors: path of each set of tensors that was not taken -> number of its tensors.
        others: path of each value that is no tensor -> its type.
        asked_for: names of functions and classes that the pickle asked for; none was run.
    """

    num_tensors: int
    num_bytes: int
    path: str
    prefix: str
    num_shared: int
    other_tensors: Mapping[str, int]
    others: Mapping[str, str]
    asked_for: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
    seconds: float = 600,
    memory_bytes: int | None = None,
    confined: bool = True,
    overwrite: bool = False,
) -> Conversion:
    """Write the tensors of a checkpoint as a safetensors file.

    The checkpoint is unpickled in a process of its own, which may neither open files nor use the
    network nor start processes. Nothing of the file is unpickled in this process.

    Args:
        source: a file that `torch.save` wrote.
        target: the new file, whose name ends with .safetensors.
        key: path of the tensors in the checkpoint, such as ``ema.state_dict``; None: usual ones.
        prefix: take only the tensors whose names begin with this, without it; None: all.
        seconds: how long loading may take.
        memory_bytes: memory that loading may take; None: three times the checkpoint and 1 GiB.
        confined: False if the process may run without its sandbox, for machines that have none.
        overwrite: whether the target may exist.

    Raises:
        MemberError: the checkpoint cannot be converted, or did what it must not.
    """
    if target.suffix != ".safetensors":
        raise MemberError(f"{target}: the name of the new file must end with .safetensors")
    if target.exists() and not overwrite:
        raise MemberError(f"{target} exists; name another file, or replace it with --force")
    if not source.is_file():
        raise MemberError(f"{source}: no such file")
    bound = memory_bytes or 3 * source.stat().st_size + 1024**3
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            report = run_confined(
                _JOB,
                source,
                Bounds(seconds=seconds, memory_bytes=bound, output_bytes=bound),
                file.write,
                arguments={"key": key, "prefix": prefix},
                confined=confined,
            )
        conversion = _checked(report, partial, source)
        partial.replace(target)
    except OSError as error:
        raise MemberError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return conversion


def _checked(report: Mapping[str, Any], written: Path, source: Path) -> Conversion:
    """Check the answer of the process, which code of the checkpoint may have written.

    Raises:
        MemberError: the file is no safetensors file, or the report is not of the expected form.
    """
    try:
        # safetensors checks the header: types, shapes, and that the tensors fill the file exactly.
        with safetensors.safe_open(written, framework="np") as tensors:
            num_tensors = len(tensors.keys())
        return Conversion(
            num_tensors=num_tensors,
            num_bytes=int(report["bytes"]),
            path=_name(report["path"]),
            prefix=_name(report["prefix"]),
            num_shared=int(report["shared"]),
            other_tensors={_name(k): int(n) for k, n in report["other_tensors"].items()},
            others={_name(k): _name(v) for k, v in report["others"].items()},
            asked_for=tuple(_name(each) for each in report["asked_for"]),
        )
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise MemberError(
            f"{source}: the confined process did not answer with tensors ({printable(str(error))})"
        ) from error


def _name(text: object) -> str:
    """Return a name from the checkpoint, short and without control characters."""
    return printable(str(text)[:_MAX_NAME_CHARACTERS])
