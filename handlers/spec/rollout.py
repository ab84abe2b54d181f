"""The section `rollout` of a spec: a candidate that is tried beside the current ensemble."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from .value_types import UNKNOWN_KEYS_ARE_ERRORS, Name, PositiveNumber, Probability


class RolloutMode(StrEnum):
    """Whether clients get the answers of the candidate."""

    SHADOW = "shadow"
    CANARY = "canary"


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Rollout:
    """A candidate that is tried beside the current ensemble, in the same workers.

    The candidate consists of other members, of another policy, or of both.
    """

    mode: Annotated[
        RolloutMode,
        Field(
            description="shadow: the candidate's decisions are compared with the answers and "
            "counted, and no client sees them. canary: the candidate answers a share of the "
            "requests. Requests that choose members, weights, thresholds or a policy themselves "
            "take no part"
        ),
    ]
    new_members: Annotated[
        tuple[Name, ...],
        Field(
            description="Names of the `members` that only the candidate has: they do not vote in "
            "the current ensemble, and clients cannot choose them"
        ),
    ] = ()
    members: Annotated[
        Annotated[tuple[Name, ...], Field(min_length=1)] | None,
        Field(description="Names of all members of the candidate; left out: all `members`"),
    ] = None
    policy: Annotated[
        str | None,
        Field(description="The policy of the candidate; left out: `policies.default`"),
    ] = None
    share: Annotated[
        Probability | None,
        Field(
            description="For canary: share of the requests that the candidate answers. Requests "
            "with the same option `sticky_key` are always answered by the same side, and those of "
            "the candidate stay with it if the share grows"
        ),
    ] = None
    deadline_ms: Annotated[
        PositiveNumber,
        Field(
            description="For shadow: milliseconds after an answer was handed back within which "
            "the candidate must have computed; later decisions are not compared"
        ),
    ] = 2000
