"""Constrained text and numbers that several sections of the spec use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field

UNKNOWN_KEYS_ARE_ERRORS = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=False)
"""Pydantic's settings for every dataclass of the spec."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"
_VERSION = r"^[0-9]+(\.[0-9]+)*$"
_OWN_FUNCTION = r"^[^:]+\.py:[A-Za-z_][A-Za-z_0-9]*$"
PATTERNS: Mapping[str, str] = {
    _NAME: "letters, digits, '_', '.' and '-', beginning with a letter or a digit",
    _VERSION: "numbers separated by dots, such as 1.0",
    _OWN_FUNCTION: "FILE.py:FUNCTION",
}
"""Regular expression of text in the spec -> what it allows, for messages."""

Name = Annotated[str, Field(pattern=_NAME, max_length=100)]
Version = Annotated[
    str, Field(pattern=_VERSION, description="Numbers separated by dots, in quotes, e.g. '1.0'")
]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
SideInPixels = Annotated[int, Field(gt=0, le=16384)]
OwnFunctionName = Annotated[str, Field(pattern=_OWN_FUNCTION)]
"""FILE.py:FUNCTION: a function of the user's own; the file's path starts at the spec's folder."""
