"""Fetches an archive from a registry and puts it together again, byte for byte."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..archiver.packing import Stream, write_entries
from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord, sha256_of_file
from ..handlers.base.errors import RegistryError
from .address import Address
from .manifest import Blob, Manifest
from .pushing import PARALLEL_TRANSFERS
from .registry import Registry
from .store import Store

_MAX_PREFETCHED_BYTES = 64 * 1024
"""Smaller files (the handler's modules) are fetched side by side, and kept in memory."""


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        manifest: describes the archive.
        path: the archive's file.
        fetched_bytes: number of bytes that were fetched; 0 if the file was there already.
    """

    manifest: Manifest
    path: Path
    fetched_bytes: int


def pull(
    registry: Registry,
    address: Address,
    folder: Path,
    *,
    verify: Callable[[Path], ArchiveRecord] = verify_archive,
    on_bytes: Callable[[int, int], object] = lambda _fetched, _total: None,
) -> Pulled:
    """Fetch an archive and verify it; the file appears only when it is whole and verified.

    Args:
        registry: the registry.
        address: the archive.
        folder: folder for the file, such as a model store; made if it is missing.
        verify: checks the archive as `serve` does.
        on_bytes: called after each block with the number of bytes in it, and the number of bytes
            in all.

    Raises:
        RegistryError: there is no such archive, it is damaged in the registry, or the folder holds
            another archive of that name.
        ArchiveError: the archive that was pushed is not one that this project built.
    """
    manifest = registry.find(address)
    target = folder / manifest.file_name
    if target.exists():
        if not target.is_file() or sha256_of_file(target) != manifest.sha256:
            raise RegistryError(
                f"{target} is there already, and is another archive than {address} of "
                f"{registry.store.url}: remove it, or name another folder"
            )
        verify(target)
        return Pulled(manifest, target, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # TorchServe ignores names in a model store that begin with a dot.
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as work:
            partial = Path(work) / manifest.file_name
            _put_together(registry.store, manifest, partial, on_bytes)
            record = verify(partial)
            if record.digest != f"sha256:{manifest.digest}":
                raise RegistryError(
                    f"{registry.store.url}: {manifest.key} names the digest sha256:"
                    f"{manifest.digest}, and its archive has {record.digest}: somebody altered "
                    "the registry; push the archive again"
                )
            partial.replace(target)
    except OSError as error:
        raise RegistryError(f"{target}: cannot be written: {error}") from error
    return Pulled(manifest, target, sum(blob.num_bytes for blob in manifest.blobs))


def _put_together(
    store: Store,
    manifest: Manifest,
    target: Path,
    on_bytes: Callable[[int, int], object],
) -> None:
    """Write an archive's file from the blobs of its manifest.

    Raises:
        RegistryError: a blob is missing or damaged, or the file is not the one that was pushed.
    """
    small = [blob for blob in manifest.blobs if blob.num_bytes <= _MAX_PREFETCHED_BYTES]
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        fetched = dict(
            zip(small, pool.map(lambda b: b"".join(_blocks(store, b)), small), strict=True)
        )

    def content(blob: Blob) -> bytes | Stream:
        if blob in fetched:
            return fetched[blob]
        return Stream(blob.num_bytes, lambda: _blocks(store, blob))

    num_bytes = sum(blob.num_bytes for blob in manifest.files.values())
    write_entries(
        {path: content(blob) for path, blob in manifest.files.items()},
        target,
        on_bytes=lambda n: on_bytes(n, num_bytes),
    )
    if sha256_of_file(target) != manifest.sha256:
        raise RegistryError(
            f"{store.url}: the files of {manifest.key} do not give the archive that was pushed: "
            "somebody altered the manifest, or another version wrote it; push the archive again"
        )


def _blocks(store: Store, blob: Blob) -> Iterator[bytes]:
    """Fetch contents block by block, and check them at their end.

    Raises:
        RegistryError: the contents are missing or damaged.
    """
    digest, num_bytes = hashlib.sha256(), 0
    try:
        for block in store.blocks(blob.key):
            digest.update(block)
            num_bytes += len(block)
            # A wrong file could be endless.
            if num_bytes > blob.num_bytes:
                break
            yield block
    except FileNotFoundError:
        raise RegistryError(
            f"{store.url}: {blob.key} is missing: push the archive again, which sends what is "
            "missing"
        ) from None
    if digest.hexdigest() != blob.sha256:
        raise RegistryError(
            f"{store.url}: {blob.key} is damaged: repair it with `ts-ensemble registry push "
            "ARCHIVE --check-blobs`, where the archive is still at hand"
        )
