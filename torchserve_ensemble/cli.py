"""The console command ``ts-ensemble``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    adopt,
    build,
    check,
    describe,
    doctor,
    evaluate,
    predict,
    profile,
    proxy,
    register,
    scale,
    schema,
    serve,
    set_default,
    status,
    stop,
    token,
    tune,
    unregister,
    verify,
    versions,
)
from .handlers.base.errors import EnsembleError, WorkerDiedError

_VERBS = (
    adopt,
    build,
    verify,
    schema,
    check,
    tune,
    evaluate,
    profile,
    serve,
    stop,
    status,
    token,
    register,
    scale,
    versions,
    set_default,
    unregister,
    describe,
    predict,
    proxy,
    doctor,
)
"""In the order of ``ts-ensemble --help``: make, choose, serve, change, ask."""


_LISTS = ("names", "models", "archives")
"""Arguments of which a verb takes any number."""


def parser() -> argparse.ArgumentParser:
    """Every verb of the command line."""
    root = argparse.ArgumentParser(
        prog="ts-ensemble",
        description="Several PyTorch models behind one TorchServe endpoint.",
        epilog="Every verb has its own --help, which names the plain TorchServe call behind it.",
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = root.add_subparsers(metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add_command(subparsers)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    An error that this project raises on purpose is printed as one message, without a traceback of
    this process; a worker that died shows its own.
    """
    parsed = _parsed(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except WorkerDiedError as error:
        if error.worker_traceback:
            print(error.worker_traceback, file=sys.stderr)
        print(f"ts-ensemble: {error.message}", file=sys.stderr)
        return 1
    except EnsembleError as error:
        print(f"ts-ensemble: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `ts-ensemble describe NAME | head`: nobody reads on. Python would complain once more when
        # it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of one verb; options may stand among its images or archives.

    argparse gives a list of positional arguments what stands together, and leaves over what comes
    after an option (``predict NAME --policy any IMAGE``).
    """
    root = parser()
    parsed, rest = root.parse_known_args(arguments)
    listed = next((vars(parsed)[name] for name in _LISTS if name in parsed), None)
    if listed is None or any(each.startswith("-") and each != "-" for each in rest):
        # Now that it is an error, argparse words it.
        return parsed if not rest else root.parse_args(arguments)
    listed += rest
    return parsed


if __name__ == "__main__":
    sys.exit(main())
