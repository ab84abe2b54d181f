"""The console command ``ts-ensemble``: it reads the command line and runs one verb."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    adopt,
    apply,
    autoscale,
    build,
    check,
    compare,
    completion,
    convert,
    describe,
    diff,
    doctor,
    evaluate,
    feedback,
    inspect,
    metrics,
    predict,
    profile,
    proxy,
    ready,
    register,
    registry,
    renew,
    rollback,
    rollout,
    scale,
    schema,
    selftest,
    serve,
    set_default,
    sign,
    status,
    stop,
    token,
    tune,
    unregister,
    verify,
    versions,
    watch,
)
from .handlers.base.errors import EnsembleError, WorkerDiedError
from .serving.transports import NoAnswerError

_VERBS = (
    adopt,
    build,
    renew,
    sign,
    verify,
    inspect,
    diff,
    convert,
    schema,
    check,
    tune,
    evaluate,
    profile,
    serve,
    stop,
    status,
    ready,
    token,
    register,
    scale,
    versions,
    set_default,
    unregister,
    apply,
    watch,
    autoscale,
    rollout,
    rollback,
    registry,
    describe,
    predict,
    selftest,
    proxy,
    metrics,
    compare,
    feedback,
    doctor,
    completion,
)
"""All verbs in the order of ``ts-ensemble --help``: build, choose, serve, change, keep, ask."""

_LIST_ARGUMENTS = ("names", "models", "archives")
"""Names of the positional arguments that take any number of values."""

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it: 128 and the number of the signal."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with all verbs."""
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
    """Run one verb and return its exit status.

    An error that this project raises on purpose is printed as a message without a traceback. A
    worker that died while it loaded has its own traceback printed above the message.
    """
    root = parser()
    if "_ARGCOMPLETE" in os.environ:
        # A shell asks how to complete a command line. This writes the answer and ends the process.
        import argcomplete

        argcomplete.autocomplete(root)
    try:
        try:
            return _run(_parse(root, arguments))
        finally:
            # Output that waits in the buffer must meet a closed pipe here, and not at exit.
            print(end="", flush=True)
    except BrokenPipeError:
        # The reader has gone away, as in `ts-ensemble status | head -1`.
        _discard_output()
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(parsed: argparse.Namespace) -> int:
    try:
        status: int = parsed.run(parsed)
    except EnsembleError as error:
        if isinstance(error, WorkerDiedError) and error.worker_traceback:
            print(error.worker_traceback, file=sys.stderr)
        message = error.message
        if isinstance(error, NoAnswerError) and "answer_timeout" in parsed:
            message += f"; --timeout SECONDS waits longer (now {parsed.answer_timeout:g})"
        print(f"ts-ensemble: {message}", file=sys.stderr)
        return getattr(parsed, "error_status", 1)
    return status


def _parse(root: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of one verb; options may stand among its images or archives.

    argparse fills a list of positional arguments only with values that stand side by side. Those
    behind a later option (``predict NAME --policy any IMAGE``) are left over, and belong to it too.
    """
    parsed, left_over = root.parse_known_args(arguments)
    values = next((vars(parsed)[name] for name in _LIST_ARGUMENTS if name in parsed), None)
    if values is None or any(text.startswith("-") and text != "-" for text in left_over):
        # What is left over is an error, which argparse reports if it parses once more.
        return parsed if not left_over else root.parse_args(arguments)
    values += left_over
    return parsed


def _discard_output() -> None:
    """Let what was not written yet go nowhere, so that Python does not fail on it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
