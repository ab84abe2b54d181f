"""Combination policies: pure functions that turn the members' scores into one answer.

Enters: the text of a policy, as a client or a spec writes it, and a `Ballot`, which holds the
members' scores for some samples.
Leaves: an `Outcome`, with one answer for each sample.
Must not import: anything of this project but `base`. Policies know nothing of models, images,
requests or specs.

`parse_policy` checks the text and returns a `BoundPolicy`; its `combine` maps a ballot to an
outcome. The policies are defined in `votes`, `averages`, `learned` and `lazy`. Importing this
package registers all of them.
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
