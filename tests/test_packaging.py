"""Tests that the wheel works where it is installed, and has a single top-level name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from probe_ensemble import image, probes

ROOT = Path(__file__).parent.parent


def installed_major_version(package: str) -> int:
    """Return the major version of an installed package, or 0 if it is not installed."""
    try:
        return int(metadata.version(package).partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def build(kind: str, source: Path, out: Path) -> Path:
    """Build one distribution, ``wheel`` or ``sdist``, from a folder."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--outdir", str(out), "."]
    # With a setuptools that can read pyproject.toml here, building needs no package index.
    if installed_major_version("setuptools") >= 77:
        command.insert(3, "--no-isolation")
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (built,) = [path for path in out.iterdir() if path.is_file()]
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source") / "copy"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "*.mar", "weights")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_gives_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    for folder in ("sdist", "unpacked", "wheel"):
        (tmp_path / folder).mkdir()
    sdist = build("sdist", source, tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", unpacked, tmp_path / "wheel")
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        modules = [name for name in first.namelist() if ".dist-info/" not in name]
        assert [n for n in second.namelist() if ".dist-info/" not in n] == modules
        assert all(first.read(name) == second.read(name) for name in modules)


def test_changelog_and_citation_name_the_installed_version() -> None:
    version = metadata.version("torchserve-ensemble")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"torchserve_ensemble"}


def test_the_wheel_has_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in ("handlers", "archiver", "serving", "tuning", "registry", "operations"):
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


@pytest.mark.wheel
def test_a_clean_environment_without_extras(wheel: Path, tmp_path: Path) -> None:
    """The dependencies that the wheel declares are all that the command and the members need."""
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str | Path, seconds: float = 120) -> str:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=seconds
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    # torch alone is large.
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel, seconds=1800)
    program = "import importlib.util as u; print([u.find_spec(n) for n in ('pytest', 'sklearn')])"
    assert run(scripts / "python", "-c", program).strip() == "[None, None]"
    run(scripts / "python", "-m", "pip", "check")
    version = metadata.version("torchserve-ensemble")
    for command in ("ts-ensemble", "torchserve-ensemble"):
        assert run(scripts / command, "--version").strip() == f"ts-ensemble {version}"
    assert "predict images" in run(scripts / "ts-ensemble", "--help")
    assert "not installed" not in run(scripts / "ts-ensemble", "doctor", "--config", "none")
    probes(tmp_path)
    (tmp_path / "a.png").write_bytes(image(0.9))
    local = ("predict", "--local", "ensemble.yaml", "a.png", "--format", "csv")
    assert "a.png,bright," in run(scripts / "ts-ensemble", *local)
