"""Why a member runs as it was saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..handlers.base.errors import MemberError


class NotCompiled(Exception):
    """An engine cannot run a member, or has no advantage."""


class OtherAnswersError(NotCompiled):
    """An engine gives other answers than the saved members.

    Attributes:
        difference: the largest difference of a score.
    """

    def __init__(self, reason: str, difference: float) -> None:
        super().__init__(reason)
        self.difference = difference


@contextmanager
def converter_errors() -> Iterator[None]:
    """Turn whatever a compiler or converter raises into one line.

    Raises:
        NotCompiled: with that line.
        MemberError: OpenVINO is not installed.
    """
    try:
        yield
    except (NotCompiled, MemberError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        # OpenVINO begins with places in its own sources.
        words = [line for line in lines if not line.startswith(("Exception from", "Check"))]
        reason = (words or lines)[0]
        raise NotCompiled(f"{type(error).__name__}: {reason[:300]}") from error
