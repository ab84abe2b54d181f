"""Chooses for each request whether the candidate or the current ensemble answers it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..decisions.choosing import Chooser
from ..decisions.result import SIDE_KEY
from ..policies import Catalogue
from ..requests.options import RequestOptions
from ..spec import EnsembleSpec


class Side(StrEnum):
    """Which side answered a request of a canary."""

    CANDIDATE = "candidate"
    CURRENT = "current"
    FALLBACK = "fallback"
    """The current ensemble answered because the candidate failed."""


def leaves_choice_open(options: RequestOptions) -> bool:
    """Return whether a request leaves members and policy to the deployment.

    A client that chooses them itself gets what it asked for, and takes no part in a rollout.
    """
    return not (
        options.policy
        or options.policy_parameters
        or options.members
        or options.weights
        or options.thresholds
    )


def is_assigned(key: str, share: float, salt: str) -> bool:
    """Return whether the candidate answers the requests with this key.

    The answer depends on nothing else, so all workers agree, also after a restart. Whoever is
    assigned at some share is assigned at every larger one.

    Args:
        key: what the client calls itself, or the identifier of one request.
        share: share of the keys that are assigned, from 0 to 1.
        salt: name of the ensemble, so that two ensembles assign different keys.
    """
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True)
class Canary:
    """The two sides of a canary.

    Attributes:
        name: name of the ensemble.
        share: share of the requests that the candidate answers.
        choosers: the chooser of each side, whose answers name that side.
        members: positions of the members of both sides. Samples are decoded for all of them,
            because the current ensemble answers if the candidate fails.
    """

    name: str
    share: float
    choosers: Mapping[Side, Chooser]
    members: tuple[int, ...]

    @classmethod
    def of_spec(
        cls,
        spec: EnsembleSpec,
        current: Catalogue,
        candidate: Catalogue,
        model: Mapping[str, str | None],
    ) -> Canary:
        """Make the canary that a spec describes.

        Args:
            spec: an ensemble whose `rollout` is a canary.
            current: the policies of the current ensemble.
            candidate: the policies of the candidate.
            model: name, version and archive digest, which every answer contains.
        """
        assert spec.rollout is not None
        assert spec.rollout.share is not None
        choosers = {
            side: Chooser(
                spec,
                candidate if side is Side.CANDIDATE else current,
                {**model, SIDE_KEY: str(side)},
                is_candidate=side is Side.CANDIDATE,
            )
            for side in Side
        }
        members = tuple(sorted({*spec.current_members, *spec.candidate_members}))
        return cls(spec.name, spec.rollout.share, choosers, members)

    def chooser(self, options: RequestOptions, request_id: str) -> Chooser | None:
        """Choose a side for a request; None if the request takes no part in the rollout.

        Args:
            options: options of the request.
            request_id: identifier of the request; empty outside of TorchServe, where a request
                without a key is answered by the current ensemble.
        """
        if not leaves_choice_open(options):
            return None
        key = options.sticky_key or request_id
        assigned = bool(key) and is_assigned(key, self.share, self.name)
        return self.choosers[Side.CANDIDATE if assigned else Side.CURRENT]
