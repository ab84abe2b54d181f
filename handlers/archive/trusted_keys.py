"""Decides whether a trusted key, or a certificate of a trusted authority, signed an archive.

Only the package cryptography is needed, and only here: the worker shall not import the hundreds of
modules of model-signing, nor depend on it (docs/decisions/signatures.md).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from ..base.errors import ArchiveError
from .signature import Signature

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

TRUSTED_KEYS_VARIABLE = "TS_ENSEMBLE_TRUSTED_KEYS"
"""Environment variable with a file or folder of public keys; a worker that has it loads only
archives that one of these keys signed."""

_MAX_FILE_BYTES = 1024**2
_PEM_BLOCK = re.compile(rb"-----BEGIN (?P<kind>[A-Z0-9 ]+)-----\s[\s!-~]*?-----END (?P=kind)-----")
# As in model-signing: name of a curve -> hash of its signatures.
_HASH_OF_CURVE = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
HOW_TO_MAKE_KEYS = (
    "make a pair of keys with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "
    "release.key` and `openssl pkey -in release.key -pubout -out release.pub`"
)


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys and certificate authorities whose signatures are accepted.

    Attributes:
        source: the file or folder that they come from.
        pem: all of them, as one text in PEM format.
        keys: fingerprint of each public key -> the key.
        authorities: certificates of the authorities.
    """

    source: Path
    pem: bytes
    keys: Mapping[str, EllipticCurvePublicKey]
    authorities: tuple[x509.Certificate, ...]

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """Read public keys and certificates in PEM format.

        Args:
            path: a file with any number of them, or a folder of such files.

        Raises:
            ArchiveError: a file is missing, holds anything else, or there is none; or the package
                cryptography is missing.
        """
        check_cryptography()
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

        files = [path]
        if path.is_dir():
            # Kubernetes mounts keys with hidden folders beside them.
            files = sorted(each for each in path.iterdir() if not each.name.startswith("."))
        blocks = [block for file in files for block in pem_blocks(file)]
        if not blocks:
            raise ArchiveError(
                f"{path}: no key in this folder; put the builders' public keys there"
            )
        loaded = [_load(*block) for block in blocks]
        keys = [each for each in loaded if isinstance(each, EllipticCurvePublicKey)]
        return cls(
            source=path,
            pem=b"".join(pem + b"\n" for _, pem, _ in blocks),
            keys={fingerprint(key): key for key in keys},
            authorities=tuple(each for each in loaded if isinstance(each, x509.Certificate)),
        )

    def check(self, signature: Signature | None, *, source: str) -> str:
        """Check that one of these keys made the signature of an archive.

        Args:
            signature: the signature of the archive's record; None if it has none.
            source: name of the archive, for messages.

        Returns:
            Who signed, for messages: a key or the name in a certificate.

        Raises:
            ArchiveError: the archive is not signed, another key signed it, or the key that it names
                did not.
        """
        if signature is None:
            raise ArchiveError(
                f"{source}: it is not signed, and only archives that a key of {self.source} signed "
                "are accepted; sign it with `ts-ensemble sign`"
            )
        if signature.is_keyless:
            raise ArchiveError(
                f"{source}: it is signed by {signature.signer}, which no key can check: use "
                "`ts-ensemble verify --identity NAME --issuer URL`, or sign it with a key"
            )
        signer = signature.signer
        if signature.certificates:
            key, signer = self._certified_key(signature, source)
        elif signature.key in self.keys:
            key = self.keys[signature.key]
        else:
            trusted = ", ".join(each[:16] for each in self.keys) or "none, only certificates"
            raise ArchiveError(
                f"{source}: it is signed by {signature.signer}, which is not trusted (the keys of "
                f"{self.source}: {trusted}); get the archive or the key from its builder"
            )
        if not _is_made_by(key, signature):
            raise ArchiveError(
                f"{source}: its signature is forged or changed: {signer} did not make "
                "it; get the archive again from its builder"
            )
        return signer

    def _certified_key(
        self, signature: Signature, source: str
    ) -> tuple[EllipticCurvePublicKey, str]:
        """Return the key and the name of a certificate that a trusted authority must have issued.

        As in model-signing, a certificate counts at the time at which it began to be valid: nothing
        proves when a signature was made, and a server must start after a certificate has expired.

        Raises:
            ArchiveError: no trusted authority issued the certificate for signing.
        """
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.x509 import verification

        extensions = verification.ExtensionPolicy
        try:
            signer, *chain = map(x509.load_der_x509_certificate, signature.certificates)
            if not self.authorities:
                raise ValueError("no certificate of an authority is trusted, only keys")
            policy = verification.PolicyBuilder().store(verification.Store(list(self.authorities)))
            policy = policy.time(signer.not_valid_before_utc).extension_policies(
                ca_policy=extensions.permit_all().require_present(
                    x509.BasicConstraints, verification.Criticality.AGNOSTIC, None
                ),
                ee_policy=extensions.permit_all(),
            )
            used = policy.build_client_verifier().verify(signer, chain).chain
            if not set(chain) <= set(used):
                # A change of such a certificate would go unnoticed.
                raise ValueError("a certificate beside it does not lead to its authority")
            if not _is_for_signing(signer):
                raise ValueError("it is not for signing (keyUsage digitalSignature or codeSigning)")
            key = signer.public_key()
            if not _can_be_checked(key):
                raise ValueError("its key is not of the curve P-256, P-384 or P-521")
        except (
            ValueError,
            UnsupportedAlgorithm,
            x509.DuplicateExtension,
            verification.VerificationError,
        ) as error:
            raise ArchiveError(
                f"{source}: the certificate of its signature is not trusted by {self.source}: "
                f"{str(error)[:300]}; get the archive or the authority's certificate from its "
                "builder"
            ) from None
        return key, f"the certificate {signer.subject.rfc4514_string()}"


def keys_of_environment() -> TrustedKeys | None:
    """Read the keys that `TRUSTED_KEYS_VARIABLE` names; None if the variable is not set.

    Raises:
        ArchiveError: the keys cannot be read, or there is none.
    """
    path = os.environ.get(TRUSTED_KEYS_VARIABLE)
    if path is None:
        return None
    if not path:
        raise ArchiveError(f"{TRUSTED_KEYS_VARIABLE} is empty: name a file or folder of keys in it")
    return TrustedKeys.read(Path(path))


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key in PEM format, by which model-signing names it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def pem_blocks(path: Path) -> list[tuple[str, bytes, Path]]:
    """Find the blocks of a file in PEM format: kind, such as ``PUBLIC KEY``, text, and the file.

    Raises:
        ArchiveError: the file cannot be read, or has no such block.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such key file; {HOW_TO_MAKE_KEYS}") from None
    except OSError as error:
        raise ArchiveError(f"{path}: the key cannot be read: {error.strerror}") from error
    blocks = [(each["kind"].decode(), each[0], path) for each in _PEM_BLOCK.finditer(content)]
    if not blocks:
        raise ArchiveError(
            f"{path}: neither a key nor a certificate in PEM format; {HOW_TO_MAKE_KEYS}"
        )
    return blocks


def _load(kind: str, pem: bytes, path: Path) -> EllipticCurvePublicKey | x509.Certificate:
    """Load a public key or a certificate.

    Raises:
        ArchiveError: it is damaged, or of another kind.
    """
    check_cryptography()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if kind.endswith("PRIVATE KEY"):
        raise ArchiveError(
            f"{path}: a private key, which only the signer may have; name the public key: "
            f"`openssl pkey -in {path} -pubout`"
        )
    try:
        if kind == "CERTIFICATE":
            return x509.load_pem_x509_certificate(pem)
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ArchiveError(f"{path}: a damaged {kind.lower()}: {error}; copy it again") from None
    return elliptic_curve_key(key, path)


def elliptic_curve_key(key: object, path: Path) -> EllipticCurvePublicKey:
    """Return a public key if model-signing can sign with its kind.

    Raises:
        ArchiveError: it is of another kind.
    """
    if _can_be_checked(key):
        return key
    kind = getattr(
        getattr(key, "curve", None), "name", type(key).__name__.removesuffix("PublicKey")
    )
    raise ArchiveError(
        f"{path}: a key of the wrong kind ({kind}); archives are signed with keys of the curves "
        f"P-256, P-384 and P-521: {HOW_TO_MAKE_KEYS}"
    )


def _can_be_checked(key: object) -> TypeGuard[EllipticCurvePublicKey]:
    """Whether a public key is of a curve that model-signing signs with."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    return isinstance(key, EllipticCurvePublicKey) and key.curve.name in _HASH_OF_CURVE


def _is_made_by(key: EllipticCurvePublicKey, signature: Signature) -> bool:
    """Whether the owner of a key made a signature."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    digest = getattr(hashes, _HASH_OF_CURVE[key.curve.name])()
    try:
        key.verify(signature.value, signature.signed_bytes, ECDSA(digest))
    except InvalidSignature:
        return False
    return True


def _is_for_signing(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that its key may sign."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and value.digital_signature:
            return True
        if isinstance(value, x509.ExtendedKeyUsage) and (ExtendedKeyUsageOID.CODE_SIGNING in value):
            return True
    return False


def check_cryptography() -> None:
    """Check that the package cryptography is installed.

    Raises:
        ArchiveError: it is missing.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise ArchiveError(
            "this Python lacks the package cryptography, which checks signatures: "
            "pip install cryptography"
        )
