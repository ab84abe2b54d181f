"""The verb ``completion``, and completions that argcomplete cannot guess from the parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_MODEL_STORE = Path("model_store")
"""Folder of the archives, if no other is named."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``completion``."""
    completion = subparsers.add_parser(
        "completion",
        help="print the script with which a shell completes verbs and options",
        description="Print a script that makes bash, zsh or fish complete the verbs, options and "
        "files of ts-ensemble. To have it in every shell: add `source <(ts-ensemble completion "
        "bash)` to ~/.bashrc; or `source <(ts-ensemble completion zsh)` to ~/.zshrc, after "
        "compinit; or run `ts-ensemble completion fish > "
        "~/.config/fish/completions/ts-ensemble.fish` once.",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="your shell")
    completion.set_defaults(run=_completion)


def complete_archives(argument: argparse.Action) -> None:
    """Let a shell complete an argument with the names of the archives in the model store."""
    argument.completer = _archives  # type: ignore[attr-defined]


def _archives(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    store = getattr(parsed_args, "model_store", DEFAULT_MODEL_STORE)
    return sorted(path.name for path in store.glob("*.mar"))


def _completion(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["ts-ensemble"], shell=arguments.shell))
    return 0
