"""The verb ``sign``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ArchiveError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``sign``."""
    sign = subparsers.add_parser(
        "sign",
        help="sign an archive, so that others can check who built it",
        description="Check an archive as `verify` does, and sign its record, which lists every "
        "file with its SHA-256. The signature becomes one more file of the archive, whose digest "
        "stays the same. To make a pair of keys: `openssl genpkey -algorithm EC -pkeyopt "
        "ec_paramgen_curve:P-256 -out release.key`, then `openssl pkey -in release.key -pubout "
        "-out release.pub`.",
    )
    sign.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .mar file")
    signer = sign.add_mutually_exclusive_group(required=True)
    signer.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="private key in PEM format, of the curve P-256, P-384 or P-521",
    )
    signer.add_argument(
        "--keyless",
        action="store_true",
        help="sign with an identity that a browser or a CI service confirms to Sigstore; needs a "
        "network",
    )
    sign.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="certificate of --key, in PEM format: those who trust its authority need no key",
    )
    sign.add_argument(
        "--chain",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="certificate between --certificate and the authority; may be repeated",
    )
    sign.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="path of the signed archive (default: ARCHIVE itself is replaced)",
    )
    sign.set_defaults(run=_sign)


def _sign(arguments: argparse.Namespace) -> int:
    from ..archiver.signing import (
        certificate_signing,
        key_signing,
        keyless_signing,
        sign_archive,
    )

    if arguments.certificate is None and arguments.chain:
        raise ArchiveError("--chain belongs to --certificate; give both")
    if arguments.keyless:
        if arguments.certificate is not None:
            raise ArchiveError("--certificate belongs to --key, and --keyless has none")
        signing = keyless_signing()
    elif arguments.certificate is not None:
        signing = certificate_signing(arguments.key, arguments.certificate, arguments.chain)
    else:
        signing = key_signing(arguments.key)
    signature = sign_archive(arguments.archive, signing, arguments.output)
    print(f"{arguments.output or arguments.archive}: signed by {signature.signer}")
    return 0
