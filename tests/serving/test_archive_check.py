"""Every archive that can be checked is checked before TorchServe extracts it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from probe_ensemble import probes
from signers import make_signer

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.signing import key_signing, sign_archive
from torchserve_ensemble.handlers.archive.trusted_keys import TrustedKeys
from torchserve_ensemble.handlers.base.errors import ArchiveError, ServerError
from torchserve_ensemble.serving.archive_check import check_archive, check_models


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A model store with a good archive and a truncated one."""
    probes(tmp_path)
    good = build_archive(tmp_path / "ensemble.yaml", tmp_path / "store")
    (good.parent / "bad.mar").write_bytes(good.read_bytes()[:-1])
    return good.parent


def test_files_of_the_model_store_are_checked(store: Path) -> None:
    check_archive("probes-1.0.mar", store)
    check_archive((store / "probes-1.0.mar").as_uri(), store)
    for archive in ("bad.mar", (store / "bad.mar").as_uri()):
        with pytest.raises(ArchiveError, match="does not end as a model archive does"):
            check_archive(archive, store)
    with pytest.raises(ArchiveError, match=r"has no archive none\.mar; it has"):
        check_archive("none.mar", store)
    for archive in ("/etc", "../store/probes-1.0.mar", "a\\\\probes-1.0.mar"):
        with pytest.raises(ArchiveError, match="name a file of the model store"):
            check_archive(archive, store)


def test_an_archive_that_torchserve_downloads_is_reported_as_unchecked(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_archive("https://models.example/probes-1.0.mar", store)
    assert "https://models.example/probes-1.0.mar is not checked" in caplog.text


@pytest.mark.parametrize(
    ("models", "load_models", "good"),
    [
        (["probes-1.0.mar"], "bad.mar", True),
        (["p=probes-1.0.mar", "bad.mar"], "", False),
        (["b=bad.mar"], "", False),
        ([], "", True),
        ([], "p=probes-1.0.mar, probes-1.0.mar", True),
        ([], "probes-1.0.mar, bad.mar", False),
        ([], "ALL", False),
    ],
)
def test_the_models_that_torchserve_loads_at_its_start_are_checked(
    store: Path, models: list[str], load_models: str, good: bool
) -> None:
    properties = {"model_store": str(store), "load_models": load_models}
    if good:
        check_models(models, properties)
    else:
        with pytest.raises(ArchiveError, match="bad.mar"):
            check_models(models, properties)


def test_load_models_all_checks_every_archive_of_the_model_store(store: Path) -> None:
    (store / "bad.mar").unlink()
    (store / "README.md").touch()
    properties = {"model_store": str(store), "load_models": "all"}
    check_models([], properties)
    for other in ("folder", "other.tar.gz"):
        (store / other).mkdir() if other == "folder" else (store / other).touch()
        with pytest.raises(ArchiveError, match=other):
            check_models([], properties)
        shutil.rmtree(store / "folder", ignore_errors=True)


def test_the_archives_of_a_torchserve_snapshot_are_checked(store: Path) -> None:
    versions = {"1.0": {"marName": "probes-1.0.mar", "defaultVersion": True}}
    properties = {"model_store": str(store)}
    check_models([], properties | {"model_snapshot": json.dumps({"models": {"p": versions}})})
    versions["2.0"] = {"marName": "bad.mar", "defaultVersion": False}
    with pytest.raises(ArchiveError, match="bad.mar"):
        check_models([], properties | {"model_snapshot": json.dumps({"models": {"p": versions}})})
    with pytest.raises(ServerError, match="model_snapshot is damaged"):
        check_models([], properties | {"model_snapshot": "{}"})


def test_with_trusted_keys_only_archives_that_one_signed_pass(store: Path, tmp_path: Path) -> None:
    own, stranger = (make_signer(tmp_path / "keys", name) for name in ("own", "stranger"))
    unsigned = store / "probes-1.0.mar"
    sign_archive(unsigned, key_signing(own.private), store / "signed.mar")
    sign_archive(unsigned, key_signing(stranger.private), store / "foreign.mar")
    trusted = TrustedKeys.read(own.public)
    properties = {"model_store": str(store)}
    check_archive("signed.mar", store, trusted)
    check_models(["p=signed.mar"], properties, trusted)
    for archive, expected in (
        ("probes-1.0.mar", "it is not signed"),
        ("foreign.mar", "is not trusted"),
        ((store / "foreign.mar").as_uri(), "is not trusted"),
        ("https://models.example/signed.mar", "its signature cannot be checked before"),
    ):
        with pytest.raises(ArchiveError, match=expected):
            check_archive(archive, store, trusted)
        with pytest.raises(ArchiveError, match=expected):
            check_models(["signed.mar", f"p={archive}"], properties, trusted)
