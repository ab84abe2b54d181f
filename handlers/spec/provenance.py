"""The sections of a spec that say where the ensemble and each of its members come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from .value_types import UNKNOWN_KEYS_ARE_ERRORS

_LICENCE_HELP = "an SPDX identifier or expression, e.g. Apache-2.0"

Line = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=500)]
"""One line of text, neither empty nor with spaces at its ends."""


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class MemberProvenance:
    """Where a member comes from, if it differs from where the ensemble comes from."""

    licence: Annotated[
        Line | None,
        Field(
            description=f"Licence of the member's weights: {_LICENCE_HELP}; left out: the "
            "ensemble's"
        ),
    ] = None
    data_sets: Annotated[
        tuple[Line, ...],
        Field(description="Data sets that the member was trained on, each as NAME or NAME@VERSION"),
    ] = ()
    url: Annotated[
        Line | None, Field(description="Where the weights or their documentation are published")
    ] = None


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Provenance:
    """Where the ensemble comes from. The archive carries it and `ts-ensemble inspect` shows it."""

    owner: Annotated[
        str | None, Field(description="Person or team that answers questions about the ensemble")
    ] = None
    created: Annotated[str | None, Field(description="Date in ISO 8601, e.g. '2026-11-22'")] = None
    source_revision: Annotated[
        str | None, Field(description="Revision of the code that trained the members")
    ] = None
    training_data: Annotated[
        str | None, Field(description="Name of the data set that the members were trained on")
    ] = None
    training_data_version: Annotated[str | None, Field(description="Version of that data set")] = (
        None
    )
    tuning_data: Annotated[
        str | None,
        Field(description="Digest of the data that thresholds and policies were tuned on"),
    ] = None
    url: Annotated[
        str | None, Field(description="Where the ensemble or its documentation is published")
    ] = None
    licence: Annotated[
        Line | None, Field(description=f"Licence of the weights: {_LICENCE_HELP}")
    ] = None
    metrics: Annotated[
        Mapping[str, Mapping[str, float]],
        Field(description="Measured quality: data set -> metric -> value"),
    ] = field(default_factory=dict)
    guarantees: Annotated[
        Mapping[str, str],
        Field(
            description="What `ts-ensemble tune` guarantees of policies, with its assumptions: "
            "name of the policy -> statement"
        ),
    ] = field(default_factory=dict)
