"""The verb ``describe``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..handlers.base.errors import ServerError
from .options import management_options, open_management, run_folder_option
from .printing import standard_output

if TYPE_CHECKING:
    from rich.table import Table

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MAX_CHARACTERS_OF_LABELS = 200
"""A thousand labels would fill several screens; ``--json`` prints all of them."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``describe``."""
    describe = subparsers.add_parser(
        "describe",
        help="show the members, labels, policies and limits of a model",
        description="GET /models/NAME[/VERSION]?customized=true. The summary fits on a screen; "
        "--json prints the whole answer, with the parameters of every policy and the meaning of "
        "every option.",
        parents=[run_folder_option(), management_options()],
    )
    describe.add_argument("name", metavar="NAME", help="name of the model")
    describe.add_argument(
        "model_version",
        metavar="VERSION",
        nargs="?",
        help="version to describe (default: the default one)",
    )
    describe.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    describe.set_defaults(run=_describe)


def _describe(arguments: argparse.Namespace) -> int:
    with open_management(arguments) as management:
        (version,) = management.describe(arguments.name, arguments.model_version, customized=True)
    if arguments.json:
        print(json.dumps(version.customized, indent=2, ensure_ascii=False))
        return 0
    try:
        print_description(version.customized or {})
    except (KeyError, TypeError):
        raise ServerError(
            f"{arguments.name} does not describe itself as an ensemble of this project; "
            f"`ts-ensemble versions {arguments.name}` shows its workers, and --json what it answers"
        ) from None
    return 0


def print_description(description: Mapping[str, Any]) -> None:
    """Print a summary of what an ensemble answers to a describe call.

    Raises:
        KeyError, TypeError: the answer is not that of an ensemble.
    """
    from rich.text import Text

    facts, members = _facts(description), _members(description["members"])
    model = description["model"]
    console = standard_output()
    console.print(Text(f"{model['name']} {model['version']}", "bold"))
    # TorchServe leaves keys without a value out.
    if description.get("description"):
        console.print(Text(description["description"]))
    console.print()
    console.print(members)
    console.print()
    console.print(facts)


def _members(members: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("member", "architecture", "format", "voting weight"):
        table.add_column(column, overflow="fold")
    for member in members:
        table.add_row(
            Text(member["name"]),
            Text(member.get("architecture") or "in the weights file"),
            Text(member["format"]),
            f"{member['voting_weight']:g}",
        )
    return table


def _facts(description: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for key, value in _lines(description):
        table.add_row(Text(key, "bold"), Text(value))
    return table


def _lines(description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact that is the same for all members."""
    labels, policies = description["labels"], description["policies"]
    yield "task", description["task"]
    yield f"labels ({len(labels)})", _listed(labels)
    yield "default policy", policies["default"]
    available = policies["available"]
    for policy in available:
        if "policy" in policy:
            yield "named policy", f"{policy['name']} = {policy['policy']}"
    registered = [_call(policy) for policy in available if "policy" not in policy]
    expressions = ["expressions of them"] if policies["expressions"] else []
    yield "policies", ", ".join([*registered, *expressions])
    yield "options", ", ".join(option["name"] for option in description["options"])
    yield "limits", _limits(description["limits"])
    shape = description.get("input_shape")
    inputs = " x ".join(map(str, shape)) if shape else "a shape of its own for each member"
    yield "runs on", f"{description['device']}; input {inputs}"
    cache = description.get("score_cache")
    if cache is not None:
        yield "score cache", _counts(cache)
    # TorchServe leaves keys without a value out.
    if description.get("rollout"):
        yield "candidate", _candidate(description["rollout"])


def _call(policy: Mapping[str, Any]) -> str:
    """Return a policy's name with the parameters that it needs."""
    required = policy.get("required", ())
    return f"{policy['name']}({', '.join(required)})" if required else str(policy["name"])


def _limits(limits: Mapping[str, int]) -> str:
    megabytes, megapixels = limits["max_request_bytes"] / 1e6, limits["max_pixels"] / 1e6
    return (
        f"{limits['max_samples']:,} samples, {megabytes:,.1f} MB a request; "
        f"{megapixels:,.1f} million pixels an image"
    )


def _counts(cache: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in cache.items())


def _candidate(rollout: Mapping[str, Any]) -> str:
    """Return what the candidate has of its own, and who sees its answers."""
    own = {
        "new members": ", ".join(rollout.get("new_members") or ()),
        "members": ", ".join(rollout.get("members") or ()),
        "policy": rollout.get("policy") or "",
    }
    parts = [f"{name} {value}" for name, value in own.items() if value]
    share = rollout.get("share")
    seen_by = "" if share is None else f" of {share:.1%} of the requests"
    return f"{rollout['mode']}{seen_by}: {'; '.join(parts)}"


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    if len(text) <= _MAX_CHARACTERS_OF_LABELS:
        return text
    return f"{text[:_MAX_CHARACTERS_OF_LABELS].rpartition(', ')[0]}, ... (--json prints all)"
