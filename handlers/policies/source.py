"""The text of a policy: read by Python's own grammar, never evaluated."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..base.errors import PolicyError
from ..base.quoting import shown

MAX_LENGTH = 500
"""Characters in the text of a policy."""


@dataclass(frozen=True)
class Source:
    """One line of printable text, and messages that point into it."""

    text: str

    @classmethod
    def of(cls, text: str) -> Source:
        """From a client's text, white space put in order.

        Raises:
            PolicyError: it is empty, too long, or holds characters that cannot be shown.
        """
        # Cheap first: an attacker's megabytes are neither split nor parsed.
        if len(text) > MAX_LENGTH:
            raise PolicyError(
                f"a policy has {MAX_LENGTH} characters at most, not {len(text)}: {shown(text)}"
            )
        line = " ".join(text.split())
        if not line:
            raise PolicyError("the policy is empty; name one, e.g. mean")
        # Python would read a backslash as a continued line and drop what follows a number sign.
        if not line.isprintable() or "\\" in line or "#" in line:
            raise PolicyError(f"the policy {shown(line)} holds characters that no policy has")
        return cls(line)

    def tree(self) -> ast.expr:
        """The syntax tree.

        Raises:
            PolicyError: the text does not follow the grammar.
        """
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            position = min((error.offset or 1) - 1, len(self.text))
            raise self.error(f"cannot read the policy: {error.msg}", position) from None
        except (ValueError, MemoryError, RecursionError):
            raise self.error("cannot read the policy: it is too deeply nested", 0) from None

    def error(self, reason: str, place: ast.AST | int) -> PolicyError:
        """A message with a caret below the place.

        Args:
            reason: what is wrong, and the remedy.
            place: a node of `tree`, or a position in characters.
        """
        if isinstance(place, int):
            position = place
        else:
            # Python counts columns in bytes of UTF-8.
            before = self.text.encode()[: getattr(place, "col_offset", 0)]
            position = len(before.decode(errors="ignore"))
        return PolicyError(f"{reason}\n  {self.text}\n  {' ' * max(position, 0)}^")
