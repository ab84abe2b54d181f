"""The verb ``verify``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.base.errors import ArchiveError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``verify``."""
    verify = subparsers.add_parser(
        "verify",
        help="check that an archive is what `build` wrote",
        description="Compare every file of an archive with the SHA-256 in the archive's record. "
        "Check that it has no other files, and that it is byte for byte what a build writes. Print "
        "the archive's digest. With --key or --identity, check also who signed it.",
    )
    verify.add_argument(
        "archive",
        type=Path,
        metavar="ARCHIVE",
        help="a .mar file, or the folder that one was extracted to",
    )
    verify.add_argument(
        "--digest",
        metavar="sha256:...",
        help="the digest that the archive's builder published; another digest is an error",
    )
    signer = verify.add_mutually_exclusive_group()
    signer.add_argument(
        "--key",
        type=Path,
        metavar="PATH",
        help="a file or folder with public keys, or certificates of authorities: an archive that "
        "none of them signed is an error",
    )
    signer.add_argument(
        "--identity",
        metavar="NAME",
        help="e-mail address or workflow that signed with `sign --keyless`; needs --issuer and a "
        "network",
    )
    verify.add_argument(
        "--issuer", metavar="URL", help="the service that confirmed --identity to Sigstore"
    )
    verify.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from ..handlers.archive.mar_file import signature_of, verify_archive
    from ..handlers.archive.trusted_keys import TrustedKeys

    if (arguments.identity is None) != (arguments.issuer is None):
        raise ArchiveError("--identity and --issuer belong together; give both")
    trusted = None if arguments.key is None else TrustedKeys.read(arguments.key)
    record = verify_archive(arguments.archive, trusted=trusted)
    if arguments.digest not in (None, record.digest):
        raise ArchiveError(
            f"{arguments.archive} has the digest {record.digest}, not {arguments.digest}: it is "
            "not the archive that its builder published"
        )
    if arguments.identity is not None:
        from ..archiver.signing import verify_identity

        verify_identity(arguments.archive, arguments.identity, arguments.issuer)
    print(f"{arguments.archive}: all {len(record.files)} files are as they were built")
    print(record.digest)
    _, signature = signature_of(arguments.archive)
    if signature is None:
        print("not signed: nobody vouches for who built it")
    elif trusted is not None:
        signer = trusted.check(signature, source=str(arguments.archive))
        print(f"signed by {signer}, which {arguments.key} trusts")
    elif arguments.identity is not None:
        print(f"signed by {arguments.identity}, as {arguments.issuer} confirmed")
    else:
        print(f"signed by {signature.signer}, which was not checked: give --key")
    return 0
