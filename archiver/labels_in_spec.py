"""Writes the labels of a spec into its text, where the spec names a file that holds them.

The archive's spec lists its labels itself. So one file says what an archive answers, the archive's
check needs no second one, and nothing in the archive can change the labels alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ..handlers.base.errors import SpecError
from ..handlers.spec import EnsembleSpec, parse_spec
from ..handlers.spec.bounded_yaml import BoundedLoader


def text_with_labels(path: Path, spec: EnsembleSpec) -> bytes:
    """Return a spec's text, in which a list of labels takes the place of their file's name.

    All else stays byte for byte, comments included; a spec that lists its labels is not changed.

    Args:
        path: the spec's YAML file.
        spec: what `load_spec` made of it.

    Raises:
        SpecError: the labels' file is named in a way that cannot be replaced.
    """
    content = path.read_bytes()
    # As `load_spec` reads it: with this alone YAML counts its characters.
    text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    root = BoundedLoader(text).get_single_node()
    value = _value_of(root, "labels")
    if isinstance(value, yaml.SequenceNode):
        return content
    written, line = text, 1
    if value is not None:
        # In JSON, and so in YAML, on one line: later lines keep their numbers.
        labels = json.dumps(spec.labels, ensure_ascii=False)
        written = text[: value.start_mark.index] + labels + text[value.end_mark.index :]
        line = value.start_mark.line + 1
    try:
        same = parse_spec(written, source=str(path)) == spec
    except SpecError:
        same = False
    if not same:
        raise SpecError(
            f"{path}:{line}: labels: write the file's name plainly on the line of the key, without "
            "anchor, alias or merge, so that the build can put the labels in its place"
        )
    return written.encode()


def _value_of(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """Return the value of a key of a mapping; None if it is not there, or merged with ``<<``."""
    if not isinstance(node, yaml.MappingNode):
        return None
    values: list[yaml.Node] = [value for name, value in node.value if name.value == key]
    return values[0] if values else None
