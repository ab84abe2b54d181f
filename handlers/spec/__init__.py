"""The ensemble spec: one strict YAML file that says what an ensemble is.

Enters: the text of ensemble.yaml.
Leaves: an `EnsembleSpec`, whose parts are known to fit together; or one error that lists every
mistake with its line, its key and a remedy.
Must not import: any package of `handlers` except `base`; nor torch, so that editors and build tools
read a spec quickly.

The dataclasses (`ensemble`, `member`, `preprocessing`, `settings`) are the only description of the
format: the parser, the JSON Schema in ``docs/ensemble.schema.json`` and the reference in
``docs/spec.md`` are made from them.
"""

from .ensemble import EnsembleSpec
from .member import Member, Output, WeightsFormat
from .preprocessing import Color, Interpolation, Preprocessing, ResizeLibrary, Window
from .provenance import MemberProvenance, Provenance
from .reading import json_schema, load_spec, located_errors, parse_spec
from .rollout import Rollout, RolloutMode
from .settings import (
    Engine,
    Failures,
    Limits,
    OnFailure,
    Policies,
    Precision,
    Runtime,
    Serving,
)

__all__ = [
    "Color",
    "Engine",
    "EnsembleSpec",
    "Failures",
    "Interpolation",
    "Limits",
    "Member",
    "MemberProvenance",
    "OnFailure",
    "Output",
    "Policies",
    "Precision",
    "Preprocessing",
    "Provenance",
    "ResizeLibrary",
    "Rollout",
    "RolloutMode",
    "Runtime",
    "Serving",
    "WeightsFormat",
    "Window",
    "json_schema",
    "load_spec",
    "located_errors",
    "parse_spec",
]
