"""Reads YAML into dataclasses strictly, and reports each mistake with its line and its key.

A misspelt key or value is reported together with the valid one that is spelt most like it.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ..base.errors import SpecError
from ..base.suggestions import nearest
from .bounded_yaml import BoundedLoader
from .labels_file import LABELS_FILE_ERROR
from .value_types import PATTERNS

Spec = TypeVar("Spec")
Place = tuple[str | int, ...]
"""The keys and list positions that lead from the document's root to a value."""

MAX_CHARACTERS = 1_000_000
"""Longer documents are refused; a spec with 20,000 labels has half as many characters."""

_MAX_REPORTED_PROBLEMS = 20
"""An error message lists this many mistakes, even if there are more."""

_REMOVED_KEYS: Mapping[Place, str] = {
    ("runtime", "compile"): "runtime.engine replaces this key: delete it, since the build now "
    "finds the fastest engine by itself, or write engine: torch for compile: false",
}
"""Keys of earlier versions -> what to write instead."""

_MAX_QUOTED_CHARACTERS = 200
"""A message repeats this many characters of a wrong value."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake in a document.

    Attributes:
        place: the value that is wrong.
        message: what is wrong and what to do about it.
        value: what was written; the choice that is spelt most like it is suggested.
        choices: what could have been written instead.
    """

    place: Place
    message: str
    value: str | None = None
    choices: Sequence[str] = ()


def parse_strictly(
    text: str,
    adapter: TypeAdapter[Spec],
    root: type[Spec],
    *,
    source: str,
    check: Callable[[Spec], Iterable[Problem]],
    context: Mapping[str, object] | None = None,
) -> Spec:
    """Parse a YAML document into the dataclass that the adapter describes.

    Args:
        text: the YAML document.
        adapter: pydantic's validator of the root dataclass.
        root: the root dataclass itself. Its fields, and those of the dataclasses within it, are
            suggested for misspelt keys.
        source: where the text comes from, for messages; normally the file.
        check: finds mistakes that concern several values together.
        context: pydantic's validation context, for validators that need more than the value.

    Raises:
        SpecError: the message has one line for each mistake.
    """
    if len(text) > MAX_CHARACTERS:
        raise SpecError(f"{source}: the document has more than {MAX_CHARACTERS} characters")
    try:
        loader = BoundedLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise SpecError(f"{source}: the document must be a mapping of keys to values")
        # Keys are compared before the data are constructed, because constructing copies merged keys
        # (`<<`) into the node.
        problems = list(islice(_repeated_keys(node, ()), _MAX_REPORTED_PROBLEMS))
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark is not None else source
        reason = getattr(error, "problem", None) or str(error)
        raise SpecError(f"{place}: not valid YAML: {reason}") from error
    except (ValueError, OverflowError) as error:
        # The document has text that looks like a date or a number and is neither.
        raise SpecError(
            f"{source}: not valid YAML: a value cannot be read: {error}; write text in quotes"
        ) from error
    if not problems:
        try:
            spec = adapter.validate_python(data, context=context)
        except ValidationError as error:
            details = islice(error.errors(include_url=False), _MAX_REPORTED_PROBLEMS)
            problems = _innermost(_from_pydantic(detail, node, root) for detail in details)
        else:
            problems = list(islice(check(spec), _MAX_REPORTED_PROBLEMS))
            if not problems:
                return spec
    lines = [_line(problem, node, source) for problem in problems]
    if len(lines) == _MAX_REPORTED_PROBLEMS:
        lines.append(f"{source}: there may be more mistakes than these {_MAX_REPORTED_PROBLEMS}")
    raise SpecError("\n".join(lines))


def located(message: str, place: Place, text: str, source: str) -> str:
    """Put the file, the line and the key of a value before a message about it.

    Args:
        message: what is wrong with the value, found after the document had been parsed.
        place: keys that lead to the value. An item of a list may be given by its key ``name``.
        text: the YAML document, which was parsed without mistakes.
        source: where the text comes from.
    """
    node = BoundedLoader(text).get_single_node()
    if node is None:
        return f"{source}: {message}"
    current: yaml.Node | None = node
    steps: list[str | int] = []
    for step in place:
        if isinstance(current, yaml.SequenceNode) and isinstance(step, str):
            names = [_child(item, "name") for item in current.value]
            values = [name.value for name in names if isinstance(name, yaml.ScalarNode)]
            step = values.index(step) if step in values else step
        steps.append(step)
        current = _child(current, step)
    return _line(Problem(tuple(steps), message), node, source)


def _repeated_keys(node: yaml.Node, place: Place) -> Iterable[Problem]:
    """Find keys that a mapping has twice; PyYAML would silently use the last of them."""
    if isinstance(node, yaml.MappingNode):
        earlier_keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name in earlier_keys:
                yield Problem((*place, name), "this key is given twice")
            earlier_keys.add(name)
            yield from _repeated_keys(value, (*place, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*place, index))


def _from_pydantic(detail: Any, node: yaml.Node, root: type) -> Problem:
    """Turn one of pydantic's error details into a problem in this project's words."""
    place = _without_tags(detail["loc"], node)
    kind, value = detail["type"], detail["input"]
    if kind == "unexpected_keyword_argument":
        if place in _REMOVED_KEYS:
            return Problem(place, _REMOVED_KEYS[place])
        valid_keys = _keys_at(root, place[:-1])
        message = f"unknown key; known here: {', '.join(valid_keys)}"
        return Problem(place, message, str(place[-1]), valid_keys)
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] in PATTERNS:
        allowed = PATTERNS[detail["ctx"]["pattern"]]
        return Problem(place, f"must be {allowed}, not {_shortened(value)}")
    if kind in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return Problem(place, "this key is missing")
    if kind in {"enum", "literal_error"}:
        choices = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        return Problem(place, f"must be one of {', '.join(choices)}", str(value), choices)
    if kind == "string_type" and isinstance(value, bool | int | float):
        key = f"{place[-1]}: " if place and isinstance(place[-1], str) else ""
        # The text as it stands in the file: 1.10 is the number 1.1 by now.
        return Problem(place, f'must be text: write {key}"{_scalar_text(place, node)}", in quotes')
    if kind == LABELS_FILE_ERROR:
        return Problem(place, detail["msg"])
    message = detail["msg"][0].lower() + detail["msg"][1:]
    quoted = _shortened(value) if isinstance(value, str | int | float | bool | None) else ""
    return Problem(place, message + (f", not {quoted}" if quoted else ""))


def _shortened(value: str | int | float | bool | None) -> str:
    """Return a value as Python writes it, cut to a length that suits a message."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_CHARACTERS else f"{text[:_MAX_QUOTED_CHARACTERS]}..."


def _scalar_text(place: Place, node: yaml.Node) -> str:
    """Return the text of the scalar at a place, as it stands in the file but not too long."""
    current: yaml.Node | None = node
    for step in place:
        current = _child(current, step)
    text = str(current.value) if isinstance(current, yaml.ScalarNode) else ""
    return text if len(text) <= _MAX_QUOTED_CHARACTERS else f"{text[:_MAX_QUOTED_CHARACTERS]}..."


def _innermost(problems: Iterable[Problem]) -> list[Problem]:
    """Keep one problem for each place, and only the innermost of nested places.

    Pydantic reports a wrong value of a union once for each of the union's types, and the value
    around it as well.
    """
    by_place: dict[Place, Problem] = {}
    for problem in problems:
        by_place.setdefault(problem.place, problem)
    return [
        problem
        for place, problem in by_place.items()
        if not any(other[: len(place)] == place and other != place for other in by_place)
    ]


def _without_tags(location: Sequence[str | int], node: yaml.Node) -> Place:
    """Turn one of pydantic's locations into a place, leaving out the names of a union's types."""
    place: list[str | int] = []
    current: yaml.Node | None = node
    for position, step in enumerate(location):
        following = _child(current, step)
        last = position == len(location) - 1
        if following is not None or (last and isinstance(current, yaml.MappingNode)):
            place.append(step)
            current = following
    return tuple(place)


def _child(node: yaml.Node | None, step: str | int) -> yaml.Node | None:
    """Return the value under a key of a mapping or at a position of a list; None if missing."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if str(key.value) == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        child: yaml.Node = node.value[step]
        return child
    return None


def _keys_at(root: type, place: Place) -> list[str]:
    """Return the valid keys at a place: the field names of the dataclass that describes it."""
    current: Any = root
    for step in place:
        hints = typing.get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        current = _dataclass_in(hints[str(step)]) if str(step) in hints else current
    return [field.name for field in dataclasses.fields(current)]


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass in a type hint, also from within unions and containers; or None."""
    if dataclasses.is_dataclass(hint):
        return hint
    dataclasses_within = (_dataclass_in(part) for part in typing.get_args(hint))
    return next((each for each in dataclasses_within if each is not None), None)


def _line(problem: Problem, node: yaml.Node, source: str) -> str:
    """Write the line of an error message that reports one problem."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem.place]
    path = "".join(steps).lstrip(".")
    where = f"{path}: " if path else ""
    suggestion = nearest(problem.value, problem.choices) if problem.value is not None else ""
    return f"{source}:{_line_number(problem.place, node)}: {where}{problem.message}{suggestion}"


def _line_number(place: Place, node: yaml.Node) -> int:
    """Return the line, from 1, of the key or list item at a place.

    If the document lacks it, the line is that of the innermost value around the place.
    """
    line, current = node.start_mark.line, node
    for step in place:
        following = _child(current, step)
        if following is None:
            break
        # The message points at the key; a nested mapping only starts on the line below it.
        keys = current.value if isinstance(current, yaml.MappingNode) else ()
        line = next(
            (key.start_mark.line for key, value in keys if value is following),
            following.start_mark.line,
        )
        current = following
    return int(line) + 1
