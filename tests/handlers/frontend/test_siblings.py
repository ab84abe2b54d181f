"""Workers of a version are counted by their parent and by the archive on their path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torchserve_ensemble.handlers.frontend.siblings import count_workers


def test_only_workers_of_the_same_archive_count() -> None:
    path = "/tmp/models/0123:/tmp"
    program = "import sys; print('started', flush=True); sys.stdin.read()"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": each},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for each in (path, path, "/tmp/models/other:/tmp")
    ]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        assert [count_workers(child.pid) for child in children] == [2, 2, 1]
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_where_nothing_tells_the_number_is_unknown(tmp_path: Path) -> None:
    assert count_workers(processes=tmp_path) == 0
