"""Addresses of archives in a registry: ``registry://NAME:TAG`` or ``registry://NAME@sha256:...``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..handlers.base.errors import RegistryError

SCHEME = "registry://"
"""Beginning of an address, by which `serve` and `register` recognise it."""

REGISTRY_VARIABLE = "TS_ENSEMBLE_REGISTRY"
"""Environment variable with the URL of the registry, if no option names it."""

# Names and versions of a spec are such words.
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}"
_ADDRESS = re.compile(
    rf"(?:{SCHEME})?(?P<name>{_WORD})(?::(?P<tag>{_WORD})|@sha256:(?P<digest>[0-9a-f]{{64}}))?"
)


@dataclass(frozen=True)
class Address:
    """Names an archive by a tag or by a digest, or a model by neither of them.

    Attributes:
        name: name of the model, which is the name in its spec.
        tag: name of the tag; None if the address has none.
        digest: the archive's digest, or the SHA-256 of its file, in hexadecimal without
            ``sha256:``; None if the address has none.
    """

    name: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """Return the address as it is written on the command line, without `SCHEME`."""
        if self.digest is not None:
            return f"{self.name}@sha256:{self.digest}"
        return self.name if self.tag is None else f"{self.name}:{self.tag}"


def parse_address(text: str) -> Address:
    """Read an address; `SCHEME` in front of it may be left out.

    Raises:
        RegistryError: the text is no address.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise RegistryError(
            f"{text}: write {SCHEME}NAME:TAG or {SCHEME}NAME@sha256:DIGEST; names and tags have "
            "letters, digits, '.', '_' and '-'"
        )
    return Address(match["name"], match["tag"], match["digest"])


def registry_url(option: str | None) -> str:
    """Return the URL of the registry that an option or the environment names.

    Args:
        option: value of the option ``--registry``; None if it was not given.

    Raises:
        RegistryError: neither names a registry.
    """
    url = option or os.environ.get(REGISTRY_VARIABLE, "")
    if not url:
        raise RegistryError(
            f"no registry is named: set {REGISTRY_VARIABLE} or --registry to a folder or a URL, "
            "such as s3://BUCKET/models"
        )
    return url
