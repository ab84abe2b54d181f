"""A shell completes verbs, options, choices and archives, and torch is not imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchserve_ensemble.cli import main


def completions(line: str, folder: Path) -> set[str]:
    """What a shell shows when Tab is pressed at the end of a line, in the way that bash asks."""
    answer = folder / "completions"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    program = (
        "import sys, atexit\n"
        "from torchserve_ensemble.cli import main\n"
        "import os\n"
        "leave = os._exit\n"
        "os._exit = lambda status: leave(9 if 'torch' in sys.modules else status)\n"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=folder,
        capture_output=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return set(answer.read_text().split())


def test_a_verb(tmp_path: Path) -> None:
    assert completions("ts-ensemble unr", tmp_path) == {"unregister"}


def test_an_option_and_its_values(tmp_path: Path) -> None:
    assert completions("ts-ensemble predict digits --on-", tmp_path) == {"--on-error"}
    assert completions("ts-ensemble predict digits --on-error ", tmp_path) == {"fail", "skip"}


def test_archives_of_the_model_store(tmp_path: Path) -> None:
    for store in ("model_store", "other"):
        (tmp_path / store).mkdir()
        (tmp_path / store / f"{store}-1.0.mar").touch()
    assert completions("ts-ensemble serve ", tmp_path) >= {"model_store-1.0.mar"}
    line = "ts-ensemble serve --model-store other o"
    assert completions(line, tmp_path) == {"other-1.0.mar"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "complete" in (script := capsys.readouterr().out)
    assert "ts-ensemble" in script


def test_bash_takes_the_script(tmp_path: Path) -> None:
    """In a real bash, with the command of this environment."""
    program = """
        source <(ts-ensemble completion bash)
        COMP_LINE="ts-ensemble vers" COMP_POINT=16 COMP_TYPE=9
        COMP_WORDS=(ts-ensemble vers) COMP_CWORD=1
        _python_argcomplete ts-ensemble vers ts-ensemble
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", program],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.split() == ["versions"], result.stderr
