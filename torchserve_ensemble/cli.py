"""The console command ``ts-ensemble``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__, predict_command
from .archiver import commands as archive_commands
from .commands import check
from .handlers.base.errors import EnsembleError, WorkerDiedError
from .serving import commands as serving_commands
from .tuning import commands as tuning_commands
from .tuning import profile as profile_command


def parser() -> argparse.ArgumentParser:
    """Every verb of the command line."""
    root = argparse.ArgumentParser(
        prog="ts-ensemble",
        description="Several PyTorch models behind one TorchServe endpoint.",
        epilog="Every verb has its own --help, which names the plain TorchServe call behind it.",
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = root.add_subparsers(metavar="VERB", required=True)
    archive_commands.add_commands(subparsers)
    tuning_commands.add_commands(subparsers)
    serving_commands.add_commands(subparsers)
    predict_command.add_command(subparsers)
    profile_command.add_command(subparsers)
    check.add_command(subparsers)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    An error that this project raises on purpose is printed as one message, without a traceback of
    this process; a worker that died shows its own.
    """
    parsed = parser().parse_args(arguments)
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


if __name__ == "__main__":
    sys.exit(main())
