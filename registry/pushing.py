"""Sends an archive to a registry; contents that the registry has already are not sent again."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..archiver.packing import BLOCK_BYTES
from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.base.errors import RegistryError
from .address import Address
from .manifest import Blob, Manifest, describe_archive
from .registry import Registry
from .store import Store
from .uploads import upload_in_progress

PARALLEL_TRANSFERS = 8
"""An archive has some hundred small files, each of which waits for the store's answer."""


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        manifest: describes the archive.
        tag: the tag that points to it now.
        sent: contents that were sent.
        skipped: contents that the registry had already.
    """

    manifest: Manifest
    tag: str
    sent: tuple[Blob, ...]
    skipped: tuple[Blob, ...]


def push(
    registry: Registry,
    archive: Path,
    address: Address | None = None,
    *,
    check_blobs: bool = False,
    verify: Callable[[Path], ArchiveRecord] = verify_archive,
    on_bytes: Callable[[int, int], object] = lambda _sent, _total: None,
) -> Pushed:
    """Verify an archive, send what the registry lacks, and let a tag point to it.

    The tag changes last. A push that was interrupted changes no tag; the next push goes on with
    the first file that had not arrived.

    Args:
        registry: the registry.
        archive: a ``.mar`` file.
        address: name and tag; None, or no tag: the tag is the archive's version.
        check_blobs: read what the registry has already, and send it again if it is damaged.
            Without this only its size is compared.
        verify: checks the archive as `serve` does.
        on_bytes: called after each block with the number of bytes in it, and the number of bytes
            to send.

    Raises:
        ArchiveError: the archive was altered, is damaged or was not built by this project.
        RegistryError: the address names another model, or the store cannot be written.
    """
    if archive.is_dir():
        raise RegistryError(f"{archive} is a folder: push the .mar file")
    manifest = describe_archive(archive, verify(archive))
    tag = _tag(address, manifest, archive)
    with (
        upload_in_progress(registry.store, manifest) as check_time,
        zipfile.ZipFile(archive) as opened,
        ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool,
    ):
        paths = {blob.sha256: path for path, blob in manifest.files.items()}
        stored = list(
            pool.map(lambda blob: _is_stored(registry.store, blob, check_blobs), manifest.blobs)
        )
        missing = [blob for blob, there in zip(manifest.blobs, stored, strict=True) if not there]
        num_bytes = sum(blob.num_bytes for blob in missing)

        def send(blob: Blob) -> None:
            blocks = _blocks(opened, paths[blob.sha256], blob, archive)
            registry.store.write(blob.key, _counted(blocks, lambda n: on_bytes(n, num_bytes)))

        sending = [pool.submit(send, blob) for blob in missing]
        try:
            for future in sending:
                future.result()
        except BaseException:
            for future in sending:
                future.cancel()
            raise
        check_time()
        registry.store.write(manifest.key, [manifest.to_json()])
        registry.point(tag, manifest)
    skipped = tuple(blob for blob, there in zip(manifest.blobs, stored, strict=True) if there)
    return Pushed(manifest, tag, tuple(missing), skipped)


def _tag(address: Address | None, manifest: Manifest, archive: Path) -> str:
    """Return the tag of the address, by default the archive's version.

    Raises:
        RegistryError: the address names another model, or a digest.
    """
    if address is None:
        return manifest.version
    if address.name != manifest.name:
        raise RegistryError(
            f"{archive} is an archive of {manifest.name}, not of {address.name}: push it to "
            f"{manifest.name}:{address.tag or manifest.version}"
        )
    if address.digest is not None:
        raise RegistryError(f"{address}: an archive is pushed to a tag, not to a digest")
    return address.tag or manifest.version


def _is_stored(store: Store, blob: Blob, check_content: bool) -> bool:
    """Return whether a registry has the contents, with the right size and, if asked, digest."""
    if store.size(blob.key) != blob.num_bytes:
        return False
    if not check_content:
        return True
    digest = hashlib.sha256()
    for block in store.blocks(blob.key):
        digest.update(block)
    return digest.hexdigest() == blob.sha256


def _blocks(opened: zipfile.ZipFile, path: str, blob: Blob, archive: Path) -> Iterator[bytes]:
    """Read a file of an archive block by block, and check it at its end.

    Raises:
        RegistryError: the archive has changed since it was verified.
    """
    digest = hashlib.sha256()
    with opened.open(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            yield block
    if digest.hexdigest() != blob.sha256:
        raise RegistryError(f"{archive} changed while it was sent ({path}): push it again")


def _counted(blocks: Iterator[bytes], on_bytes: Callable[[int], object]) -> Iterator[bytes]:
    """Yield blocks, and report the size of each."""
    for block in blocks:
        yield block
        on_bytes(len(block))
