"""Removes what no tag needs any longer from a registry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from .registry import MANIFESTS, Registry
from .tags import history, tag_names
from .uploads import collection_in_progress, protected_keys

_BLOBS = "blobs"


@dataclass(frozen=True)
class Collected:
    """What `gc` removed, or would remove.

    Attributes:
        manifests: archives, by the paths of their manifests.
        blobs: contents, by their paths.
        num_bytes: size of the contents.
    """

    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    num_bytes: int


def collect(registry: Registry, older_than: timedelta, *, dry_run: bool = False) -> Collected:
    """Remove the archives to which no tag has pointed for a time, and contents that none needs.

    A push in progress loses nothing, whatever the time is (`uploads`).

    Args:
        registry: the registry.
        older_than: archives to which a tag pointed within this time are kept, and so are contents
            that were written within this time.
        dry_run: only find out what would be removed.

    Raises:
        RegistryError: the store cannot be changed, or an archive that is kept has a damaged
            manifest, so that nobody knows what it needs. Nothing was removed then.
    """
    store = registry.store
    now = datetime.now(UTC)

    def is_old(key: str) -> bool:
        time = store.modified(key)
        return time is not None and now - time >= older_than

    with collection_in_progress(store) as check_time:
        # Pushes are looked at before tags: one that ends in between has changed its tag by then.
        in_upload = protected_keys(store)
        kept = _tagged_since(registry, now - older_than) | in_upload
        listed = store.keys(MANIFESTS)
        manifests = tuple(key for key in listed if key not in kept and is_old(key))
        needed = in_upload | {
            blob.key
            for key in listed
            if key not in manifests
            for blob in registry.manifest(key).blobs
        }
        blobs = tuple(key for key in store.keys(_BLOBS) if key not in needed and is_old(key))
        num_bytes = sum(store.size(key) or 0 for key in blobs)
        if not dry_run:
            # Manifests go first, so that none ever names contents that are gone.
            for key in (*manifests, *blobs):
                check_time()
                store.delete(key)
    return Collected(manifests, blobs, num_bytes)


def _tagged_since(registry: Registry, since: datetime) -> set[str]:
    """Return the manifests of all archives to which a tag points, or pointed after a time."""
    kept = set()
    for name, tag in tag_names(registry.store):
        entries = history(registry.store, name, tag)
        for entry, following in zip(entries, [*entries[1:], None], strict=True):
            key = entry.manifest_key(name)
            if key is not None and (following is None or following.time > since):
                kept.add(key)
    return kept
