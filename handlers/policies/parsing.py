"""From the text of a policy, as a spec or a client writes it, to a policy that is ready to run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from keyword import iskeyword
from typing import Any

from ..base.errors import PolicyError
from ..base.quoting import shown_names
from ..base.suggestions import nearest
from .catalogue import Catalogue
from .expression import bind_at, compile_expression, literals
from .registry import EXPRESSION, BoundPolicy, definition
from .source import Source

# What a spec allows as a name. Such a text is looked up as it is: to Python's grammar,
# high-sensitivity would be a subtraction.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def parse_policy(text: str, parameters: Mapping[str, Any], catalogue: Catalogue) -> BoundPolicy:
    """A policy, checked in full: nothing but the members' scores can fail it later.

    A text is, in this order: a name of the deployment's own (``high-sensitivity``), a registered
    policy (``any``), a call (``at_least(k=2)``), or an expression (`expression`).

    Args:
        text: as the spec or a client writes it.
        parameters: further parameters, e.g. from a form field; values may be texts.
        catalogue: what the deployment offers.

    Raises:
        PolicyError: unknown, not allowed, not for this task, or a wrong parameter. The message
            points into the text and names what is on offer.
    """
    source = Source.of(text)
    trusted = source == Source.of(catalogue.default)
    if source.text in catalogue.named:
        if not trusted and not catalogue.permits(source.text):
            raise PolicyError(f"policy '{source.text}' is not allowed here; {catalogue.choices()}")
        source = Source.of(catalogue.resolve(source.text))
        trusted = True
    name, call, tree = _split(source, catalogue)
    if tree is not None:
        if not trusted and not catalogue.permits(EXPRESSION):
            raise PolicyError(f"expressions are not allowed here; {catalogue.choices()}")
        if parameters:
            raise PolicyError(
                f"an expression takes no parameters ({shown_names(list(parameters))}); write them "
                "into its calls, e.g. at_least(k=2) and mean >= 0.7"
            )
        return compile_expression(source, tree, catalogue)
    known = definition(name)
    if known is None:
        unknown = catalogue.unknown(name)
        raise PolicyError(unknown) if call is None else source.error(unknown, call)
    permitted = catalogue.permits(name)
    if not permitted and not trusted:
        raise PolicyError(f"policy '{name}' is not allowed here; {catalogue.choices()}")
    if parameters and not permitted:
        raise PolicyError(
            f"policy '{' '.join(text.split())}' is fixed in this deployment and takes no "
            f"parameters; leave out {shown_names(list(parameters))}"
        )
    written = literals(source, call) if call is not None else {}
    twice = sorted(written.keys() & parameters.keys())
    if twice:
        raise PolicyError(
            f"policy '{source.text}' sets {', '.join(twice)} already; leave it out of the "
            "parameters"
        )
    return bind_at(
        source, call, known, {**written, **parameters}, catalogue, catalogue.member_names
    )


def check_catalogue(catalogue: Catalogue) -> None:
    """Check all that a deployment offers, so that a mistake shows when the archive is built.

    Raises:
        PolicyError: the default, a named policy or a name in `allowed` does not exist or fit.
    """
    for text in (catalogue.default, *catalogue.named):
        parse_policy(text, {}, replace(catalogue, allowed=None))
    known = {EXPRESSION, *catalogue.named, *catalogue.fitting()}
    for name in sorted(catalogue.allowed or ()):
        if name not in known:
            raise PolicyError(
                f"'{name}' is allowed, but is no policy for task {catalogue.task}; allow one of "
                f"{', '.join(sorted(known))}{nearest(name, sorted(known))}"
            )


def _split(source: Source, catalogue: Catalogue) -> tuple[str, ast.Call | None, ast.expr | None]:
    """A registered policy's name and, if it has one, its call; or the tree of an expression."""
    if _NAME.fullmatch(source.text):
        if definition(source.text) is None and source.text in catalogue.member_names:
            plain = source.text.isidentifier() and not iskeyword(source.text)
            quoted = ast.Call(ast.Name("member"), [ast.Constant(source.text)], [])
            return "", None, source.tree() if plain else quoted
        return source.text, None, None
    tree = source.tree()
    if isinstance(tree, ast.Name) and definition(tree.id) is not None:
        return tree.id, None, None
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
        name = tree.func.id
        if name != "member":
            return name, tree, None
    return "", None, tree
