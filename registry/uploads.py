"""Keeps `gc` and pushes apart, so that no push loses what it counts on.

A push skips contents that the registry has already, and `gc` deletes contents that no archive
needs. Before a push looks at anything, it leaves a note of what its archive needs. Only then it
looks whether a `gc` is in progress, and waits for its end. A `gc` first leaves a note that it is in
progress, and only then reads the notes of pushes. So of two that begin at the same moment at least
one sees the other.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from ..handlers.base.errors import RegistryError
from .manifest import Manifest
from .store import UPLOADS, Store
from .tags import who

UPLOAD_TIME = timedelta(days=1)
"""A push that takes longer is given up, and `gc` no longer leaves room for it."""

COLLECTION_TIME = timedelta(hours=1)
"""A `gc` that takes longer is given up, and pushes no longer wait for it."""

_CLOCK_DIFFERENCE = timedelta(minutes=5)
"""By how much the clocks of two machines, or of a machine and the store, may differ."""

_COLLECTIONS = "collections"
_POLL_SECONDS = 0.5


@contextmanager
def upload_in_progress(store: Store, manifest: Manifest) -> Iterator[Callable[[], None]]:
    """Protect an archive's blobs and its manifest from `gc` within a ``with`` block.

    It first waits for the end of every `gc` in progress.

    Yields:
        A function that raises an error if the upload has taken longer than `UPLOAD_TIME`. It is to
        be called before anything refers to the blobs.

    Raises:
        RegistryError: the store cannot be written.
    """
    key = f"{UPLOADS}/{uuid.uuid4().hex}.json"
    note = {"manifest": manifest.key, "blobs": [blob.key for blob in manifest.blobs]}
    store.write(key, [json.dumps({**note, "who": who()}).encode()])
    began = time.monotonic()

    def check_time() -> None:
        if time.monotonic() - began > (UPLOAD_TIME - _CLOCK_DIFFERENCE).total_seconds():
            raise RegistryError(
                f"{store.url}: the push took longer than {UPLOAD_TIME}, so that `gc` may have "
                "deleted parts of it: push again, what has arrived is not sent again"
            )

    try:
        while _is_young(store, store.keys(_COLLECTIONS), COLLECTION_TIME):
            check_time()
            time.sleep(_POLL_SECONDS)
        yield check_time
    finally:
        # What remains is removed by `gc`; an error here would hide the real one.
        with contextlib.suppress(RegistryError):
            store.delete(key)


def protected_keys(store: Store) -> set[str]:
    """Return the manifests and blobs that pushes in progress need, and remove notes of dead ones.

    Raises:
        RegistryError: a note cannot be read.
    """
    needed: set[str] = set()
    for key in store.keys(UPLOADS):
        if not _is_young(store, [key], UPLOAD_TIME):
            store.delete(key)
        elif key.endswith(".json"):
            try:
                note = json.loads(store.read(key))
                needed |= {note["manifest"], *note["blobs"]}
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError) as error:
                raise RegistryError(
                    f"{store.url}: {key}, the note of a push in progress, is damaged ({error!r}): "
                    "delete it if nobody pushes now, and try again"
                ) from error
    return needed


@contextmanager
def collection_in_progress(store: Store) -> Iterator[Callable[[], None]]:
    """Let pushes wait within a ``with`` block, in which blobs are deleted.

    Yields:
        A function that raises an error if the block has taken longer than `COLLECTION_TIME`. It is
        to be called before each deletion.

    Raises:
        RegistryError: the store cannot be written.
    """
    key = f"{_COLLECTIONS}/{uuid.uuid4().hex}.json"
    began = time.monotonic()
    store.write(key, [json.dumps({"who": who()}).encode()])

    def check_time() -> None:
        if time.monotonic() - began > (COLLECTION_TIME - _CLOCK_DIFFERENCE).total_seconds():
            raise RegistryError(
                f"{store.url}: gc took longer than {COLLECTION_TIME} and stopped, so that pushes "
                "can go on: run it again, what was deleted stays deleted"
            )

    try:
        yield check_time
    finally:
        for each in store.keys(_COLLECTIONS):
            if each == key or not _is_young(store, [each], COLLECTION_TIME):
                with contextlib.suppress(RegistryError):
                    store.delete(each)


def _is_young(store: Store, keys: list[str], age: timedelta) -> bool:
    """Return whether any of the files was written less than a time ago."""
    times = [store.modified(key) for key in keys]
    return any(time is not None and datetime.now(UTC) - time < age for time in times)
