"""Signs an archive: OpenSSF's model-signing library signs the archive's record.

The record lists every other file with its SHA-256, so its signature covers the whole archive, and
only a few kilobytes are hashed again. The signature becomes one more file of the archive.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..handlers.archive.mar_file import signature_of, verify_archive
from ..handlers.archive.signature import Signature, read_signature, to_text
from ..handlers.archive.trusted_keys import (
    HOW_TO_MAKE_KEYS,
    check_cryptography,
    elliptic_curve_key,
    pem_blocks,
)
from ..handlers.base.archive_layout import MANIFEST, RECORD, SIGNATURE
from ..handlers.base.errors import ArchiveError
from .packing import entries_of, write_entries

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from model_signing.signing import Config as SigningConfig


def sign_archive(archive: Path, signing: SigningConfig, output: Path | None = None) -> Signature:
    """Sign an archive; a signature that it has already is replaced.

    Args:
        archive: a ``.mar`` file.
        signing: who signs: `key_signing`, `certificate_signing` or `keyless_signing`.
        output: path of the signed archive; None replaces the archive itself.

    Returns:
        The signature.

    Raises:
        ArchiveError: the archive was altered or is a folder, or it cannot be signed or written.
        SpecError: the archive's spec has a mistake.
    """
    if archive.is_dir():
        raise ArchiveError(f"{archive}: a folder; sign the .mar file before it is extracted")
    verify_archive(archive)
    target = archive if output is None else output
    try:
        with zipfile.ZipFile(archive) as unsigned:
            record = unsigned.read(RECORD)
            content = _signature(record, _name_and_version(unsigned), signing)
            # A signature that nobody could read is not written.
            signature = read_signature(content, record, source=str(archive))
            write_entries({**entries_of(unsigned), SIGNATURE: content}, target)
    except OSError as error:
        raise ArchiveError(f"{target}: cannot be written: {error}") from error
    return signature


def key_signing(key: Path) -> SigningConfig:
    """Sign with a private key.

    Args:
        key: file with a key of the curve P-256, P-384 or P-521 in PEM format.

    Raises:
        ArchiveError: model-signing is not installed, or the file holds no such key.
    """
    load_private_key(key)
    return _config().use_elliptic_key_signer(private_key=key)


def certificate_signing(key: Path, certificate: Path, chain: Sequence[Path]) -> SigningConfig:
    """Sign with a private key, and add the certificates that say whose it is.

    Args:
        key: file with the private key of the certificate, in PEM format.
        certificate: file with the signer's certificate, in PEM format.
        chain: files with the certificates between it and the authority that verifiers trust.

    Raises:
        ArchiveError: model-signing is not installed, a file cannot be read, or key and certificate
            are no pair.
    """
    load_private_key(key)
    for path in (certificate, *chain):
        if any(kind != "CERTIFICATE" for kind, _, _ in pem_blocks(path)):
            raise ArchiveError(f"{path}: a certificate in PEM format is expected")
    try:
        return _config().use_certificate_signer(
            private_key=key, signing_certificate=certificate, certificate_chain=chain
        )
    except ValueError as error:
        raise ArchiveError(
            f"{certificate}: it cannot be used with the key {key}: {error}"
        ) from None


def keyless_signing() -> SigningConfig:
    """Sign with the identity that a browser or a CI service confirms to Sigstore; needs a network.

    Raises:
        ArchiveError: model-signing is not installed, or Sigstore cannot be reached.
    """
    config = _config()
    try:
        return config.use_sigstore_signer(use_ambient_credentials=True)
    except Exception as error:
        raise ArchiveError(
            f"Sigstore cannot be reached ({error}); sign with a key instead: --key FILE"
        ) from error


def verify_identity(archive: Path, identity: str, issuer: str) -> None:
    """Check that an identity signed an archive by Sigstore's keyless method; needs a network.

    Args:
        archive: an archive that `verify_archive` has accepted.
        identity: the signer's e-mail address, or the URL of its CI workflow.
        issuer: URL of the service that confirmed the identity.

    Raises:
        ArchiveError: the archive is not signed in this way or by another identity, Sigstore cannot
            be reached, or model-signing is not installed.
    """
    record, signature = signature_of(archive)
    if signature is None:
        raise ArchiveError(f"{archive}: it is not signed; sign it with `ts-ensemble sign`")
    if not signature.is_keyless:
        raise ArchiveError(
            f"{archive}: it is signed by {signature.signer}; check it with --key instead of "
            "--identity"
        )
    _check_installed()
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as opened:
        files = Path(folder, "record"), Path(folder, "signature")
        files[0].write_bytes(record)
        files[1].write_bytes(opened.read(SIGNATURE))
        try:
            verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer).verify(
                *files
            )
        except Exception as error:
            raise ArchiveError(
                f"{archive}: Sigstore does not confirm that {identity} ({issuer}) signed it: "
                f"{error}"
            ) from error


def load_private_key(path: Path) -> EllipticCurvePrivateKey:
    """Read the private key of a signer, in PEM format.

    Raises:
        ArchiveError: the file is missing, or holds no private key that can sign archives.
    """
    check_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    kinds = [kind for kind, _, _ in pem_blocks(path)]
    if not any(kind.endswith("PRIVATE KEY") for kind in kinds):
        raise ArchiveError(f"{path}: a {kinds[0].lower()}; --key must name the private key")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise ArchiveError(
            f"{path}: the key is encrypted; write it without its password to a file that only you "
            f"can read: `openssl pkey -in {path} -out FILE`"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ArchiveError(f"{path}: a damaged private key: {error}; {HOW_TO_MAKE_KEYS}") from None
    elliptic_curve_key(key.public_key(), path)
    assert isinstance(key, EllipticCurvePrivateKey), "its public key is one"
    return key


def _signature(record: bytes, name: str, signing: SigningConfig) -> bytes:
    """Sign a record, and return the contents of the file `SIGNATURE`.

    Args:
        record: contents of the record.
        name: what the signature calls the archive.
        signing: who signs.

    Raises:
        ArchiveError: it cannot be signed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The statement that is signed contains the name of this file.
        (Path(folder) / name).write_bytes(record)
        signature = Path(folder) / SIGNATURE
        try:
            signing.sign(Path(folder) / name, signature)
        except Exception as error:
            # Sigstore's methods raise errors of several libraries, about networks and log-ins.
            raise ArchiveError(f"the archive cannot be signed: {error}") from error
        return to_text(json.loads(signature.read_bytes()))


def _name_and_version(archive: zipfile.ZipFile) -> str:
    """Return ``NAME-VERSION`` of an archive, which is the base name of its file when built."""
    model = json.loads(archive.read(MANIFEST))["model"]
    return f"{model['modelName']}-{model['modelVersion']}"


def _config() -> SigningConfig:
    """Return model-signing's configuration of a signer.

    Raises:
        ArchiveError: model-signing is not installed.
    """
    _check_installed()
    from model_signing.signing import Config

    return Config()


def _check_installed() -> None:
    """Check that model-signing is installed.

    Raises:
        ArchiveError: it is missing.
    """
    if importlib.util.find_spec("model_signing") is None:
        raise ArchiveError(
            "signing needs the package model-signing: pip install 'torchserve-ensemble[sign]'"
        )
