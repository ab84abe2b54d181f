"""Constrained text and numbers that several sections of the spec use."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

UNKNOWN_KEYS_ARE_ERRORS = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=False)
"""Pydantic's settings for every dataclass of the spec."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
SideInPixels = Annotated[int, Field(gt=0, le=16384)]
OwnFunctionName = Annotated[str, Field(pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z_0-9]*$")]
"""FILE.py:FUNCTION: a function of the user's own; the file's path starts at the spec's folder."""
