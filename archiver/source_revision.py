"""Finds the revision of the sources that an archive is built from."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..handlers.base.errors import ArchiveError

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


def source_revision(folder: Path) -> SourceRevision | None:
    """Return the revision of the git work tree that contains a folder.

    Files that git does not track make no tree dirty: archives are often built into the tree itself.
    What such a file contributes to an archive, its SHA-256 in the record shows.

    Returns:
        The revision. None if the folder lies in no work tree, if nothing is committed yet, or if
        git is not installed.

    Raises:
        ArchiveError: there is a work tree, and git cannot read it.
    """
    resolved = folder.resolve()
    if not any((parent / ".git").exists() for parent in (resolved, *resolved.parents)):
        return None
    if _git(folder, "rev-parse", "--is-inside-work-tree") is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if status is None:
        raise ArchiveError(f"{folder}: `git status` failed; run it there to see why")
    return SourceRevision(commit, dirty=bool(status))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None if it fails or is not installed."""
    # A repository's own configuration could name a program that git status starts.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(f"{folder}: git did not answer in {_TIMEOUT_SECONDS} s") from error
    return done.stdout.strip() if done.returncode == 0 else None
