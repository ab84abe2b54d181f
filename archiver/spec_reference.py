"""Writes the reference of the spec's keys as Markdown, from the spec's JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def spec_reference(schema: Schema) -> str:
    """Return a Markdown page with one table for each object of the spec, the spec itself first.

    Args:
        schema: the JSON Schema of the spec.
    """
    lines = [
        "# The ensemble spec",
        "",
        "Every key of `ensemble.yaml`, made by `ts-ensemble schema --markdown`. Unknown keys are",
        "errors. For editors: [ensemble.schema.json](ensemble.schema.json).",
        "",
        *_table("ensemble.yaml", schema, schema),
    ]
    for name, definition in schema["$defs"].items():
        if "properties" in definition:
            lines += _table(name, definition, schema)
    return "\n".join(lines).rstrip() + "\n"


def _table(name: str, definition: Schema, schema: Schema) -> Iterator[str]:
    """Yield the lines of one object's heading, description and table of keys.

    Args:
        name: the object's name.
        definition: the object's own schema.
        schema: the whole schema, in which references are looked up.
    """
    yield f"## {name}"
    yield ""
    if "description" in definition:
        yield " ".join(definition["description"].split())
        yield ""
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    required = definition.get("required", ())
    for key, value in definition["properties"].items():
        default = "required" if key in required else _default(value)
        meaning = value.get("description", "")
        cells = (f"`{key}`", _kind(value, schema), default, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _default(value: Schema) -> str:
    """Return the default of an optional key; an empty string if it is null or empty."""
    default = value.get("default")
    return "" if default is None or default in ({}, []) else f"`{json.dumps(default)}`"


def _kind(value: Schema, schema: Schema) -> str:
    """Return the kind of value that a key takes, in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        definition = schema["$defs"][name]
        return _link(name) if "properties" in definition else _kind(definition, schema)
    for choice in ("anyOf", "oneOf"):
        if choice in value:
            kinds = [_kind(each, schema) for each in value[choice] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    match value.get("type"):
        case "array" if "prefixItems" in value:
            return f"[{', '.join(_kind(each, schema) for each in value['prefixItems'])}]"
        case "array":
            return f"list of {_kind(value.get('items', {}), schema)}"
        case "object":
            inner = value.get("additionalProperties")
            return f"mapping to {_kind(inner, schema)}" if isinstance(inner, dict) else "mapping"
        case kind:
            return f"{kind or 'anything'}{_bounds(value)}"


def _link(name: str) -> str:
    """Return a Markdown link to the table of an object."""
    return f"[{name}](#{name.lower()})"


def _bounds(value: Schema) -> str:
    """Return the bounds of a number, such as `` ≥ 0, ≤ 1``; an empty string if it has none."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return f" {', '.join(bounds)}" if bounds else ""
