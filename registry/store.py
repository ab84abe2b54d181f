"""Reads and writes the files of a registry, in a folder or in an object store, through fsspec."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..handlers.base.errors import RegistryError, reason

UPLOADS = "uploads"
"""Folder of a registry for files that are not complete, and for the notes of pushes in progress."""

_BLOCK_BYTES = 8 * 1024**2
"""Size of the parts of an upload. S3 takes 10,000 parts, and so files of 80 GB, at most."""

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs"}
"""Stores in which a file that is written appears only when it is complete."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Protocol -> the extra of this project that installs its driver."""

_AWS_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`"
)
_GOOGLE_CREDENTIALS = (
    "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
)
_CREDENTIALS = {
    "s3": _AWS_CREDENTIALS,
    "s3a": _AWS_CREDENTIALS,
    "gs": _GOOGLE_CREDENTIALS,
    "gcs": _GOOGLE_CREDENTIALS,
}


@dataclass(frozen=True)
class Store:
    """The files below one folder of a file system or object store.

    Attributes:
        url: the folder, as the user named it.
        file_system: fsspec's driver.
        root: the folder's path for the driver.
    """

    url: str
    file_system: Any
    root: str

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the folder that a URL such as ``s3://BUCKET/models``, or a plain path, names.

        Raises:
            RegistryError: fsspec does not know the protocol, or its driver is not installed.
        """
        from fsspec.core import url_to_fs

        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            # Listings are not cached: other processes write into the same store.
            file_system, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            remedy = (
                reason(error) if extra is None else f"pip install 'torchserve-ensemble[{extra}]'"
            )
            raise RegistryError(
                f"{url}: the driver of {protocol}:// is missing: {remedy}"
            ) from error
        except ValueError as error:
            raise RegistryError(
                f"{url}: no registry ({reason(error)}); name a folder, or a URL that begins with "
                "file://, s3://, gs:// or memory://"
            ) from error
        except Exception as error:
            raise _explained(error, url, protocol, "cannot be opened") from error
        return cls(url, file_system, root.rstrip("/"))

    def read(self, key: str) -> bytes:
        """Return the contents of a small file.

        Raises:
            FileNotFoundError: there is no such file.
            RegistryError: the store cannot be read.
        """
        with self._explaining(f"{key} cannot be read"):
            content: bytes = self.file_system.cat_file(self._path(key))
            return content

    def blocks(self, key: str) -> Iterator[bytes]:
        """Read a file block by block.

        Raises:
            FileNotFoundError: there is no such file.
            RegistryError: the store cannot be read.
        """
        with (
            self._explaining(f"{key} cannot be read"),
            self.file_system.open(self._path(key), "rb", block_size=_BLOCK_BYTES) as file,
        ):
            while block := file.read(_BLOCK_BYTES):
                yield block

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file."""
        with self._explaining(f"{key} cannot be read"):
            try:
                return int(self.file_system.info(self._path(key))["size"])
            except FileNotFoundError:
                return None

    def modified(self, key: str) -> datetime | None:
        """Return when a file was written; None if there is no such file."""
        with self._explaining(f"{key} cannot be read"):
            try:
                time: datetime = self.file_system.modified(self._path(key))
                return time
            except FileNotFoundError:
                return None

    def keys(self, prefix: str) -> list[str]:
        """List the files below a folder of the store, sorted."""
        with self._explaining(f"{prefix} cannot be listed"):
            try:
                paths = self.file_system.find(self._path(prefix))
            except FileNotFoundError:
                return []
            # Drivers return paths with or without a slash at the beginning.
            start = len(self.root.strip("/")) + 1 if self.root.strip("/") else 0
            return sorted(path.strip("/")[start:] for path in paths)

    def write(self, key: str, blocks: Iterable[bytes]) -> None:
        """Write a file, or replace it, so that no reader ever finds a part of it.

        An object store shows a file only when its upload is completed. Elsewhere the file gets a
        temporary name until it is complete.

        Raises:
            RegistryError: the store cannot be written. What lay there before is unchanged.
        """
        with self._explaining(f"{key} cannot be written", writing=True):
            if _protocols(self.file_system) & _OBJECT_STORES:
                self._upload(self._path(key), blocks)
                return
            temporary = self._path(f"{UPLOADS}/{uuid.uuid4().hex}.part")
            try:
                with self._opened(temporary, "wb") as file:
                    for block in blocks:
                        file.write(block)
                self._make_folder_of(self._path(key))
                self.file_system.mv(temporary, self._path(key))
            except BaseException:
                with contextlib.suppress(Exception):
                    self.file_system.rm_file(temporary)
                raise

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless there is one already, decided by the store itself.

        A process that is killed may leave a part of the content in a file system.

        Returns:
            Whether the file was written. False: there is one already.

        Raises:
            RegistryError: the store cannot be written, or its driver cannot do this.
        """
        with self._explaining(f"{key} cannot be written", writing=True):
            try:
                with self._opened(self._path(key), "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            except (ValueError, NotImplementedError) as error:
                raise RegistryError(
                    f"{self.url}: its driver cannot create a file only if there is none "
                    f"({reason(error)}), without which two pushes could destroy a tag: use a "
                    "folder, s3:// or gs://"
                ) from error
            return True

    def delete(self, key: str) -> None:
        """Delete a file, if it is there."""
        with self._explaining(f"{key} cannot be deleted", writing=True):
            try:
                self.file_system.rm_file(self._path(key))
            except FileNotFoundError:
                return

    def _upload(self, path: str, blocks: Iterable[bytes]) -> None:
        """Upload a file in parts, and complete it only if all of them have arrived."""
        file = self.file_system.open(path, "wb", autocommit=False, block_size=_BLOCK_BYTES)
        try:
            for block in blocks:
                file.write(block)
            file.close()
            file.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                file.close()
            with contextlib.suppress(Exception):
                file.discard()
            raise

    def _opened(self, path: str, mode: str) -> Any:
        """Open a file for writing, in a folder that is made if it is missing."""
        self._make_folder_of(path)
        return self.file_system.open(path, mode)

    def _make_folder_of(self, path: str) -> None:
        # Object stores have no folders, and s3fs would try to make the bucket.
        if not _protocols(self.file_system) & _OBJECT_STORES:
            self.file_system.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    @contextmanager
    def _explaining(self, what: str, *, writing: bool = False) -> Iterator[None]:
        """Turn what a driver raises within a ``with`` block into one message with a remedy."""
        try:
            yield
        except RegistryError:
            raise
        except FileNotFoundError as error:
            if not writing:
                raise
            raise RegistryError(
                f"{self.url}: {what}: {reason(error)}; make the bucket or folder first"
            ) from error
        # Each driver raises errors of its own libraries.
        except Exception as error:
            protocol = next(iter(_protocols(self.file_system)))
            raise _explained(error, self.url, protocol, what) from error


def _protocols(file_system: Any) -> set[str]:
    """Return the protocols that a driver speaks, such as ``s3`` and ``s3a``."""
    protocol = file_system.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)


def _explained(error: Exception, url: str, protocol: str, what: str) -> RegistryError:
    """Return an error that says what failed, why, and what to do."""
    kind, text = type(error).__name__, reason(error)
    credentials = _CREDENTIALS.get(protocol, "see the documentation of the store's driver")
    if "Credential" in kind or "RefreshError" in kind:
        remedy = f"no credentials were found: {credentials}"
    elif isinstance(error, PermissionError) or text.startswith("Forbidden"):
        remedy = f"the credentials do not allow it: ask the store's owner, or {credentials}"
    elif "Connect" in kind or "Timeout" in kind:
        remedy = "it cannot be reached: check the network, and AWS_ENDPOINT_URL for another S3"
    else:
        remedy = "try again"
    return RegistryError(f"{url}: {what}: {text}; {remedy}")
