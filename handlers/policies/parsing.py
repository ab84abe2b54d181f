"""Parses the text of a policy, from a spec or a client, into a policy that is ready to run."""

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
from .expression import bind_in_text, compile_expression, literal_arguments
from .registry import EXPRESSION, BoundPolicy, definition
from .source import Source

# The characters that a spec allows in names. A text of this shape is looked up as a name before it
# is parsed, because Python's grammar would read high-sensitivity as a subtraction.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def parse_policy(text: str, parameters: Mapping[str, Any], catalogue: Catalogue) -> BoundPolicy:
    """Parse the text of a policy and check it completely.

    The text is read as the first of these that fits: a name that the deployment gave to a policy
    (``high-sensitivity``), the name of a registered policy (``any``), a call of a registered policy
    (``at_least(k=2)``), or an expression (see the module `expression`).

    After this check, only the ballot can make the policy fail: when it lacks members that the
    policy needs.

    Args:
        text: the policy, as the spec or a client writes it.
        parameters: parameters that are given beside the text, e.g. in a form field. Their values
            may be texts.
        catalogue: the policies that the deployment offers.

    Raises:
        PolicyError: the policy is unknown, not allowed or does not fit the task, or a parameter is
            wrong. The message points into the text and lists the policies to choose from.
    """
    source = Source.of(text)
    # `allowed` limits clients alone, not what the deployment wrote: its default and named policies.
    from_deployment = source == Source.of(catalogue.default)
    if source.text in catalogue.named:
        if not from_deployment and not catalogue.is_allowed(source.text):
            raise _not_allowed(source.text, catalogue)
        source = Source.of(catalogue.resolve(source.text))
        from_deployment = True
    name, call, tree = _split(source, catalogue)
    if tree is not None:
        if not from_deployment and not catalogue.is_allowed(EXPRESSION):
            raise PolicyError(f"expressions are not allowed here; {catalogue.choices_hint()}")
        if parameters:
            raise PolicyError(
                f"an expression takes no parameters ({shown_names(list(parameters))}); write them "
                "into its calls, e.g. at_least(k=2) and mean >= 0.7"
            )
        return compile_expression(source, tree, catalogue)
    registered = definition(name)
    if registered is None:
        message = catalogue.unknown_policy_message(name)
        raise PolicyError(message) if call is None else source.error(message, call)
    is_allowed = catalogue.is_allowed(name)
    if not is_allowed and not from_deployment:
        raise _not_allowed(name, catalogue)
    if parameters and not is_allowed:
        raise PolicyError(
            f"policy '{' '.join(text.split())}' is fixed in this deployment and takes no "
            f"parameters; leave out {shown_names(list(parameters))}"
        )
    arguments = literal_arguments(source, call) if call is not None else {}
    given_twice = sorted(arguments.keys() & parameters.keys())
    if given_twice:
        raise PolicyError(
            f"policy '{source.text}' sets {', '.join(given_twice)} already; leave it out of the "
            "parameters"
        )
    return bind_in_text(
        source, call, registered, {**arguments, **parameters}, catalogue, catalogue.member_names
    )


def check_catalogue(catalogue: Catalogue) -> None:
    """Check every policy of a catalogue, so that a mistake is found when the archive is built.

    Raises:
        PolicyError: the default policy, a named policy or a name in `allowed` does not exist or
            does not fit the deployment.
    """
    places = {name: ("policies", "named", name) for name in catalogue.named}
    # The default may be a named policy: a mistake in it stands where it is named.
    for text in (*catalogue.named, catalogue.default):
        try:
            parse_policy(text, {}, replace(catalogue, allowed=None))
        except PolicyError as error:
            error.place = places.get(text, ("policies", "default"))
            raise
    names = sorted({EXPRESSION, *catalogue.named, *catalogue.usable_policies()})
    for name in sorted(catalogue.allowed or ()):
        if name not in names:
            unknown = PolicyError(
                f"'{name}' is allowed, but is no policy for task {catalogue.task}; allow one of "
                f"{', '.join(names)}{nearest(name, names)}"
            )
            unknown.place = ("policies", "allowed")
            raise unknown


def _not_allowed(name: str, catalogue: Catalogue) -> PolicyError:
    """Make the error for a policy that exists, but that clients may not choose."""
    return PolicyError(f"policy '{name}' is not allowed here; {catalogue.choices_hint()}")


def _split(source: Source, catalogue: Catalogue) -> tuple[str, ast.Call | None, ast.expr | None]:
    """Tell a registered policy from an expression.

    Returns:
        For a registered policy its name, its call if the text has parentheses, and no syntax tree;
        the name may turn out to be unknown. For an expression an empty name, no call, and the
        syntax tree.
    """
    if _NAME.fullmatch(source.text):
        if definition(source.text) is None and source.text in catalogue.member_names:
            # A member alone is an expression. Python cannot parse every name of a member.
            is_identifier = source.text.isidentifier() and not iskeyword(source.text)
            quoted = ast.Call(ast.Name("member"), [ast.Constant(source.text)], [])
            return "", None, source.tree() if is_identifier else quoted
        return source.text, None, None
    tree = source.tree()
    if isinstance(tree, ast.Name) and definition(tree.id) is not None:
        return tree.id, None, None
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
        name = tree.func.id
        if name != "member":
            return name, tree, None
    return "", None, tree
