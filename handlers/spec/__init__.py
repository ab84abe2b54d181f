"""The ensemble spec: one strict YAML file that says what an ensemble is.

The dataclasses in `types` are the only description of the format: the parser, the JSON Schema in
``docs/ensemble.schema.json`` and the reference in ``docs/spec.md`` all come from them.
Nothing here imports torch, so that editors and build tools can read a spec quickly.
"""

from .reading import json_schema, load_spec, parse_spec
from .types import (
    Color,
    EnsembleSpec,
    Failures,
    Interpolation,
    Limits,
    Member,
    OnFailure,
    Output,
    Policies,
    Precision,
    Preprocessing,
    Provenance,
    ResizeLibrary,
    Runtime,
    Serving,
    WeightsFormat,
)

__all__ = [
    "Color",
    "EnsembleSpec",
    "Failures",
    "Interpolation",
    "Limits",
    "Member",
    "OnFailure",
    "Output",
    "Policies",
    "Precision",
    "Preprocessing",
    "Provenance",
    "ResizeLibrary",
    "Runtime",
    "Serving",
    "WeightsFormat",
    "json_schema",
    "load_spec",
    "parse_spec",
]
