"""Signing an archive with OpenSSF's model-signing library, and the mistakes that users make."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from probe_ensemble import probes
from signers import Signer, make_certificate, make_signer

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.signing import key_signing, sign_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import signature_of, verify_archive
from torchserve_ensemble.handlers.archive.signature import read_signature
from torchserve_ensemble.handlers.archive.trusted_keys import TrustedKeys
from torchserve_ensemble.handlers.base.archive_layout import RECORD, SIGNATURE
from torchserve_ensemble.handlers.base.errors import ArchiveError


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as `build` writes it."""
    folder = tmp_path_factory.mktemp("probes")
    probes(folder)
    return build_archive(folder / "ensemble.yaml", folder / "store")


@pytest.fixture
def archive(unsigned: Path, tmp_path: Path) -> Path:
    """A copy of the archive, for one test."""
    return Path(shutil.copy(unsigned, tmp_path / "probes-1.0.mar"))


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("keys"), "release")


def test_the_verbs_sign_and_check(
    archive: Path, signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = verify_archive(archive).digest
    assert main(["verify", str(archive)]) == 0
    assert "not signed: nobody vouches for who built it" in capsys.readouterr().out
    assert main(["verify", str(archive), "--key", str(signer.public)]) == 1
    assert "it is not signed, and only archives" in capsys.readouterr().err
    other = tmp_path / "signed.mar"
    assert main(["sign", str(archive), "--key", str(signer.private), "--output", str(other)]) == 0
    assert f"{other}: signed by the key" in capsys.readouterr().out
    assert signature_of(archive)[1] is None
    assert main(["sign", str(archive), "--key", str(signer.private)]) == 0
    for each in (archive, other):
        capsys.readouterr()
        assert main(["verify", str(each), "--digest", digest]) == 0
        assert "which was not checked: give --key" in capsys.readouterr().out
        assert main(["verify", str(each), "--digest", digest, "--key", str(signer.public)]) == 0
        assert f"which {signer.public} trusts" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probes-1.0.mar", "signed.mar"]


def test_a_new_signature_replaces_the_old_one(
    archive: Path, signer: Signer, tmp_path: Path
) -> None:
    other = make_signer(tmp_path / "keys", "other")
    sign_archive(archive, key_signing(other.private))
    sign_archive(archive, key_signing(signer.private))
    verify_archive(archive, trusted=TrustedKeys.read(signer.public))
    with pytest.raises(ArchiveError, match="which is not trusted"):
        verify_archive(archive, trusted=TrustedKeys.read(other.public))


def test_model_signing_and_this_project_accept_each_others_signatures(
    archive: Path, signer: Signer, tmp_path: Path
) -> None:
    sign_archive(archive, key_signing(signer.private))
    shutil.unpack_archive(archive, tmp_path / "folder", "zip")
    files = tmp_path / "folder" / RECORD, tmp_path / "folder" / SIGNATURE
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=signer.public)
    verifier.verify(*files)
    model_signing.signing.Config().use_elliptic_key_signer(private_key=signer.private).sign(*files)
    verify_archive(tmp_path / "folder", trusted=TrustedKeys.read(signer.public))
    # Its signature of another kind of content is not one of a record.
    model_signing.signing.Config().use_elliptic_key_signer(private_key=signer.private).sign(
        tmp_path / "folder" / "handlers", files[1]
    )
    with pytest.raises(ArchiveError, match=f"{SIGNATURE} is damaged"):
        read_signature(files[1].read_bytes(), files[0].read_bytes(), source="a.mar")


def test_certificates_that_model_signing_accepts_are_accepted(
    archive: Path, signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = make_signer(tmp_path / "keys", "authority")
    root = make_certificate(authority, authority, name="Root", issuer_name="Root", authority=True)
    own = make_certificate(signer, authority, name="Release", issuer_name="Root")
    command = ["sign", str(archive), "--key", str(signer.private), "--certificate", str(own)]
    assert main([*command, "--chain", str(root)]) == 0
    assert main(["verify", str(archive), "--key", str(root)]) == 0
    assert f"signed by the certificate CN=Release, which {root} trusts" in capsys.readouterr().out
    shutil.unpack_archive(archive, tmp_path / "folder", "zip")
    model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[root]).verify(
        tmp_path / "folder" / RECORD, tmp_path / "folder" / SIGNATURE
    )


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


DAMAGED = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, "no such key file; make a pair of keys with `openssl genpkey"),
        (b"no key", "neither a key nor a certificate in PEM format"),
        (DAMAGED, "a damaged private key"),
        (private_pem(ed25519.Ed25519PrivateKey.generate()), "a key of the wrong kind (Ed25519)"),
        (
            private_pem(ec.generate_private_key(ec.SECP256K1())),
            "a key of the wrong kind (secp256k1)",
        ),
        (encrypted_pem(), "the key is encrypted; write it without its password"),
        ("public", "a public key; --key must name the private key"),
    ],
)
def test_keys_that_cannot_sign_are_refused_and_nothing_is_written(
    archive: Path,
    signer: Signer,
    tmp_path: Path,
    key: bytes | str | None,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = archive.read_bytes()
    path = tmp_path / "signer.key"
    if key is not None:
        path.write_bytes(key if isinstance(key, bytes) else signer.public.read_bytes())
    assert main(["sign", str(archive), "--key", str(path)]) == 1
    assert f"{path}: {expected}" in capsys.readouterr().err
    assert archive.read_bytes() == before


def test_other_mistakes_are_named(
    archive: Path, signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = str(signer.private), str(signer.public)
    other = make_signer(tmp_path / "keys", "other")
    foreign = make_certificate(other, other, name="Other", issuer_name="Other")
    truncated = tmp_path / "truncated.mar"
    truncated.write_bytes(archive.read_bytes()[:-1])
    signed = tmp_path / "signed.mar"
    assert main(["sign", str(archive), "--key", private, "--output", str(signed)]) == 0
    identity = ["--identity", "me@example.org", "--issuer", "https://example.org"]
    for arguments, expected in (
        (["sign", str(tmp_path), "--key", private], "a folder; sign the .mar file"),
        (["sign", str(truncated), "--key", private], "does not end as a model archive does"),
        (["sign", str(archive), "--key", private, "--output", "/none/a.mar"], "cannot be written"),
        (["sign", str(archive), "--key", private, "--chain", private], "--chain belongs to"),
        (["sign", str(archive), "--keyless", "--certificate", private], "--keyless has none"),
        (["sign", str(archive), "--key", private, "--certificate", public], "a certificate in PEM"),
        (
            ["sign", str(archive), "--key", private, "--certificate", str(foreign)],
            f"{foreign}: it cannot be used with the key {private}",
        ),
        (["verify", str(archive), "--identity", "me@example.org"], "belong together"),
        (["verify", str(archive), *identity], "it is not signed; sign it with `ts-ensemble sign`"),
        (["verify", str(signed), *identity], "check it with --key instead of --identity"),
        (["verify", str(signed), "--key", private], "a private key, which only the signer may"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1, arguments
        assert expected in capsys.readouterr().err


def test_the_missing_library_is_named(
    archive: Path,
    signer: Signer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "model_signing" else find(name)
    )
    assert main(["sign", str(archive), "--key", str(signer.private)]) == 1
    assert "pip install 'torchserve-ensemble[sign]'" in capsys.readouterr().err
