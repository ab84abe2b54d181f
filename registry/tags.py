"""Tags: which archive a name such as ``digits:production`` means, and what it meant before.

A tag is a folder of numbered entries. An entry is created only if its number is free, which the
store decides. So two writers never overwrite each other, and the entries are the tag's history.
"""

from __future__ import annotations

import getpass
import json
import logging
import platform
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..handlers.base.errors import RegistryError
from .manifest import Manifest, Sha256
from .store import Store

logger = logging.getLogger(__name__)

_TAGS = "tags"
_ENTRY_KEY = re.compile(r"/[0-9]{8}\.json$")
_MAX_ATTEMPTS = 100
"""Number of other writers of one tag that may be faster, one after the other."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class TagEntry:
    """One line of a tag's history.

    Attributes:
        digest: digest of the archive to which the tag pointed from then on; None: the tag was
            removed.
        sha256: SHA-256 of that archive's file; None: the tag was removed.
        who: ``USER@HOST`` as the writer's machine named them. Nobody has checked it.
        when: time in seconds since 1970, by the clock of the writer's machine.
        format: version of this description.
    """

    digest: Sha256 | None
    sha256: Sha256 | None
    who: Annotated[str, Field(max_length=500)]
    when: float
    format: Literal[1] = 1

    @property
    def time(self) -> datetime:
        """When the entry was written."""
        return datetime.fromtimestamp(self.when, UTC)

    def manifest_key(self, name: str) -> str | None:
        """Return the path of the archive's manifest in the registry; None: the tag was removed."""
        return None if self.digest is None else f"manifests/{name}/{self.digest}.{self.sha256}.json"


_ENTRY_ADAPTER = TypeAdapter(TagEntry)


def who() -> str:
    """Return ``USER@HOST`` of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{platform.node()}"


def tag_names(store: Store) -> list[tuple[str, str]]:
    """List the name and the tag of every tag, removed ones included."""
    parts = (key.split("/") for key in store.keys(_TAGS))
    return sorted({(part[1], part[2]) for part in parts if len(part) == 4})


def history(store: Store, name: str, tag: str) -> list[TagEntry]:
    """Return the entries of a tag, the oldest first; empty if there is no such tag."""
    entries = (_read(store, key) for key in _numbered_keys(store, name, tag))
    return [entry for entry in entries if entry is not None]


def current(store: Store, name: str, tag: str) -> TagEntry | None:
    """Return the last entry of a tag; None if there is no such tag."""
    for key in reversed(_numbered_keys(store, name, tag)):
        entry = _read(store, key)
        if entry is not None:
            return entry
    return None


def point_tag(
    store: Store,
    name: str,
    tag: str,
    manifest: Manifest | None,
    *,
    check: Callable[[TagEntry | None], None] = lambda _: None,
) -> TagEntry:
    """Let a tag point to an archive from now on, or remove the tag.

    Args:
        store: the registry.
        name: name of the model.
        tag: name of the tag.
        manifest: the archive; None removes the tag.
        check: called with the tag's last entry directly before the new one is written. It raises
            an error if the tag must not be changed.

    Returns:
        The new entry, or the last one if it points to the archive already.

    Raises:
        RegistryError: the store cannot be written.
    """
    digest, sha256 = (None, None) if manifest is None else (manifest.digest, manifest.sha256)
    for _ in range(_MAX_ATTEMPTS):
        # An unreadable entry takes its number, too.
        keys = _numbered_keys(store, name, tag)
        last = current(store, name, tag)
        if last is not None and last.sha256 == sha256:
            return last
        check(last)
        entry = TagEntry(digest, sha256, who(), datetime.now(UTC).timestamp())
        content = json.dumps(asdict(entry)).encode()
        number = int(PurePosixPath(keys[-1]).stem) + 1 if keys else 1
        key = f"{_TAGS}/{name}/{tag}/{number:08}.json"
        if store.create(key, content):
            # A store that ignores the condition, as some that speak S3 do, takes it twice.
            if store.create(key, content):
                logger.warning(
                    "%s: this store does not keep two writers apart: if two people change %s:%s "
                    "at the same moment, one change is lost",
                    store.url,
                    name,
                    tag,
                )
            return entry
    raise RegistryError(
        f"{store.url}: others change {name}:{tag} all the time; find out who with `ts-ensemble "
        "registry log`, and try again"
    )


def _numbered_keys(store: Store, name: str, tag: str) -> list[str]:
    """List the entries of a tag in their order."""
    return [key for key in store.keys(f"{_TAGS}/{name}/{tag}") if _ENTRY_KEY.search(key)]


def _read(store: Store, key: str) -> TagEntry | None:
    """Read an entry; None if its writer was killed, or has not written the whole of it yet."""
    try:
        return _ENTRY_ADAPTER.validate_json(store.read(key))
    except (ValueError, FileNotFoundError):
        return None
