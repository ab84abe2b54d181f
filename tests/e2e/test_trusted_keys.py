"""A server with trusted keys serves what one of them signed, and nothing else, on every way in."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_refusals import Contents
from probe_ensemble import image, probes
from signers import Signer, make_signer

from torchserve_ensemble.archiver.build import build_archive, write_entries
from torchserve_ensemble.archiver.signing import key_signing, sign_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import ENTRY, RECORD
from torchserve_ensemble.handlers.base.errors import ServerError, WorkerDiedError
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trusted")


@pytest.fixture(scope="module")
def own(folder: Path) -> Signer:
    """The signer whose key the server trusts."""
    return make_signer(folder / "keys", "own")


def files_of(archive: Path) -> Contents:
    """Read the files of an archive."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def store(folder: Path, own: Signer) -> Path:
    """A model store in which only probes-1.0.mar is as a trusted key signed it."""
    stranger = make_signer(folder / "keys", "stranger")
    store = folder / "store"
    for version in ("1.0", "2.0", "3.0", "4.0", "5.0"):
        probes(folder, version=version)
        build_archive(folder / "ensemble.yaml", store)
    sign_archive(store / "probes-1.0.mar", key_signing(own.private))
    (store / "probes-2.0.mar").rename(store / "unsigned.mar")
    sign_archive(store / "probes-3.0.mar", key_signing(stranger.private), store / "foreign.mar")
    sign_archive(store / "probes-4.0.mar", key_signing(own.private))
    mark = f"open({str(folder)!r} + '/ran-' + __name__, 'w').close()\n".encode()
    # Python would import the first at its start, and torch the last if it finds it.
    names = ("encodings/__init__", "sitecustomize", "usercustomize", "numpy", "triton")
    planted = files_of(store / "probes-4.0.mar") | {f"{name}.py": mark for name in names}
    write_entries(planted, store / "planted.mar")
    contents = files_of(store / "probes-5.0.mar")
    del contents[RECORD]
    # An entry of one's own, with which an archive could leave out the checks of `handlers.entry`.
    contents[ENTRY] = mark + contents[ENTRY]
    files = {name: sha256_of_bytes(content) for name, content in contents.items()}
    contents[RECORD] = ArchiveRecord(files, {}).to_json().encode()
    write_entries(contents, store / "hostile.mar")
    return store


@pytest.fixture(scope="module")
def server(store: Path, folder: Path, own: Signer) -> Iterator[Server]:
    settings = ServerSettings(
        store, ("probes-1.0.mar",), overrides=throw_away(), trusted_keys=own.public
    )
    with Server.start(settings, folder / "run") as server:
        server.wait_ready()
        yield server


REFUSALS = {
    "unsigned.mar": "it is not signed",
    "foreign.mar": "which is not trusted",
    "hostile.mar": "it is not signed",
    "planted.mar": "sitecustomize.py is not listed",
}


def test_a_signed_archive_is_served_by_several_workers(server: Server) -> None:
    with server.client() as client:
        answer = client.predict("probes", [("a.png", image(0.9))])
    assert answer["predictions"][0]["label"] == "bright"
    assert main(["scale", "probes", "2", "--run-folder", str(server.run_folder)]) == 0


@pytest.mark.parametrize("archive", REFUSALS)
def test_serve_refuses_other_archives(
    store: Path, own: Signer, tmp_path: Path, archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", archive, "--model-store", str(store), "--trusted-keys", str(own.public)]
    assert main([*command, "--run-folder", str(tmp_path / "run"), "--free-ports"]) == 1
    assert REFUSALS[archive] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("archive", REFUSALS)
def test_register_refuses_other_archives(
    server: Server, archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", archive, "--run-folder", str(server.run_folder)]) == 1
    assert REFUSALS[archive] in capsys.readouterr().err


@pytest.mark.parametrize("archive", REFUSALS)
def test_workers_refuse_other_archives_before_any_of_their_code_runs(
    server: Server, folder: Path, archive: str
) -> None:
    """The management API itself checks nothing; the guard of the worker does."""
    with pytest.raises(WorkerDiedError) as caught:
        server.register(archive, check_archive=False)
    assert REFUSALS[archive] in caught.value.message
    assert not list(folder.glob("ran-*"))


def test_a_change_on_disk_is_refused_by_the_next_worker(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.management() as management:
        before = management.describe("probes", "1.0")[0].max_workers
    temporary = Path(server._state.temporary)
    (weights,) = temporary.glob("models/*/ensemble/a.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        scale = ["scale", "probes", str(before + 1), "--run-folder", str(server.run_folder)]
        assert main(scale) == 1
        assert "ensemble/a.safetensors was changed" in capsys.readouterr().err
    finally:
        weights.write_bytes(content)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("blacklist_env_vars", ".*KEYS.*", "may hide from the workers which keys are trusted"),
        ("install_py_dep_per_model", "TRUE", "installs what an archive requires before it is ch"),
    ],
)
def test_settings_that_would_undo_trusted_keys_are_refused(
    store: Path, own: Signer, tmp_path: Path, key: str, value: str, expected: str
) -> None:
    settings = ServerSettings(store, overrides=throw_away() | {key: value}, trusted_keys=own.public)
    with pytest.raises(ServerError, match=f"{key} {expected}"):
        Server.start(settings, tmp_path / "run")
