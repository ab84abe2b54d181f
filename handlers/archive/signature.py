"""Reads the signature of an archive's record, without deciding whether its signer is trusted.

OpenSSF's model-signing library makes the signature (`archiver.signing`): a Sigstore bundle with a
DSSE envelope, in which an in-toto statement names the SHA-256 of the record. The record lists every
other file, so the signature covers the whole archive.

This module needs the standard library alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from ..base.archive_layout import SIGNATURE
from ..base.errors import ArchiveError
from ..base.quoting import printable

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SUBJECT_CHARACTERS = 200


@dataclass(frozen=True)
class Signature:
    """The contents of an archive's file `SIGNATURE`.

    Attributes:
        subject: what the signer called the archive, ``NAME-VERSION``.
        record_sha256: SHA-256 of the signed record, in hexadecimal.
        payload: the statement whose bytes are signed.
        value: the signature itself, an ECDSA signature in DER.
        key: fingerprint of the public key; empty if certificates or an identity vouch for the key.
        certificates: the signer's certificate and those that lead to its authority, in DER.
    """

    subject: str
    record_sha256: str
    payload: bytes
    value: bytes
    key: str
    certificates: tuple[bytes, ...]

    @property
    def is_keyless(self) -> bool:
        """Whether Sigstore vouches for the signer's identity, so that checking needs a network."""
        return not self.key and not self.certificates

    @property
    def signed_bytes(self) -> bytes:
        """What `value` signs: the payload with its type and length (DSSE 1.0, "PAE")."""
        prefix = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(self.payload)} "
        return prefix.encode() + self.payload

    @property
    def signer(self) -> str:
        """Who claims to have signed, for messages."""
        if self.key:
            return f"the key {self.key[:16]}"
        return "a certificate" if self.certificates else "an identity, without a key (Sigstore)"


def read_signature(content: bytes, record: bytes, *, source: str) -> Signature:
    """Read a signature, and check that it is one of this record.

    Only one text is accepted for a signature with given values, so that no byte of it can be
    changed unnoticed.

    Args:
        content: contents of the file `SIGNATURE`.
        record: contents of the archive's record.
        source: name of the archive, for messages.

    Raises:
        ArchiveError: the signature is damaged, or is that of another record.
    """
    try:
        signature = _parsed(content)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ArchiveError(
            f"{source}: {SIGNATURE} is damaged ({str(error)[:200] or type(error).__name__}); "
            "sign the archive again with `ts-ensemble sign`"
        ) from None
    digest = hashlib.sha256(record).hexdigest()
    if signature.record_sha256 != digest:
        raise ArchiveError(
            f"{source}: its signature is not of this archive: it signs {signature.subject} "
            f"with the record sha256:{signature.record_sha256[:16]}..., and the record here is "
            f"sha256:{digest[:16]}...; the files and the record were changed after the signing, "
            "or the signature comes from another archive: get the archive again from its builder"
        )
    return signature


def _parsed(content: bytes) -> Signature:
    """Read a bundle.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError: it is damaged.
    """
    bundle: Any = json.loads(content)
    material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
    payload = _base64(envelope["payload"])
    value = _base64(envelope["signatures"][0]["sig"])
    key = ""
    certificates: tuple[bytes, ...] = ()
    if "publicKey" in material:
        key = str(material["publicKey"]["hint"])
        material = {"publicKey": {"hint": key}, "tlogEntries": []}
    elif "x509CertificateChain" in material:
        chain = material["x509CertificateChain"]["certificates"]
        certificates = tuple(_base64(each["rawBytes"]) for each in chain)
        encoded = [{"rawBytes": base64.b64encode(each).decode()} for each in certificates]
        material = {"x509CertificateChain": {"certificates": encoded}, "tlogEntries": []}
    if key or certificates:
        # What is left out here would be covered by no signature.
        bundle = {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(value).decode(), "keyid": ""}],
            },
        }
    if to_text(bundle) != content:
        raise ValueError("it is laid out in another way than `ts-ensemble sign` does")
    statement: Any = json.loads(payload)
    (subject,), (resource,) = statement["subject"], statement["predicate"]["resources"]
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
        raise ValueError("it signs another kind of statement than model-signing 1.0 writes")
    digest = resource["digest"]
    if resource["algorithm"] != "sha256" or not _SHA256.fullmatch(digest):
        raise ValueError("it names no SHA-256")
    if key and not _SHA256.fullmatch(key):
        raise ValueError("it names no key")
    name = printable(str(subject["name"])[:_MAX_SUBJECT_CHARACTERS])
    return Signature(name, digest, payload, value, key, certificates)


def to_text(bundle: Any) -> bytes:
    """Return the only text that is accepted for a signature: JSON without spaces, as UTF-8."""
    return json.dumps(bundle, separators=(",", ":")).encode()


def _base64(text: str) -> bytes:
    """Decode base64.

    Raises:
        ValueError: it is no base64.
    """
    return base64.b64decode(text, validate=True)
