"""Strict YAML into dataclasses: every mistake with its line, its key and the nearest valid one."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ..base.errors import SpecError
from ..base.suggestions import nearest

Spec = TypeVar("Spec")
Place = tuple[str | int, ...]


MAX_CHARACTERS = 1_000_000
"""Of a document: a label for each of 20,000 classes is half of it."""

_TEXT_TAG = "tag:yaml.org,2002:str"
_MAX_DEPTH = 50
_MAX_VALUES = 100_000
_MAX_NUMBER_CHARACTERS = 100
_MAX_PROBLEMS = 20
_MAX_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake: where, what, and the value with the choices that it should have been from."""

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
) -> Spec:
    """Parse YAML into the dataclass that the adapter describes.

    Args:
        text: the YAML document.
        adapter: pydantic's validator of the root dataclass.
        root: the root dataclass, whose keys are suggested for unknown ones.
        source: named in messages, normally the file.
        check: finds mistakes that need the whole document.

    Raises:
        SpecError: with one line for each mistake.
    """
    if len(text) > MAX_CHARACTERS:
        raise SpecError(f"{source}: it has more than {MAX_CHARACTERS} characters")
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise SpecError(f"{source}: the document must be a mapping of keys to values")
        # Before it is read: that writes what is merged (`<<`) into the node.
        problems = list(islice(_repeated_keys(node, ()), _MAX_PROBLEMS))
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark is not None else source
        reason = getattr(error, "problem", None) or str(error)
        raise SpecError(f"{place}: not valid YAML: {reason}") from error
    except (ValueError, OverflowError) as error:
        # What looks like a date or a number and is none.
        raise SpecError(
            f"{source}: not valid YAML: a value cannot be read: {error}; write text in quotes"
        ) from error
    if not problems:
        try:
            spec = adapter.validate_python(data)
        except ValidationError as error:
            details = islice(error.errors(include_url=False), _MAX_PROBLEMS)
            problems = _innermost(_from_pydantic(detail, node, root) for detail in details)
        else:
            problems = list(islice(check(spec), _MAX_PROBLEMS))
            if not problems:
                return spec
    lines = [_line(problem, node, source) for problem in problems]
    if len(lines) == _MAX_PROBLEMS:
        lines.append(f"{source}: there may be more mistakes than these {_MAX_PROBLEMS}")
    raise SpecError("\n".join(lines))


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader for documents of bounded depth and size, aliases written out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._values_of: dict[int, int] = {}
        # Anchors, or None, of the values around the present one.
        self._open: list[str | None] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, with each value counted as often as aliases repeat it.

        Raises:
            yaml.YAMLError: too deep, too many values, or a value that contains itself.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        if alias and event.anchor in self._open:
            raise _error(event, f"the value '{event.anchor}' contains itself")
        if not alias:
            self._open.append(event.anchor)
        if len(self._open) > _MAX_DEPTH:
            raise _error(event, f"more than {_MAX_DEPTH} levels, one in the other")
        before = self._values
        self._values += 1
        node = super().compose_node(parent, index)
        if alias:
            self._values += self._values_of[id(node)]
        else:
            self._open.pop()
            self._values_of[id(node)] = self._values - before
        if self._values > _MAX_VALUES:
            raise _error(event, f"more than {_MAX_VALUES} values, those of aliases counted again")
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
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)


def _repeated_keys(node: yaml.Node, place: Place) -> Iterable[Problem]:
    """YAML itself lets the last of two equal keys win silently."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name in seen:
                yield Problem((*place, name), "this key is given twice")
            seen.add(name)
            yield from _repeated_keys(value, (*place, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated_keys(value, (*place, index))


def _from_pydantic(detail: Any, node: yaml.Node, root: type) -> Problem:
    place = _without_tags(detail["loc"], node)
    kind, value = detail["type"], detail["input"]
    if kind == "unexpected_keyword_argument":
        known = _keys_at(root, place[:-1])
        suggestion = f"unknown key; known here: {', '.join(known)}"
        return Problem(place, suggestion, str(place[-1]), known)
    if kind in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return Problem(place, "this key is missing")
    if kind in {"enum", "literal_error"}:
        choices = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        return Problem(place, f"must be one of {', '.join(choices)}", str(value), choices)
    if kind == "string_type" and isinstance(value, bool | int | float):
        return Problem(place, f"must be text: write it in quotes, '{_shortened(value)}'")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    shown = _shortened(value) if isinstance(value, str | int | float | bool | None) else ""
    return Problem(place, message + (f", not {shown}" if shown else ""))


def _shortened(value: str | int | float | bool | None) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _innermost(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each place: of a union, every branch complains, also about the whole."""
    by_place: dict[Place, Problem] = {}
    for problem in problems:
        by_place.setdefault(problem.place, problem)
    return [
        problem
        for place, problem in by_place.items()
        if not any(other[: len(place)] == place and other != place for other in by_place)
    ]


def _without_tags(location: Sequence[str | int], node: yaml.Node) -> Place:
    """Pydantic names union branches in its locations; keep what the document itself has."""
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
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if str(key.value) == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        child: yaml.Node = node.value[step]
        return child
    return None


def _keys_at(root: type, place: Place) -> list[str]:
    """The field names of the dataclass that describes a place."""
    current: Any = root
    for step in place:
        hints = typing.get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        current = _dataclass_in(hints[str(step)]) if str(step) in hints else current
    return [field.name for field in dataclasses.fields(current)]


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a type hint holds, through unions and containers."""
    if dataclasses.is_dataclass(hint):
        return hint
    found = (_dataclass_in(part) for part in typing.get_args(hint))
    return next((part for part in found if part is not None), None)


def _line(problem: Problem, node: yaml.Node, source: str) -> str:
    path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in problem.place).lstrip(".")
    where = f"{path}: " if path else ""
    suggestion = nearest(problem.value, problem.choices) if problem.value is not None else ""
    return f"{source}:{_line_number(problem.place, node)}: {where}{problem.message}{suggestion}"


def _line_number(place: Place, node: yaml.Node) -> int:
    """The line, from 1, of the key or list item that a place names, or of what holds it."""
    line, current = node.start_mark.line, node
    for step in place:
        following = _child(current, step)
        if following is None:
            break
        # A nested mapping starts on the line below its key: point at the key.
        keys = current.value if isinstance(current, yaml.MappingNode) else ()
        line = next(
            (key.start_mark.line for key, value in keys if value is following),
            following.start_mark.line,
        )
        current = following
    return int(line) + 1
