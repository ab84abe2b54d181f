"""The verb ``schema``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``schema``."""
    schema = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the spec",
        description="Print the JSON Schema of ensemble.yaml, with which editors complete and check "
        "the file.",
    )
    output = schema.add_mutually_exclusive_group()
    output.add_argument(
        "--deployment", action="store_true", help="that of deployment.yaml, which `apply` reads"
    )
    output.add_argument(
        "--markdown",
        action="store_true",
        help="print a reference for people instead (docs/spec.md)",
    )
    schema.set_defaults(run=_schema)


def _schema(arguments: argparse.Namespace) -> int:
    from ..archiver.spec_reference import spec_reference
    from ..handlers.spec import json_schema

    if arguments.deployment:
        from ..operations.deployment_file import deployment_schema

        print(json.dumps(deployment_schema(), indent=2))
    elif arguments.markdown:
        print(spec_reference(json_schema()), end="")
    else:
        print(json.dumps(json_schema(), indent=2))
    return 0
