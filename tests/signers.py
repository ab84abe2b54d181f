"""Keys and certificates with which the tests sign archives."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

_BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Signer:
    """A pair of keys.

    Attributes:
        private: file with the private key.
        public: file with the public key.
        key: the private key.
    """

    private: Path
    public: Path
    key: ec.EllipticCurvePrivateKey


def make_signer(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Signer:
    """Write a pair of keys, ``NAME.key`` and ``NAME.pub``."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    folder.mkdir(exist_ok=True)
    signer = Signer(folder / f"{name}.key", folder / f"{name}.pub", key)
    signer.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signer.public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return signer


def make_certificate(
    holder: Signer,
    issuer: Signer,
    *,
    name: str,
    issuer_name: str,
    authority: bool = False,
    signs: bool = True,
    days: int = 365,
) -> Path:
    """Write the certificate of a key, ``NAME.crt``, beside the key.

    Args:
        holder: whose certificate it is.
        issuer: whose key signs it.
        name: common name of the holder.
        issuer_name: common name of the issuer.
        authority: whether the holder may issue certificates.
        signs: whether the holder may sign.
        days: validity from 2026-01-01 on.
    """

    def subject(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])

    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject(issuer_name))
        .public_key(holder.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_BEGIN + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=signs, key_cert_sign=authority, crl_sign=authority, **usage
            ),
            critical=True,
        )
        .sign(issuer.key, hashes.SHA256())
    )
    path = holder.public.with_name(f"{name}.crt")
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path
