"""The archive verbs of the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ArchiveError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(subparsers: Subparsers) -> None:
    """Add ``build``, ``verify`` and ``schema``."""
    build = subparsers.add_parser(
        "build",
        help="build a model archive from a spec",
        description="Build NAME-VERSION.mar from an ensemble spec, after loading and running every "
        "member once. The result is a plain TorchServe archive.",
    )
    build.add_argument("spec", type=Path, help="the ensemble's YAML file")
    build.add_argument(
        "--output", type=Path, default=Path("model_store"), help="folder (default: model_store)"
    )
    build.add_argument(
        "--no-check", action="store_true", help="do not load and run the members first"
    )
    build.add_argument(
        "--samples",
        type=Path,
        metavar="FOLDER",
        help="images like those that will be sent: compiled members (runtime.compile in the spec) "
        "must answer on them as the saved ones do",
    )
    build.set_defaults(run=_build)
    verify = subparsers.add_parser(
        "verify",
        help="check an archive before TorchServe gets it",
        description="Check every file of an archive against its record, that nothing else is in "
        "it, and that the file is byte for byte as a build writes it; print its digest.",
    )
    verify.add_argument("archive", type=Path, help="a .mar, or the folder of an extracted one")
    verify.add_argument(
        "--digest", help="that it must have, as its builder told: sha256:... in every answer"
    )
    verify.set_defaults(run=_verify)
    schema = subparsers.add_parser("schema", help="print the JSON Schema of the spec")
    schema.add_argument(
        "--markdown", action="store_true", help="print the reference for people instead"
    )
    schema.set_defaults(run=_schema)


def _build(arguments: argparse.Namespace) -> int:
    from .build import build_archive

    archive = build_archive(
        arguments.spec,
        arguments.output,
        check=not arguments.no_check,
        samples=arguments.samples,
        say=print,
    )
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ..handlers.archive.mar_file import verify_archive

    record = verify_archive(arguments.archive)
    if arguments.digest not in (None, record.digest):
        raise ArchiveError(
            f"{arguments.archive} has the digest {record.digest}, not {arguments.digest}: it is "
            "another archive"
        )
    print(f"{arguments.archive}: {len(record.files)} files as they were built")
    print(record.digest)
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from ..handlers.spec import json_schema
    from .spec_reference import spec_reference

    if arguments.markdown:
        print(spec_reference(json_schema()), end="")
    else:
        print(json.dumps(json_schema(), indent=2))
    return 0
