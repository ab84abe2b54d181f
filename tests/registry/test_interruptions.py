"""Pushes that are killed, fail at any write or race each other leave a whole registry."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from small_archives import SHARED_BYTES, small_archive, unchecked

from torchserve_ensemble.handlers.base.errors import EnsembleError, RegistryError
from torchserve_ensemble.registry.address import parse_address
from torchserve_ensemble.registry.collecting import collect
from torchserve_ensemble.registry.pulling import pull
from torchserve_ensemble.registry.pushing import push
from torchserve_ensemble.registry.registry import Registry
from torchserve_ensemble.registry.tags import history

TESTS = Path(__file__).parent.parent
NUM_WRITERS, NUM_CHANGES = 3, 4


class FailingFileSystem(LocalFileSystem):
    """A file system whose disk is full from a certain operation on."""

    protocol = "failing"
    remaining = 10**9
    """Number of operations that still succeed. A write that fails leaves half of its bytes."""

    def _count(self) -> None:
        FailingFileSystem.remaining -= 1
        if FailingFileSystem.remaining < 0:
            raise OSError(28, "No space left on device")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        if "r" in mode:
            return file
        write = file.write

        def failing_write(content: bytes) -> int:
            try:
                self._count()
            except OSError:
                write(content[: len(content) // 2])
                raise
            return int(write(content))

        file.write = failing_write
        return file

    def mv(self, *arguments: Any, **options: Any) -> None:
        self._count()
        super().mv(*arguments, **options)

    def rm_file(self, path: str) -> None:
        self._count()
        super().rm_file(path)


@pytest.fixture
def _failing() -> Any:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    yield
    FailingFileSystem.remaining = 10**9


def start_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process in which the tests' helpers can be imported."""
    text = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{textwrap.dedent(program)}"
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def content(registry: Registry, address: str, folder: Path) -> bytes:
    path = pull(registry, parse_address(address), folder, verify=unchecked).path
    result = path.read_bytes()
    path.unlink()
    return result


@pytest.mark.usefixtures("_failing")
def test_a_push_that_fails_at_any_write_breaks_nothing(tmp_path: Path) -> None:
    first = small_archive(tmp_path / "first", "1.0", weights=b"1" * 100)
    second = small_archive(tmp_path / "second", "2.0", weights=b"2" * 100)
    num_operations = 0
    while True:
        registry = Registry.open(f"failing://{tmp_path}/registry{num_operations}")
        push(registry, first, parse_address("trees:production"), verify=unchecked)
        FailingFileSystem.remaining = num_operations
        try:
            push(registry, second, parse_address("trees:production"), verify=unchecked)
        except RegistryError as error:
            assert "No space left" in error.message
            failed = True
        else:
            failed = FailingFileSystem.remaining < 0
        FailingFileSystem.remaining = 10**9
        now = content(registry, "trees:production", tmp_path / "out")
        assert now in (first.read_bytes(), second.read_bytes())
        if not failed:
            break
        push(registry, second, parse_address("trees:production"), verify=unchecked)
        collect(registry, timedelta(0))
        assert content(registry, "trees:production", tmp_path / "out") == second.read_bytes()
        num_operations += 1
    # Note, three blobs, manifest and entry: each is written, most are moved, the note is deleted.
    assert num_operations >= 10


def test_a_push_that_is_killed_goes_on_where_it_was(shared_url: str, tmp_path: Path) -> None:
    registry = Registry.open(shared_url)
    first = small_archive(tmp_path / "first", "1.0")
    push(registry, first, parse_address("trees:production"), verify=unchecked)
    second = small_archive(tmp_path / "second", "2.0", weights=b"2" * 3 * 1024**2)
    program = """
        import os, signal, sys
        from pathlib import Path
        from small_archives import unchecked
        from torchserve_ensemble.registry.address import parse_address
        from torchserve_ensemble.registry.pushing import push
        from torchserve_ensemble.registry.registry import Registry

        sent = 0

        def on_bytes(num_bytes, total):
            global sent
            sent += num_bytes
            if sent > 2 * 1024**2:
                os.kill(os.getpid(), signal.SIGKILL)

        address = parse_address("trees:production")
        push(Registry.open(sys.argv[1]), Path(sys.argv[2]), address,
             verify=unchecked, on_bytes=on_bytes)
    """
    process = start_python(program, shared_url, second)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, printed
    assert content(registry, "trees:production", tmp_path / "out") == first.read_bytes()
    assert len(registry.store.keys("uploads")) >= 1
    pushed = push(registry, second, parse_address("trees:production"), verify=unchecked)
    assert 3 * 1024**2 in [blob.num_bytes for blob in pushed.sent]
    assert len(SHARED_BYTES) in [blob.num_bytes for blob in pushed.skipped]
    assert content(registry, "trees:production", tmp_path / "out") == second.read_bytes()


def test_writers_of_one_tag_lose_no_change(shared_url: str, tmp_path: Path) -> None:
    registry = Registry.open(shared_url)
    archives = [small_archive(tmp_path, version) for version in ("1.0", "2.0")]
    digests = {push(registry, path, verify=unchecked).manifest.digest for path in archives}
    program = """
        import sys
        from torchserve_ensemble.registry.address import parse_address
        from torchserve_ensemble.registry.registry import Registry

        registry = Registry.open(sys.argv[1])
        for number in range(int(sys.argv[2])):
            entry = registry.tag(parse_address(f"trees:{1 + number % 2}.0"), "production")
            print(entry.when)
    """
    processes = [start_python(program, shared_url, NUM_CHANGES) for _ in range(NUM_WRITERS)]
    times = set()
    for process in processes:
        output, printed = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        times |= set(output.split())
    entries = history(registry.store, "trees", "production")
    # A change to the archive that the tag points to already adds no entry.
    assert NUM_CHANGES <= len(entries) <= NUM_WRITERS * NUM_CHANGES
    assert times == {str(entry.when) for entry in entries}
    assert {entry.digest for entry in entries} == digests
    assert len(registry.store.keys("tags/trees/production")) == len(entries)
    assert registry.store.keys("uploads") == []


def test_two_archives_of_one_version_are_not_mixed(shared_url: str, tmp_path: Path) -> None:
    """Two people push different archives as version 1.0 at the same moment: one is refused."""
    archives = [
        small_archive(tmp_path / name, weights=name.encode() * 1000) for name in ("one", "two")
    ]
    program = """
        import sys
        from pathlib import Path
        from small_archives import unchecked
        from torchserve_ensemble.handlers.base.errors import RegistryError
        from torchserve_ensemble.registry.pushing import push
        from torchserve_ensemble.registry.registry import Registry

        try:
            push(Registry.open(sys.argv[1]), Path(sys.argv[2]), verify=unchecked)
        except RegistryError as error:
            assert "does not move" in error.message
            sys.exit(3)
    """
    processes = [start_python(program, shared_url, archive) for archive in archives]
    printed = [process.communicate(timeout=60)[1] for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 3], printed
    winner = archives[statuses.index(0)]
    out = content(Registry.open(shared_url), "trees:1.0", tmp_path / "out")
    assert out == winner.read_bytes()


def test_a_store_that_overwrites_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LocalFileSystem._open

    def overwriting(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        return opened(self, path, "wb" if mode == "xb" else mode, **options)

    monkeypatch.setattr(LocalFileSystem, "_open", overwriting)
    with caplog.at_level(logging.WARNING):
        push(Registry.open(str(tmp_path / "registry")), small_archive(tmp_path), verify=unchecked)
    assert "does not keep two writers apart" in caplog.text


def test_a_driver_that_cannot_create_exclusively_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LocalFileSystem._open

    def without_x(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "xb":
            raise ValueError("unsupported file mode")
        return opened(self, path, mode, **options)

    monkeypatch.setattr(LocalFileSystem, "_open", without_x)
    with pytest.raises(EnsembleError, match=r"use a folder, s3:// or gs://"):
        push(Registry.open(str(tmp_path / "registry")), small_archive(tmp_path), verify=unchecked)
