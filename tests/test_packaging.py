"""The wheel gives the command when it is installed elsewhere, and has one top-level name only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def installed_major_version(package: str) -> int:
    """The major version of an installed package; 0 if it is not installed."""
    try:
        return int(metadata.version(package).partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy, out = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("out")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "*.mar", "weights")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out), "."]
    # With a setuptools that can read pyproject.toml here, building needs no package index.
    if installed_major_version("setuptools") >= 77:
        command.insert(4, "--no-build-isolation")
    subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=300)
    (built,) = out.glob("*.whl")
    return built


def test_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"torchserve_ensemble"}


def test_every_source_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in ("handlers", "archiver", "serving", "tuning"):
        files = [p for kind in ("*.py", "*.xml") for p in (ROOT / package).rglob(kind)]
        expected = {f"torchserve_ensemble/{file.relative_to(ROOT).as_posix()}" for file in files}
        assert expected <= names
    assert "torchserve_ensemble/py.typed" in names


def test_the_command_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run(
        [*install, str(tmp_path / "site"), str(wheel)], check=True, capture_output=True, timeout=300
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    program = "import torchserve_ensemble.handlers.policies as p; print(p.__file__)"
    assert str(tmp_path / "site") in run(sys.executable, "-c", program)
    program = "import importlib.util as u; print([u.find_spec(n) for n in ('handlers', 'serving')])"
    assert run(sys.executable, "-c", program).strip() == "[None, None]"
    assert run(str(tmp_path / "site" / "bin" / "ts-ensemble"), "--version").startswith(
        "ts-ensemble"
    )
    assert '"$schema"' in run(str(tmp_path / "site" / "bin" / "ts-ensemble"), "schema")
