"""Fetches archives that are named by an address of a registry, before a server loads them."""

from __future__ import annotations

from pathlib import Path

from ..handlers.base.errors import RegistryError
from ..registry.address import SCHEME, parse_address, registry_url
from .printing import transfer_bar


def local_archive(model: str, model_store: Path, registry: str | None) -> str:
    """Fetch an archive into a model store if it is named by an address of a registry.

    Args:
        model: ``ARCHIVE`` or ``NAME=ARCHIVE``.
        model_store: folder of the server's archives.
        registry: value of ``--registry``.

    Returns:
        The same with the file's name in the model store in place of the address.

    Raises:
        RegistryError: there is no such archive, or it cannot be fetched.
        ArchiveError: the archive was not built by this project.
    """
    name, _, archive = model.rpartition("=")
    if not archive.startswith(SCHEME):
        return model
    from ..registry.pulling import pull
    from ..registry.registry import Registry

    address = parse_address(archive)
    opened = Registry.open(registry_url(registry))
    with transfer_bar(f"fetching {address}") as on_bytes:
        pulled = pull(opened, address, model_store, on_bytes=on_bytes)
    print(f"{archive} is {pulled.path}, sha256:{pulled.manifest.digest}")
    return f"{name}={pulled.path.name}" if name else pulled.path.name


def refuse_registry_address(archive: str) -> None:
    """Refuse an address of a registry where the server's model store is not at hand.

    Raises:
        RegistryError: the archive is named by such an address.
    """
    if archive.startswith(SCHEME):
        raise RegistryError(
            f"{archive}: the model store of a server elsewhere cannot be written from here; run "
            f"`ts-ensemble registry pull {archive.removeprefix(SCHEME)} --output MODEL_STORE` on "
            "the server's machine, and register the file"
        )
