"""The verb ``registry``, with verbs of its own: push, pull, tag, list, log, gc and export."""

from __future__ import annotations

import argparse
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import RegistryError
from ..registry.address import parse_address, registry_url
from .completion import DEFAULT_MODEL_STORE
from .options import registry_option
from .printing import standard_output, transfer_bar

if TYPE_CHECKING:
    from ..registry.registry import Registry
    from ..registry.tags import TagEntry

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_ADDRESS_HELP = "NAME:TAG or NAME@sha256:DIGEST, with or without registry:// in front"
_SHOWN_DIGITS = 12
_BYTES_PER_MB = 1_000_000
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_command(subparsers: Subparsers) -> None:
    """Add ``registry`` and its verbs."""
    registry = subparsers.add_parser(
        "registry",
        help="keep archives in a folder, in S3 or in Google's object store, and name them by tags",
        description="Keep archives in a folder or an object store. Files that several archives "
        "have in common are stored and sent once. Tags name archives, and keep their history.",
    )
    verbs = registry.add_subparsers(metavar="VERB", required=True, help="what to do")

    push = _add_verb(
        verbs, "push", "verify an archive, send what the registry lacks, and set a tag"
    )
    push.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .mar file")
    push.add_argument(
        "address",
        nargs="?",
        metavar="NAME:TAG",
        help="name of the model and a tag (default: the archive's name and version)",
    )
    push.add_argument(
        "--check-blobs",
        action="store_true",
        help="read the files that the registry has already, and send damaged ones again",
    )
    push.set_defaults(run=_push)

    pull = _add_verb(verbs, "pull", "fetch an archive, byte for byte, and verify it")
    pull.add_argument("address", metavar="ADDRESS", help=_ADDRESS_HELP)
    pull.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=DEFAULT_MODEL_STORE,
        help="folder for the archive (default: %(default)s)",
    )
    pull.set_defaults(run=_pull)

    tag = _add_verb(verbs, "tag", "let a tag point to an archive of the registry, or remove it")
    tag.add_argument("address", metavar="ADDRESS", help=_ADDRESS_HELP)
    tag.add_argument("tag", nargs="?", metavar="TAG", help="name of the tag, such as production")
    tag.add_argument(
        "--remove", action="store_true", help="remove the tag of ADDRESS; its history stays"
    )
    tag.set_defaults(run=_tag)

    listing = _add_verb(verbs, "list", "list the tags and the archives that they point to")
    listing.add_argument("name", nargs="?", metavar="NAME", help="only the tags of this model")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    log = _add_verb(verbs, "log", "show to which archives a tag pointed, since when, and by whom")
    log.add_argument("address", metavar="NAME:TAG", help="the tag")
    log.add_argument("--json", action="store_true", help="print JSON")
    log.set_defaults(run=_log)

    collect = _add_verb(verbs, "gc", "remove archives and files that no tag needs any longer")
    collect.add_argument(
        "--older-than",
        type=_duration,
        metavar="TIME",
        default=timedelta(days=30),
        help="keep archives to which a tag pointed within this time, and files that were sent "
        "within this time, such as 12h or 30d (default: 30d)",
    )
    collect.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    collect.set_defaults(run=_gc)

    export = _add_verb(verbs, "export", "write an archive as KServe's TorchServe runtime takes it")
    export.add_argument("address", metavar="ADDRESS", help=_ADDRESS_HELP)
    export.add_argument(
        "target", metavar="FOLDER_OR_URL", help="gets config/ and model-store/: the storageUri"
    )
    export.set_defaults(run=_export)


def _add_verb(verbs: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    return verbs.add_parser(
        name, help=summary, description=description, parents=[registry_option()]
    )


def _open(arguments: argparse.Namespace) -> Registry:
    from ..registry.registry import Registry

    return Registry.open(registry_url(arguments.registry))


def _push(arguments: argparse.Namespace) -> int:
    from ..registry.pushing import push

    address = None if arguments.address is None else parse_address(arguments.address)
    with transfer_bar(f"sending {arguments.archive}") as on_bytes:
        pushed = push(
            _open(arguments),
            arguments.archive,
            address,
            check_blobs=arguments.check_blobs,
            on_bytes=on_bytes,
        )
    sent, skipped = (sum(b.num_bytes for b in blobs) for blobs in (pushed.sent, pushed.skipped))
    print(f"{pushed.manifest.name}:{pushed.tag} is sha256:{pushed.manifest.digest}")
    print(f"sent     {_bytes(sent)} in {len(pushed.sent)} files")
    print(f"skipped  {_bytes(skipped)} in {len(pushed.skipped)} files, which were there already")
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    from ..registry.pulling import pull

    address = parse_address(arguments.address)
    with transfer_bar(f"fetching {address}") as on_bytes:
        pulled = pull(_open(arguments), address, arguments.output, on_bytes=on_bytes)
    there = "" if pulled.fetched_bytes else ", which was there already"
    print(f"{pulled.path} ({_bytes(pulled.manifest.num_bytes)}){there}")
    print(f"sha256:{pulled.manifest.digest}")
    return 0


def _tag(arguments: argparse.Namespace) -> int:
    address = parse_address(arguments.address)
    registry = _open(arguments)
    if arguments.remove:
        registry.remove_tag(address)
        print(f"{address} is removed")
        return 0
    if arguments.tag is None:
        raise RegistryError("name the tag: ts-ensemble registry tag ADDRESS TAG")
    new = parse_address(f"{address.name}:{arguments.tag}")
    entry = registry.tag(address, new.tag or "")
    print(f"{new} is sha256:{entry.digest}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    tags = _open(arguments).tags(arguments.name)
    if arguments.json:
        rows = [
            {
                "name": tag.name,
                "tag": tag.tag,
                "version": tag.manifest.version,
                "digest": f"sha256:{tag.manifest.digest}",
                "file_sha256": f"sha256:{tag.manifest.sha256}",
                "bytes": tag.manifest.num_bytes,
                **_who_and_when(tag.entry),
            }
            for tag in tags
        ]
        print(json.dumps(rows, indent=2))
        return 0
    _print_table(
        ("model", "tag", "version", "digest", "size", "since", "by"),
        [
            (
                tag.name,
                tag.tag,
                tag.manifest.version,
                _short(tag.manifest.digest),
                _bytes(tag.manifest.num_bytes),
                f"{tag.entry.time:%Y-%m-%d %H:%M}",
                tag.entry.who,
            )
            for tag in tags
        ],
    )
    return 0


def _log(arguments: argparse.Namespace) -> int:
    from ..registry.tags import history

    address = parse_address(arguments.address)
    registry = _open(arguments)
    entries = [] if address.tag is None else history(registry.store, address.name, address.tag)
    if not entries:
        # This raises an error that lists what there is.
        registry.find(address)
    if arguments.json:
        rows = [
            {
                "digest": None if entry.digest is None else f"sha256:{entry.digest}",
                **_who_and_when(entry),
            }
            for entry in reversed(entries)
        ]
        print(json.dumps(rows, indent=2))
        return 0
    _print_table(
        ("since", "digest", "by"),
        [
            (
                f"{entry.time:%Y-%m-%d %H:%M:%S}",
                "removed" if entry.digest is None else f"sha256:{entry.digest}",
                entry.who,
            )
            for entry in reversed(entries)
        ],
    )
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    from ..registry.collecting import collect

    collected = collect(_open(arguments), arguments.older_than, dry_run=arguments.dry_run)
    would = "would remove" if arguments.dry_run else "removed"
    for manifest in collected.manifests:
        name, file = manifest.split("/")[1:]
        print(f"{would} {name}@sha256:{file.partition('.')[0]}")
    print(
        f"{would} {len(collected.manifests)} archives and {_bytes(collected.num_bytes)} in "
        f"{len(collected.blobs)} files"
    )
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from ..registry.kserve import CONFIG, MODEL_STORE, export

    address = parse_address(arguments.address)
    manifest = export(_open(arguments), address, arguments.target)
    print(f"{arguments.target}: {CONFIG} and {MODEL_STORE}/{manifest.file_name}")
    print(f"sha256:{manifest.digest}")
    return 0


def _duration(text: str) -> timedelta:
    """Read a time such as ``90m``, ``12h`` or ``30d``."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: write a number and s, m, h or d, such as 30d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _who_and_when(entry: TagEntry) -> dict[str, str]:
    when = datetime.fromtimestamp(int(entry.when), UTC).isoformat()
    return {"when": when, "who": entry.who}


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    standard_output().print(table)


def _short(digest: str) -> str:
    return f"sha256:{digest[:_SHOWN_DIGITS]}"


def _bytes(count: int) -> str:
    return f"{count / _BYTES_PER_MB:,.1f} MB" if count >= _BYTES_PER_MB else f"{count:,} bytes"
