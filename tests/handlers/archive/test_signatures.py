"""Signed archives: every change is refused, whatever it is that was changed."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import struct
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from archive_refusals import Contents
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from signers import Signer, make_certificate, make_signer

from torchserve_ensemble.archiver.build import write_entries
from torchserve_ensemble.archiver.signing import (
    certificate_signing,
    key_signing,
    sign_archive,
)
from torchserve_ensemble.handlers.archive.mar_file import signature_of, verify_archive
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.archive.signature import read_signature, to_text
from torchserve_ensemble.handlers.archive.trusted_keys import (
    TRUSTED_KEYS_VARIABLE,
    TrustedKeys,
    keys_of_environment,
)
from torchserve_ensemble.handlers.base.archive_layout import (
    ENTRY,
    MANIFEST,
    MODEL_CONFIG,
    RECORD,
    SIGNATURE,
    SPEC,
)
from torchserve_ensemble.handlers.base.errors import ArchiveError

NOTES = "ensemble/notes.txt"


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, Signer]:
    """A builder whose key is trusted, and a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    return make_signer(folder, "builder"), make_signer(folder, "stranger")


@pytest.fixture(scope="module")
def builder(signers: tuple[Signer, Signer]) -> Signer:
    return signers[0]


@pytest.fixture(scope="module")
def trusted(builder: Signer) -> TrustedKeys:
    """The builder's public key."""
    return TrustedKeys.read(builder.public)


def with_record(contents: Contents) -> Contents:
    """Write the record again for other files, as somebody does who knows how archives are made."""
    files = {name: c for name, c in contents.items() if name not in (RECORD, SIGNATURE)}
    record = ArchiveRecord({name: sha256_of_bytes(c) for name, c in files.items()}, {})
    return contents | {RECORD: record.to_json().encode()}


@pytest.fixture(scope="module")
def small(contents: Contents) -> Contents:
    """The files of an archive without `handlers`, which is quickly checked."""
    return with_record({n: c for n, c in contents.items() if not n.startswith("handlers/")})


def read(path: Path) -> Contents:
    """Read the files of an archive."""
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def written(contents: Contents, path: Path) -> Path:
    """Write an archive's file, and return its path."""
    write_entries(contents, path)
    return path


@pytest.fixture(scope="module")
def signed(small: Contents, builder: Signer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small archive that the builder signed."""
    path = written(small, tmp_path_factory.mktemp("signed") / "probes-1.0.mar")
    sign_archive(path, key_signing(builder.private))
    return path


def refusal(path: Path, trusted: TrustedKeys | None) -> str:
    """Check that an archive is refused, and return the message."""
    with pytest.raises(ArchiveError) as caught:
        verify_archive(path, trusted=trusted)
    assert str(path) in caught.value.message
    return caught.value.message


def test_a_signed_archive_is_accepted_and_keeps_its_digest(
    small: Contents, signed: Path, trusted: TrustedKeys, tmp_path: Path
) -> None:
    unsigned = written(small, tmp_path / "unsigned.mar")
    assert verify_archive(signed, trusted=trusted) == verify_archive(unsigned)
    assert verify_archive(signed) == verify_archive(unsigned)
    shutil.unpack_archive(signed, tmp_path / "folder", "zip")
    assert verify_archive(tmp_path / "folder", trusted=trusted) == verify_archive(unsigned)
    assert signature_of(signed) == signature_of(tmp_path / "folder")


REGIONS = {
    "local headers": lambda whole: range(30),
    "names": lambda whole: range(30, 30 + len(MANIFEST)),
    "manifest": lambda whole: content_of(whole, MANIFEST),
    "record": lambda whole: content_of(whole, RECORD),
    "signature": lambda whole: content_of(whole, SIGNATURE),
    "entry": lambda whole: content_of(whole, ENTRY),
    "spec": lambda whole: content_of(whole, SPEC),
    "weights": lambda whole: content_of(whole, "ensemble/a.safetensors"),
    "settings": lambda whole: content_of(whole, MODEL_CONFIG),
    "central directory": lambda whole: range(directory(whole), len(whole) - 22),
    "end record": lambda whole: range(len(whole) - 22, len(whole)),
}


def directory(whole: bytes) -> int:
    """Return the offset of the directory at an archive's end."""
    return int(struct.unpack_from("<L", whole, len(whole) - 6)[0])


def content_of(whole: bytes, name: str) -> range:
    """Return the offsets of a file's contents in an archive."""
    entry = whole.rindex(name.encode() + b"PK" if name != SPEC else name.encode()) - 46
    size, start = (struct.unpack_from("<L", whole, entry + at)[0] for at in (24, 42))
    return range(start + 30 + len(name), start + 30 + len(name) + size)


@pytest.mark.parametrize("region", REGIONS)
def test_a_change_of_one_byte_is_refused_in_every_region(
    signed: Path, trusted: TrustedKeys, tmp_path: Path, region: str
) -> None:
    whole, path = signed.read_bytes(), tmp_path / "a.mar"
    places = REGIONS[region](whole)
    for place in places[:: max(1, len(places) // 60)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        refusal(path, trusted)


def test_two_thousand_random_changes_of_one_byte_are_refused(
    signed: Path, trusted: TrustedKeys, tmp_path: Path
) -> None:
    whole, path, generator = signed.read_bytes(), tmp_path / "a.mar", random.Random(17)
    for _ in range(2000):
        changed = bytearray(whole)
        changed[generator.randrange(len(whole))] ^= generator.randrange(1, 256)
        path.write_bytes(changed)
        refusal(path, trusted)


@pytest.mark.parametrize("method", ["key", "certificate"])
def test_no_byte_of_a_signature_can_be_changed(
    signed: Path, signers: tuple[Signer, Signer], tmp_path: Path, method: str
) -> None:
    builder, authority = signers
    archive, keys = signed, builder.public
    if method == "certificate":
        root = make_certificate(
            authority, authority, name="Root", issuer_name="Root", authority=True
        )
        own = make_certificate(builder, authority, name="Builder", issuer_name="Root")
        archive, keys = tmp_path / "a.mar", root
        sign_archive(signed, certificate_signing(builder.private, own, [root]), archive)
    trusted, contents = TrustedKeys.read(keys), read(archive)
    signature, record = contents[SIGNATURE], contents[RECORD]
    trusted.check(read_signature(signature, record, source="a.mar"), source="a.mar")
    generator = random.Random(17)
    for place in range(len(signature)):
        changed = bytearray(signature)
        changed[place] ^= generator.randrange(1, 256)
        with pytest.raises(ArchiveError):
            trusted.check(read_signature(bytes(changed), record, source="a.mar"), source="a.mar")


def attacks(
    signed: Contents, other: Contents, foreign: Contents
) -> dict[str, tuple[Contents, str]]:
    """What may be done to a signed archive -> the files afterwards, and the refusal.

    Args:
        signed: the archive.
        other: another archive of the same signer.
        foreign: the same archive, signed by a stranger.
    """
    without = {name: c for name, c in signed.items() if name != NOTES}
    changed = signed | {NOTES: b"other"}
    added = signed | {"ensemble/added.py": b""}
    bundle = json.loads(signed[SIGNATURE])
    value = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    forged = signed[SIGNATURE].replace(
        value.encode(),
        json.loads(foreign[SIGNATURE])["dsseEnvelope"]["signatures"][0]["sig"].encode(),
    )
    return {
        "unsigned": ({n: c for n, c in signed.items() if n != SIGNATURE}, "it is not signed"),
        "a file changed": (changed, f"{NOTES} was changed"),
        "a file removed": (without, f"{NOTES} is missing"),
        "a file added": (added, f"ensemble/added.py is not listed in {RECORD}"),
        "a file changed, listed": (
            with_record(changed),
            "not of this archive: it signs probes-1.0",
        ),
        "a file removed, unlisted": (with_record(without), "not of this archive: it signs probes"),
        "a file added, listed": (with_record(added), "not of this archive: it signs probes-1.0"),
        "the record changed": (
            signed
            | {RECORD: signed[RECORD].replace(b'"digest": "sha256:', b'"digest": "sha256:0')},
            f"{RECORD} was changed after the build",
        ),
        "the signature of another archive": (
            signed | {SIGNATURE: other[SIGNATURE]},
            "not of this archive: it signs probes-2.0 with the record",
        ),
        "the signature of a stranger": (foreign, "which is not trusted (the keys of"),
        "the name of the key forged": (
            signed | {SIGNATURE: forged},
            "its signature is forged or changed: the key",
        ),
        "the signature truncated": (
            signed | {SIGNATURE: signed[SIGNATURE][:-1]},
            f"{SIGNATURE} is damaged",
        ),
        "the signature empty": (signed | {SIGNATURE: b""}, f"{SIGNATURE} is damaged"),
        "spaces in the signature": (
            signed | {SIGNATURE: json.dumps(bundle).encode()},
            "laid out in another way",
        ),
        "a further value in the signature": (
            signed | {SIGNATURE: to_text(bundle | {"more": 1})},
            "laid out in another way",
        ),
        "deep nesting": (signed | {SIGNATURE: b"[" * 100_000}, f"{SIGNATURE} is damaged"),
        "a second signature": (
            signed | {f"{SIGNATURE}.sig": signed[SIGNATURE]},
            f"{SIGNATURE}.sig is not listed",
        ),
        "a signature that the record lists": (
            signed | {RECORD: listing_itself(signed)},
            "not of this archive",
        ),
        "no key can check": (
            signed | {SIGNATURE: keyless(bundle)},
            "it is signed by an identity, without a key (Sigstore), which no key can check",
        ),
    }


def listing_itself(contents: Contents) -> bytes:
    """Return a record that lists the signature."""
    files = {name: sha256_of_bytes(c) for name, c in contents.items() if name != RECORD}
    return ArchiveRecord(files, {}).to_json().encode()


def keyless(bundle: dict[str, dict[str, object]]) -> bytes:
    """Return a signature in which nothing but Sigstore vouches for the key."""
    return to_text(bundle | {"verificationMaterial": {"certificate": {"rawBytes": "AA=="}}})


def test_every_attack_is_refused_with_its_own_message(
    contents: Contents,
    signed: Path,
    signers: tuple[Signer, Signer],
    trusted: TrustedKeys,
    tmp_path: Path,
) -> None:
    second = dict(read(signed))
    del second[SIGNATURE]
    for name in (SPEC, MANIFEST):
        second[name] = second[name].replace(b'"1.0"', b'"2.0"')
    other = written(with_record(second), tmp_path / "other.mar")
    sign_archive(other, key_signing(signers[0].private))
    foreign = tmp_path / "foreign.mar"
    sign_archive(signed, key_signing(signers[1].private), foreign)
    messages = set()
    for what, (altered, expected) in attacks(read(signed), read(other), read(foreign)).items():
        path = written(altered, tmp_path / "a.mar")
        message = refusal(path, trusted)
        assert expected in message, what
        shutil.unpack_archive(path, tmp_path / "folder", "zip")
        assert expected in refusal(tmp_path / "folder", trusted), what
        shutil.rmtree(tmp_path / "folder")
        messages.add(message)
    assert len(messages) > 14


def test_without_keys_a_signature_must_still_be_that_of_the_archive(
    signed: Path, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.mar"
    sign_archive(signed, key_signing(signers[1].private), foreign)
    verify_archive(foreign)
    altered = with_record(read(signed) | {NOTES: b"other"})
    assert "not of this archive" in refusal(written(altered, tmp_path / "a.mar"), None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"probes-1.0"', '"probes\\u001b[31m"'),
        ('"probes-1.0"', '"probes\\ud800"'),
        ('"algorithm": "sha256"', '"algorithm": "sha1"'),
        ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v2"),
        ("https://model_signing/signature/v1.0", "https://model_signing/Digests/v0.1"),
        ('"digest": "', '"digest": "\\u001b'),
        ('"resources": [', '"resources": [{}, '),
    ],
)
def test_statements_that_a_signer_would_not_write_are_refused_in_printable_words(
    signed: Path, tmp_path: Path, before: str, after: str
) -> None:
    contents = read(signed)
    bundle = json.loads(contents[SIGNATURE])
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()
    assert before in statement
    altered = statement.replace(before, after).encode()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(altered).decode()
    with pytest.raises(ArchiveError) as caught:
        read_signature(to_text(bundle), b"another record", source="a.mar")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        ({}, ""),
        ({"signs": False}, "it is not for signing"),
        ({"issuer": "stranger"}, "is not trusted by"),
        ({"authority": False}, "cA must be asserted in a CA certificate"),
        ({"more": True}, "a certificate beside it does not lead to its authority"),
        ({"trust": "key"}, "no certificate of an authority is trusted, only keys"),
        ({"days": 1}, ""),
    ],
)
def test_certificates_count_if_a_trusted_authority_issued_them_for_signing(
    signed: Path, tmp_path: Path, arrange: dict[str, object], expected: str
) -> None:
    root, stranger, middle, holder = (
        make_signer(tmp_path, name) for name in ("root", "stranger", "middle", "holder")
    )
    authority = make_certificate(root, root, name="Root", issuer_name="Root", authority=True)
    between = make_certificate(
        middle,
        root,
        name="Middle",
        issuer_name="Root",
        authority=bool(arrange.get("authority", True)),
    )
    own = make_certificate(
        holder,
        stranger if arrange.get("issuer") else middle,
        name="Builder",
        issuer_name="Middle",
        signs=bool(arrange.get("signs", True)),
        days=int(str(arrange.get("days", 365))),
    )
    chain = [between]
    if arrange.get("more"):
        chain.append(make_certificate(stranger, stranger, name="More", issuer_name="More"))
    archive = tmp_path / "a.mar"
    sign_archive(signed, certificate_signing(holder.private, own, chain), archive)
    trusted = TrustedKeys.read(root.public if arrange.get("trust") else authority)
    if expected:
        assert expected in refusal(archive, trusted)
    else:
        verify_archive(archive, trusted=trusted)
        signature = signature_of(archive)[1]
        assert trusted.check(signature, source="") == "the certificate CN=Builder"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_all_curves_of_model_signing_are_checked(
    signed: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    signer, archive = make_signer(tmp_path, "signer", curve), tmp_path / "a.mar"
    sign_archive(signed, key_signing(signer.private), archive)
    verify_archive(archive, trusted=TrustedKeys.read(signer.public))


def public_pem(key: object) -> bytes:
    pem: bytes = key.public_key().public_bytes(  # type: ignore[attr-defined]
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    return pem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such key file"),
        (b"", "neither a key nor a certificate in PEM format"),
        (b"key", "neither a key nor a certificate in PEM format"),
        (public_pem(ed25519.Ed25519PrivateKey.generate()), "a key of the wrong kind (Ed25519)"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "a key of the wrong kind (RSA)"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "the wrong kind (secp256k1)"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "a damaged public key"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a damaged certifi"),
        (b"-----BEGIN EC PRIVATE KEY-----\nA\n-----END EC PRIVATE KEY-----\n", "a private key, wh"),
    ],
)
def test_files_that_are_no_public_keys_are_refused(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "builder.pub"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=re.escape(f"{path}: ")) as caught:
        TrustedKeys.read(path)
    assert expected in caught.value.message


def test_a_folder_and_a_file_may_hold_several_keys(
    signed: Path, signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="no key in this folder"):
        TrustedKeys.read(tmp_path)
    for signer in signers:
        shutil.copy(signer.public, tmp_path)
    (tmp_path / ".hidden").write_text("no key")
    folder = TrustedKeys.read(tmp_path)
    joined = tmp_path / ".joined"
    joined.write_bytes(folder.pem)
    for trusted in (folder, TrustedKeys.read(joined)):
        assert len(trusted.keys) == 2
        verify_archive(signed, trusted=trusted)


def test_the_environment_names_the_keys_of_a_worker(
    builder: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUSTED_KEYS_VARIABLE, raising=False)
    assert keys_of_environment() is None
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(builder.public))
    trusted = keys_of_environment()
    assert trusted is not None
    assert len(trusted.keys) == 1
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, "")
    with pytest.raises(ArchiveError, match="is empty"):
        keys_of_environment()


def test_a_missing_library_is_named(builder: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ArchiveError, match="pip install cryptography"):
        TrustedKeys.read(builder.public)


@pytest.mark.parametrize(
    "name", ["ensemble/NOTES.TXT", "ensemble/n\u00f6tes.txt", "ensemble/stra\u00dfe.txt"]
)
def test_names_that_are_equal_to_some_file_systems_are_refused(
    small: Contents, trusted: TrustedKeys, tmp_path: Path, name: str
) -> None:
    twin = unicodedata.normalize("NFD", name).lower().replace("\u00df", "ss")
    assert twin != name
    both = small | {name: b"", twin: b""}
    for altered in (both, with_record(both)):
        message = refusal(written(altered, tmp_path / "a.mar"), trusted)
        assert "are one name to some file systems" in message
