"""A registry: the archives in a store, found by their tags and digests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from ..handlers.base.errors import RegistryError
from .address import SCHEME, Address
from .manifest import MANIFEST_ADAPTER, Manifest
from .store import Store
from .tags import TagEntry, current, point_tag, tag_names
from .uploads import upload_in_progress

MANIFESTS = "manifests"


@dataclass(frozen=True)
class Tag:
    """A tag and the archive that it points to.

    Attributes:
        name: name of the model.
        tag: name of the tag.
        entry: the last entry of its history.
        manifest: describes the archive.
    """

    name: str
    tag: str
    entry: TagEntry
    manifest: Manifest


@dataclass(frozen=True)
class Registry:
    """The archives in a store.

    Attributes:
        store: holds the files.
    """

    store: Store

    @classmethod
    def open(cls, url: str) -> Registry:
        """Open the registry at a URL or in a folder, which need not hold anything yet.

        Raises:
            RegistryError: the protocol is unknown, or its driver is not installed.
        """
        return cls(Store.open(url))

    def manifest(self, key: str) -> Manifest:
        """Read a manifest.

        Raises:
            RegistryError: it is missing or damaged.
        """
        try:
            manifest = MANIFEST_ADAPTER.validate_json(self.store.read(key))
        except FileNotFoundError:
            raise RegistryError(
                f"{self.store.url}: {key} is missing: `gc` removed the archive, since no tag "
                "pointed to it any longer, or somebody deleted it; push the archive again"
            ) from None
        except ValueError as error:
            raise RegistryError(
                f"{self.store.url}: {key} is damaged, or another version wrote it: delete this "
                "file and push the archive again"
            ) from error
        if manifest.key != key:
            raise RegistryError(
                f"{self.store.url}: {key} describes another archive ({manifest.key}): delete this "
                "file and push the archive again"
            )
        return manifest

    def find(self, address: Address) -> Manifest:
        """Find the archive that an address means.

        Raises:
            RegistryError: there is no such archive; the message lists the tags that there are.
        """
        if address.digest is not None:
            return self.manifest(self._key_of_digest(address.name, address.digest))
        if address.tag is None:
            raise RegistryError(
                f"{address}: name a tag or a digest, as in {SCHEME}{address}:TAG; "
                f"{self._what_there_is(address.name)}"
            )
        entry = current(self.store, address.name, address.tag)
        key = None if entry is None else entry.manifest_key(address.name)
        if key is None:
            raise RegistryError(
                f"{self.store.url} has no {address}; {self._what_there_is(address.name)}"
            )
        return self.manifest(key)

    def tags(self, name: str | None = None) -> list[Tag]:
        """List the tags that point to an archive, sorted by name and tag.

        Args:
            name: name of a model; None: of all models.

        Raises:
            RegistryError: the store or a manifest cannot be read.
        """
        tags = []
        for model, tag in tag_names(self.store):
            entry = current(self.store, model, tag) if name in (None, model) else None
            key = None if entry is None else entry.manifest_key(model)
            if entry is not None and key is not None:
                tags.append(Tag(model, tag, entry, self.manifest(key)))
        return tags

    def tag(self, address: Address, tag: str) -> TagEntry:
        """Let a tag point to an archive that the registry has.

        Args:
            address: the archive.
            tag: name of the tag, which is made if it is missing.

        Raises:
            RegistryError: there is no such archive, or the tag names a version and points to
                another archive.
        """
        manifest = self.find(address)
        with upload_in_progress(self.store, manifest) as check_time:
            # A gc may have removed the archive before it could see this.
            self.manifest(manifest.key)
            check_time()
            return self.point(tag, manifest)

    def point(self, tag: str, manifest: Manifest) -> TagEntry:
        """Let a tag point to an archive whose manifest is in the store.

        Raises:
            RegistryError: the tag is the archive's version, and points to another archive.
        """

        def check(last: TagEntry | None) -> None:
            if tag == manifest.version and last is not None and last.sha256 is not None:
                raise RegistryError(
                    f"{manifest.name}:{tag} is another archive, sha256:{last.digest}, since "
                    f"{last.time:%Y-%m-%d %H:%M} by {last.who}, and the tag of a version does not "
                    f"move: raise the version in the spec, or name another tag, as in "
                    f"{manifest.name}:dev"
                )

        return point_tag(self.store, manifest.name, tag, manifest, check=check)

    def remove_tag(self, address: Address) -> TagEntry:
        """Remove a tag; its history stays, and `gc` may remove its archive later.

        Raises:
            RegistryError: there is no such tag.
        """
        if address.tag is None:
            raise RegistryError(f"{address}: name the tag to remove, as in {address.name}:TAG")
        if current(self.store, address.name, address.tag) is None:
            raise RegistryError(
                f"{self.store.url} has no {address}; {self._what_there_is(address.name)}"
            )
        return point_tag(self.store, address.name, address.tag, None)

    def _key_of_digest(self, name: str, digest: str) -> str:
        """Return the path of the manifest of an archive's digest, or of its file's SHA-256."""
        keys = [
            key
            for key in self.store.keys(f"{MANIFESTS}/{name}")
            if digest in PurePosixPath(key).name.split(".")
        ]
        if not keys:
            raise RegistryError(
                f"{self.store.url} has no archive of {name} with the digest sha256:{digest}; "
                f"{self._what_there_is(name)}"
            )
        if len(keys) > 1:
            raise RegistryError(
                f"{self.store.url} has {len(keys)} archives of {name} with the digest "
                f"sha256:{digest}, with and without signatures: name a tag, or the SHA-256 of the "
                "file, which `ts-ensemble registry list --json` prints"
            )
        return keys[0]

    def _what_there_is(self, name: str) -> str:
        """Return a phrase that lists what a user may have meant."""
        names = tag_names(self.store)
        tags = [tag for model, tag in names if model == name]
        if tags:
            return f"it has {', '.join(f'{name}:{tag}' for tag in tags)}"
        models = sorted({model for model, _ in names})
        return f"it has the models {', '.join(models)}" if models else "it holds no archive at all"
