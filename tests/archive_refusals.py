"""How archives that somebody altered are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.base.errors import EnsembleError

Contents = dict[str, bytes]
"""Path of each file in an archive -> its contents."""


def refusal(path: Path) -> str:
    """Check that `verify_archive` refuses an archive, and return its message."""
    with pytest.raises(EnsembleError) as caught:
        verify_archive(path)
    assert str(path) in caught.value.message
    return caught.value.message
