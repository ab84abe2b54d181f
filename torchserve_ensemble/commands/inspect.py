"""The verb ``inspect``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..handlers.base.archive_layout import BOM, MODEL_CARD
from .printing import standard_output

if TYPE_CHECKING:
    from rich.table import Table

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MAX_CHARACTERS = 200
"""Longer lists of labels or metrics are cut; ``--json`` prints all of them."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``inspect``."""
    inspect = subparsers.add_parser(
        "inspect",
        help="show what is in an archive and where it comes from",
        description="Verify an archive as `verify` does, then print its members with licences and "
        "the SHA-256 of their weights, its policies, metrics, source revision and self-test. "
        "Neither torch nor code of the archive runs.",
    )
    inspect.add_argument(
        "archive",
        type=Path,
        metavar="ARCHIVE",
        help="a .mar file, or the folder that one was extracted to",
    )
    output = inspect.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print everything as JSON")
    output.add_argument(
        "--bom", action="store_true", help="print the bill of materials, CycloneDX JSON"
    )
    output.add_argument(
        "--card", action="store_true", help="print the model card, in Hugging Face's format"
    )
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from ..archiver.inspection import inspect_archive, text_of_file

    if arguments.bom or arguments.card:
        print(text_of_file(arguments.archive, BOM if arguments.bom else MODEL_CARD), end="")
        return 0
    facts = inspect_archive(arguments.archive)
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print_facts(facts)
    return 0


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print a summary of what `inspect_archive` returned."""
    from rich.table import Table
    from rich.text import Text

    console = standard_output()
    console.print(Text(f"{facts['name']} {facts['version']}", "bold"))
    if facts["description"]:
        console.print(Text(facts["description"]))
    console.print()
    console.print(_members(facts["members"]))
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    for name, value in _lines(facts):
        grid.add_row(Text(name, "bold"), Text(value))
    console.print(grid)
    # On a line of its own it is not cut, and can be copied.
    console.print(Text(facts["digest"]), soft_wrap=True)


def _members(members: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("member", "architecture", "weights", "licence", "runs with"):
        table.add_column(column, overflow="fold")
    for member in members:
        compiled = member["compiled"]
        table.add_row(
            Text(member["name"]),
            Text(member["architecture"] or "in the weights file"),
            f"{member['sha256'][:12]}",
            Text(member["licence"] or "unknown"),
            "torch" if compiled is None else f"{compiled['engine']} {compiled['precision']}",
        )
    return table


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact that is the same for all members."""
    provenance, labels = facts["provenance"], facts["labels"]
    yield "task", facts["task"]
    yield f"labels ({len(labels)})", _cut(", ".join(labels))
    named = ", ".join(f"{name} = {policy}" for name, policy in facts["policies"]["named"].items())
    yield "policies", _cut("; ".join(filter(None, [facts["policies"]["default"], named])))
    data_sets = dict.fromkeys(name for each in facts["members"] for name in each["data_sets"])
    yield "trained on", _cut(", ".join(data_sets) or "unknown")
    for data_set, metrics in provenance["metrics"].items():
        yield data_set, _cut(", ".join(f"{name} {value:g}" for name, value in metrics.items()))
    for name, text in provenance["guarantees"].items():
        yield f"{name} guarantees", _cut(text)
    yield "owner", ", ".join(filter(None, [provenance["owner"], provenance["url"]])) or "unknown"
    yield "source", _source(facts["source"])
    yield "built with", ", ".join(f"{name} {v}" for name, v in facts["built_with"].items())
    yield "self-test", _self_test(facts["self_test"])
    yield "files", f"{facts['num_files']}, all as they were built; {BOM} and {MODEL_CARD}"


def _source(source: Mapping[str, Any] | None) -> str:
    if source is None:
        return "in no git work tree"
    return f"commit {source['commit'][:12]}{' with local changes' if source['dirty'] else ''}"


def _self_test(self_test: Mapping[str, Any] | None) -> str:
    if self_test is None:
        return "none: it was built with --no-check, or no probe could be answered"
    return f"{len(self_test['probes'])} probes, tolerance {self_test['tolerance']:g}"


def _cut(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_MAX_CHARACTERS]}... (--json prints all)"
