"""Combination policies: pure functions from what the members say to one answer.

`Ballot` -> policy -> `Outcome`. `parse_policy` turns a client's text into a `BoundPolicy`; the
registered policies live in `votes`, `averages`, `learned` and `lazy`, and importing this package
registers them all.
"""

from .ballot import Ballot, Outcome, Panel, joined, one_hot, rows_of
from .catalogue import Catalogue
from .fitted import (
    ClassWeightsModel,
    DawidSkeneModel,
    FittedModel,
    StackingModel,
    load_fitted,
    save_fitted,
)
from .lazy import can_stop_early, combine_lazily, settled
from .learned import dawid_skene, per_class_weights, stacking
from .parsing import check_catalogue, parse_policy
from .registry import BoundPolicy, Definition, definitions, policy
from .votes import votes_for_majority

__all__ = [
    "Ballot",
    "BoundPolicy",
    "Catalogue",
    "ClassWeightsModel",
    "DawidSkeneModel",
    "Definition",
    "FittedModel",
    "Outcome",
    "Panel",
    "StackingModel",
    "can_stop_early",
    "check_catalogue",
    "combine_lazily",
    "dawid_skene",
    "definitions",
    "joined",
    "load_fitted",
    "one_hot",
    "parse_policy",
    "per_class_weights",
    "policy",
    "rows_of",
    "save_fitted",
    "settled",
    "stacking",
    "votes_for_majority",
]
