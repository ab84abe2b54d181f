"""The reference of the spec as Markdown, made of its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def spec_reference(schema: Schema) -> str:
    """One table for each object of the spec, the spec itself first."""
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
    default = value.get("default")
    return "" if default is None or default in ({}, []) else f"`{json.dumps(default)}`"


def _kind(value: Schema, schema: Schema) -> str:
    """What a key takes, in words."""
    if "$ref" in value:
        definition = schema["$defs"][value["$ref"].rpartition("/")[2]]
        if "properties" not in definition:
            return _kind(definition, schema)
        return _named(value["$ref"].rpartition("/")[2])
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


def _named(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _bounds(value: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return f" {', '.join(bounds)}" if bounds else ""
