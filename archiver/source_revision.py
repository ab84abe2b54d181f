"""Finds the revision of the sources that an archive is built from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class SourceRevision:
    """The state of the git work tree that a spec lies in.

    Attributes:
        commit: hash of the commit that is checked out.
        dirty: whether a file that git tracks differs from the commit.
    """

    commit: str
    dirty: bool


def source_revision(folder: Path, report: Callable[[str], None] = print) -> SourceRevision | None:
    """Return the revision of the git work tree that contains a folder.

    Files that git does not track make no tree dirty: archives are often built into the tree itself.
    What such a file contributes to an archive, its SHA-256 in the record shows.

    Args:
        folder: the folder.
        report: called with the reason if there is a work tree, and git cannot read it.

    Returns:
        The revision; None if the folder lies in no work tree, or git cannot read it.
    """
    resolved = folder.resolve()
    if not any((parent / ".git").exists() for parent in (resolved, *resolved.parents)):
        return None
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = f"git did not answer in {_TIMEOUT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or f"git ended with status {error.returncode}"
    else:
        return SourceRevision(commit, dirty=bool(status))
    report(f"the archive does not name the revision of its sources: {reason[:500]}")
    return None


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints.

    Raises:
        FileNotFoundError, TimeoutExpired, CalledProcessError: git is missing, hangs or fails.
    """
    # A repository's own configuration could name a program that git status starts.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # Variables such as GIT_DIR would name another repository.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        timeout=_TIMEOUT_SECONDS,
        check=True,
    )
    return done.stdout.strip()
