"""The text of a policy. It is parsed with Python's own grammar and never evaluated as code."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ..base.errors import PolicyError
from ..base.quoting import shown

MAX_CHARACTERS = 500
"""Largest number of characters in the text of a policy."""


@dataclass(frozen=True)
class Source:
    """The text of a policy on one line, and error messages that point into it.

    Attributes:
        text: printable characters, with single spaces between words.
    """

    text: str

    @classmethod
    def of(cls, text: str) -> Source:
        """Check a client's text and normalise its white space.

        Raises:
            PolicyError: the text is empty, too long, or contains characters that cannot be printed
                or that no policy has.
        """
        # The length comes first, so that an attacker's megabytes are neither split nor parsed.
        if len(text) > MAX_CHARACTERS:
            raise PolicyError(
                f"a policy has {MAX_CHARACTERS} characters at most, not {len(text)}: {shown(text)}"
            )
        line = " ".join(text.split())
        if not line:
            raise PolicyError("the policy is empty; name one, e.g. mean")
        # To Python, a backslash continues the line and a number sign begins a comment.
        if not line.isprintable() or "\\" in line or "#" in line:
            raise PolicyError(f"the policy {shown(line)} holds characters that no policy has")
        return cls(line)

    def tree(self) -> ast.expr:
        """Parse the text into Python's syntax tree.

        Raises:
            PolicyError: the text is not a Python expression.
        """
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            position = min((error.offset or 1) - 1, len(self.text))
            raise self.error(f"cannot read the policy: {error.msg}", position) from None
        except (ValueError, MemoryError, RecursionError):
            raise self.error("cannot read the policy: it is too deeply nested", 0) from None

    def error(self, reason: str, place: ast.AST | int) -> PolicyError:
        """Make an error whose message repeats the text with a caret below the mistake.

        Args:
            reason: what is wrong, and the remedy.
            place: the wrong node of `tree`, or its position in characters.
        """
        if isinstance(place, int):
            position = place
        else:
            # `col_offset` counts bytes of UTF-8, and the caret is placed by characters.
            before = self.text.encode()[: getattr(place, "col_offset", 0)]
            position = len(before.decode(errors="ignore"))
        return PolicyError(f"{reason}\n  {self.text}\n  {' ' * max(position, 0)}^")
