"""The guard of the workers runs when their Python starts, and ends it unless all is signed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from probe_ensemble import probes
from signers import Signer, make_signer

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.signing import key_signing, sign_archive
from torchserve_ensemble.handlers.archive.trusted_keys import TRUSTED_KEYS_VARIABLE
from torchserve_ensemble.serving.processes import guarded_environment

PROGRAM = "import os; print('ran', 'worker_guard' in os.environ['PYTHONPATH'])"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("keys"), "builder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> dict[str, Path]:
    """An extracted archive, ``signed``, and ``unsigned``; ``empty`` is no archive."""
    folder = tmp_path_factory.mktemp("probes")
    probes(folder)
    archive = build_archive(folder / "ensemble.yaml", folder / "store")
    folders = {name: folder / name for name in ("signed", "unsigned", "empty")}
    signed = folder / "signed.mar"
    sign_archive(archive, key_signing(signer.private), signed)
    for name, path in (("unsigned", archive), ("signed", signed)):
        with zipfile.ZipFile(path) as opened:
            opened.extractall(folders[name])
    folders["empty"].mkdir()
    return folders


def run(signer: Signer, folder: Path, *command: str, **changes: str) -> tuple[int, str]:
    """Start Python as TorchServe starts a worker of an archive's folder.

    Returns:
        The exit status, and what was printed.
    """
    environment = os.environ | guarded_environment(signer.public)
    environment["PYTHONPATH"] += f"{os.pathsep}{folder}"
    done = subprocess.run(
        [sys.executable, "-u", *command],
        env=environment | changes,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_guard_lets_a_signed_archive_run_and_leaves_the_path(
    signer: Signer, folders: dict[str, Path]
) -> None:
    assert run(signer, folders["signed"], "-c", PROGRAM) == (0, "ran False\n")


@pytest.mark.parametrize(
    ("folder", "changes", "expected"),
    [
        ("unsigned", {}, "it is not signed"),
        ("signed", {TRUSTED_KEYS_VARIABLE: "/none.pem"}, "/none.pem: no such key file"),
        ("signed", {TRUSTED_KEYS_VARIABLE: ""}, f"{TRUSTED_KEYS_VARIABLE} is empty"),
        # A message that the output cannot hold must not let the archive run.
        ("signed", {TRUSTED_KEYS_VARIABLE: "\u00e9", "PYTHONIOENCODING": "ascii"}, ""),
    ],
)
def test_the_guard_ends_python_with_one_line(
    signer: Signer, folders: dict[str, Path], folder: str, changes: dict[str, str], expected: str
) -> None:
    status, printed = run(signer, folders[folder], "-c", PROGRAM, **changes)
    assert status == 1
    assert expected in printed
    assert "ran" not in printed
    assert printed.count("\n") == (1 if expected else 0)


def test_a_worker_without_an_archive_ends_and_other_programs_run(
    signer: Signer, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name, expected in (("model_service_worker.py", 1), ("metric_collector.py", 0)):
        script = tmp_path / name
        script.write_text(PROGRAM)
        status, printed = run(signer, folders["empty"], str(script))
        assert status == expected, printed
        assert ("ran" in printed) == (status == 0)
