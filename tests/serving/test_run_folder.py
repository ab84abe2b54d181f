"""A state file is not believed: what it names is deleted or ended only after a check."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.finding import inference_client, management_client, running_server
from torchserve_ensemble.serving.processes import find_java_process, works_in
from torchserve_ensemble.serving.run_folder import (
    DEFAULT_RUN_FOLDER,
    run_folder_lock,
    write_private_file,
)
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away


def write_state(run_folder: Path, **changed: object) -> Path:
    """Write a state file such as a cloned repository may contain, and return the run folder."""
    address = "http://127.0.0.1:1"
    state = {
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "inference_address": address,
        "management_address": address,
        "metrics_address": address,
        "grpc_address": "127.0.0.1:1",
        "temporary": "/nonexistent",
        "tokens": False,
    }
    run_folder.mkdir(exist_ok=True)
    (run_folder / "server.json").write_text(json.dumps(state | changed))
    return run_folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with the name, place and mode of a server's temporary folder; it holds one file."""
    folder = Path(tempfile.mkdtemp(prefix="ts-ensemble-"))
    (folder / "precious").write_text("data")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run_every_verb(run_folder: Path) -> None:
    """Run each verb that reads a run folder, whatever its exit status."""
    for verb in (
        ["doctor", "--config", "none"],
        ["status"],
        ["describe", "a"],
        ["predict", "a", __file__],
        ["token", "inference"],
        ["stop"],
    ):
        main([*verb, "--run-folder", str(run_folder)])


def test_a_folder_that_a_state_file_names_is_kept(tmp_path: Path, temporary: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("data")
    for folder in (precious, temporary, tmp_path / "run", Path(), Path("/")):
        run_every_verb(write_state(tmp_path / "run", temporary=str(folder)))
    assert (precious / "file").read_text() == "data"
    assert (temporary / "precious").read_text() == "data"


def test_the_temporary_folder_of_another_run_folder_is_kept(
    tmp_path: Path, temporary: Path
) -> None:
    (temporary / "run-folder").write_text(str(tmp_path / "other"))
    run_every_verb(write_state(tmp_path / "run", temporary=str(temporary)))
    assert (temporary / "precious").exists()


@pytest.mark.parametrize("difference", ["mode", "name", "place", "link"])
def test_a_temporary_folder_that_differs_in_one_property_is_kept(
    tmp_path: Path, temporary: Path, difference: str
) -> None:
    (temporary / "run-folder").write_text(str(tmp_path / "run"))
    folder = temporary
    if difference == "mode":
        temporary.chmod(0o755)
    elif difference == "name":
        folder = Path(tempfile.mkdtemp(prefix="other-"))
        (folder / "run-folder").write_text(str(tmp_path / "run"))
    elif difference == "place":
        folder = tmp_path / temporary.name
        folder.mkdir(mode=0o700)
        (folder / "run-folder").write_text(str(tmp_path / "run"))
    else:
        folder = temporary.with_name(f"{temporary.name}-link")
        folder.symlink_to(temporary)
    try:
        run_every_verb(write_state(tmp_path / "run", temporary=str(folder)))
        assert folder.exists()
        assert (temporary / "precious").exists()
    finally:
        if difference == "name":
            shutil.rmtree(folder)
        if difference == "link":
            folder.unlink()


def test_only_stop_and_start_remove_what_a_dead_server_left(
    tmp_path: Path, temporary: Path
) -> None:
    (temporary / "run-folder").write_text(str(tmp_path / "run"))
    run_folder = write_state(tmp_path / "run", temporary=str(temporary))
    assert Server.attach(run_folder) is None
    main(["status", "--run-folder", str(run_folder)])
    assert temporary.exists()
    main(["stop", "--run-folder", str(run_folder)])
    assert not temporary.exists()
    assert not (run_folder / "server.json").exists()


@pytest.mark.parametrize("arguments", [["ts.model_server"], []])
def test_a_process_that_a_state_file_names_is_not_ended(
    tmp_path: Path, arguments: list[str]
) -> None:
    """One process works in the run folder, the other looks like TorchServe; neither is both."""
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", *arguments],
        cwd=tmp_path if arguments else run_folder,
        stdin=subprocess.PIPE,
    )
    try:
        created = psutil.Process(process.pid).create_time()
        run_every_verb(write_state(run_folder, pid=process.pid, created=created))
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", "", "\x00", '{"pid": "1"}', "[" * 100_000, '"' + "a" * 10**6]
)
def test_a_damaged_state_file_is_reported(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "server.json").write_text(content)
    with pytest.raises(ServerError, match="damaged, or another version wrote it") as raised:
        Server.attach(tmp_path)
    assert len(raised.value.message) < 5000
    assert main(["doctor", "--config", "none", "--run-folder", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 10**30, 1.5, True])
def test_impossible_process_ids_are_refused(tmp_path: Path, pid: object) -> None:
    with pytest.raises(ServerError, match="damaged"):
        Server.attach(write_state(tmp_path, pid=pid))


def children(run_folder: Path) -> list[psutil.Process]:
    """List the descendants of this process that work in a run folder."""
    descendants = psutil.Process().children(recursive=True)
    return [each for each in descendants if works_in(run_folder, each)]


def start(tmp_path: Path, run_folder: Path) -> None:
    """Start a server without models, which uses `tmp_path` as its model store."""
    Server.start(ServerSettings(tmp_path, overrides=throw_away()), run_folder)


def test_two_starts_at_once_exclude_each_other(tmp_path: Path) -> None:
    """A start that was killed does not keep the lock."""
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    code = """
import sys
from pathlib import Path
from torchserve_ensemble.serving.run_folder import run_folder_lock
with run_folder_lock(Path(sys.argv[1]), timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ServerError, match="another process starts or stops a server"):
            start(tmp_path, run_folder)
        assert not (run_folder / "config.properties").exists()
    finally:
        other.kill()
        other.communicate()
    with run_folder_lock(run_folder, timeout=0):
        pass


def test_a_folder_that_others_may_change_is_refused(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    run_folder.chmod(0o777)
    with pytest.raises(ServerError, match="other users may change what lies there"):
        start(tmp_path, run_folder)


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    """A cloned repository may carry links to files of its reader."""
    precious = tmp_path / "precious"
    precious.write_text("data")
    run_folder = tmp_path / "run"
    (run_folder / "logs").mkdir(parents=True)
    (run_folder / "logs" / "console.log").symlink_to(precious)
    with pytest.raises(ServerError, match=r"console.log is a link"):
        start(tmp_path, run_folder)
    shutil.rmtree(run_folder / "logs")
    (run_folder / "logs").symlink_to(tmp_path)
    with pytest.raises(ServerError, match=r"logs is a link"):
        start(tmp_path, run_folder)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    with pytest.raises(ServerError, match=r"linked is a link"):
        start(tmp_path, linked)
    (run_folder / "server.json").symlink_to(precious)
    write_private_file(run_folder / "server.json", "state")
    assert precious.read_text() == "data"
    assert (run_folder / "server.json").stat().st_mode & 0o777 == 0o600


def test_a_configuration_or_tokens_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.properties").write_text("job_queue_size=7\n")
    with pytest.raises(ServerError, match="was not written by `ts-ensemble serve`"):
        start(tmp_path, run_folder)
    assert (run_folder / "config.properties").read_text() == "job_queue_size=7\n"
    (run_folder / "config.properties").unlink()
    (run_folder / "key_file.json").write_text("of a plain torchserve")
    with pytest.raises(ServerError, match=r"key_file.json was not written by `ts-ensemble serve`"):
        start(tmp_path, run_folder)
    assert (run_folder / "key_file.json").read_text() == "of a plain torchserve"


def test_a_folder_in_the_place_of_a_file_is_reported(tmp_path: Path) -> None:
    for name in ("server.json", "config.properties", "lock"):
        run_folder = tmp_path / f"with-{name}"
        (run_folder / name).mkdir(parents=True)
        with pytest.raises(ServerError, match=str(run_folder)):
            start(tmp_path, run_folder)
        assert find_java_process(run_folder) is None
        assert not children(run_folder), "no server is left that nobody would find"
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="no server can be started in"):
        start(tmp_path, tmp_path / "file")


def test_no_verb_falls_back_to_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match=r"no server runs in .ts-ensemble; start one"):
        running_server(DEFAULT_RUN_FOLDER)
    # A plain `torchserve --start` in this folder wrote its tokens here.
    Path("key_file.json").write_text("{}")
    assert running_server(DEFAULT_RUN_FOLDER) is None
    Path("config.properties").write_text(
        "management_address: http://127.0.0.1:9\ngrpc_inference_port 17\n"
    )
    no_options = {"address": None, "token": None, "token_file": None}
    assert management_client(run_folder=DEFAULT_RUN_FOLDER, timeout=1, **no_options).address == (
        "http://127.0.0.1:9"
    )
    assert inference_client(run_folder=None, **no_options).address == "http://127.0.0.1:8080"
    pytest.importorskip("grpc")
    with inference_client(run_folder=None, transport="grpc", **no_options) as client:
        assert client.address == "127.0.0.1:17"
    for run_folder in (Path("run"), Path(".ts-ensemble")):
        with pytest.raises(ServerError, match=f"no server runs in {run_folder}; start one"):
            running_server(run_folder)
    write_state(DEFAULT_RUN_FOLDER)
    with pytest.raises(ServerError, match=r"the server of .ts-ensemble has ended"):
        running_server(DEFAULT_RUN_FOLDER)
