"""Reads YAML whose depth and number of values are bounded, also where aliases repeat values.

A few hundred bytes of YAML can describe a document of billions of values: an alias repeats a value
that itself consists of aliases. A document of a few thousand nested levels exceeds Python's limit
on recursion.
"""

from __future__ import annotations

from typing import Any

import yaml

_TEXT_TAG = "tag:yaml.org,2002:str"
_MAX_DEPTH = 50
"""Limit on values inside each other; a spec needs fewer than ten levels."""

_MAX_VALUES = 100_000
"""Limit on keys, texts, numbers, lists and mappings; a label is one of them."""

_MAX_NUMBER_CHARACTERS = 100
"""Limit on a value that YAML takes for a number or a date; none in a spec is nearly as long."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops at a document that is too deep or has too many values."""

    def __init__(self, text: str) -> None:
        """Start at the beginning of a document.

        Args:
            text: the document.
        """
        super().__init__(text)
        self._num_values = 0
        # Number of values within a node, the node itself included, by the node's id.
        self._num_values_within: dict[int, int] = {}
        # Anchors, or None, of all values that enclose the present one.
        self._enclosing_anchors: list[str | None] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as PyYAML does, counting a value again for each alias that repeats it.

        Raises:
            yaml.YAMLError: the document is too deep, has too many values, or has a value that
                contains itself.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and event.anchor in self._enclosing_anchors:
            raise _error(event, f"the value '{event.anchor}' contains itself")
        if not is_alias:
            self._enclosing_anchors.append(event.anchor)
        if len(self._enclosing_anchors) > _MAX_DEPTH:
            raise _error(event, f"more than {_MAX_DEPTH} levels of nested values")
        num_values_before = self._num_values
        self._num_values += 1
        node = super().compose_node(parent, index)
        if is_alias:
            self._num_values += self._num_values_within[id(node)]
        else:
            self._enclosing_anchors.pop()
            self._num_values_within[id(node)] = self._num_values - num_values_before
        if self._num_values > _MAX_VALUES:
            raise _error(
                event, f"more than {_MAX_VALUES} values, counting a value again for each alias"
            )
        if (
            isinstance(node, yaml.ScalarNode)
            and node.tag != _TEXT_TAG
            and len(node.value) > _MAX_NUMBER_CHARACTERS
        ):
            raise _error(
                event,
                f"a number of more than {_MAX_NUMBER_CHARACTERS} characters; write text in quotes",
            )
        return node


def _error(event: Any, problem: str) -> yaml.MarkedYAMLError:
    """Make an error that points to the beginning of a value."""
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)
