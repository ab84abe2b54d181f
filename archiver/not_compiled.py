"""Exceptions that say why members keep running as they were saved."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

from ..handlers.base.errors import MemberError

_MAX_REASON_CHARACTERS = 300


class NotCompiled(Exception):
    """An engine cannot run members, or gives other answers than the saved members."""


class OtherAnswersError(NotCompiled):
    """An engine gives other answers than the saved members.

    Attributes:
        difference: the largest difference between two scores of one label.
    """

    def __init__(self, reason: str, difference: float) -> None:
        super().__init__(reason)
        self.difference = difference


@contextmanager
def converter_errors() -> Iterator[None]:
    """Turn every error of a compiler or converter in this context into one of a single line.

    Raises:
        NotCompiled: the compiler or converter raised an error.
        MemberError: OpenVINO is not installed.
    """
    printed = io.StringIO()
    try:
        # torch.export prints the whole program if it cannot export it, and NNCF prints bars.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except (NotCompiled, MemberError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        # OpenVINO's messages begin with lines that name places in its own source files.
        reasons = [line for line in lines if not line.startswith(("Exception from", "Check"))]
        reason, *more = (line.strip() for line in reasons or lines)
        while reason.endswith(":") and more:
            reason = f"{reason} {more.pop(0)}"
        raise NotCompiled(f"{type(error).__name__}: {reason[:_MAX_REASON_CHARACTERS]}") from error
