"""Writes the labels into a spec's text if the spec names a file that holds them.

The spec in an archive always lists its labels itself. So one file says what an archive answers, the
archive's check needs no second file, and nothing in the archive can change the labels alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ..handlers.base.errors import SpecError
from ..handlers.spec import EnsembleSpec, parse_spec
from ..handlers.spec.bounded_yaml import BoundedLoader


def text_with_labels(path: Path, spec: EnsembleSpec) -> bytes:
    """Return a spec's text with a list of labels in place of the name of their file.

    Everything else stays byte for byte, comments included. The text of a spec that lists its
    labels itself is returned unchanged.

    Args:
        path: the spec's YAML file.
        spec: what `load_spec` made of this file.

    Raises:
        SpecError: the file is named in a way that cannot be replaced.
    """
    content = path.read_bytes()
    # `load_spec` reads line ends in the same way, and the marks below count these characters.
    text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    root = BoundedLoader(text).get_single_node()
    value = _value_of(root, "labels")
    if isinstance(value, yaml.SequenceNode):
        return content
    replaced, line = text, 1
    if value is not None:
        # JSON is YAML. It is written on one line, so that the lines after it keep their numbers.
        labels = json.dumps(spec.labels, ensure_ascii=False)
        replaced = text[: value.start_mark.index] + labels + text[value.end_mark.index :]
        line = value.start_mark.line + 1
    try:
        means_the_same = parse_spec(replaced, source=str(path)) == spec
    except SpecError:
        means_the_same = False
    if not means_the_same:
        raise SpecError(
            f"{path}:{line}: labels: write the file's name plainly on the line of the key, without "
            "anchor, alias or merge, so that the build can put the labels in its place"
        )
    return replaced.encode()


def _value_of(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """Return the value of a key of a mapping.

    Returns:
        None if the node is no mapping, lacks the key, or has it only by a merge (``<<``).
    """
    if not isinstance(node, yaml.MappingNode):
        return None
    values: list[yaml.Node] = [value for name, value in node.value if name.value == key]
    return values[0] if values else None
