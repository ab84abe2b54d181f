"""Archives that somebody altered: refused as a file, and by the worker before any of it runs.

Everything planted here writes a file `ran` when it runs; every test looks that it did not.
"""

from __future__ import annotations

import io
import json
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive, sha256_of, write_entries
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.archive.mar_file import entry_of, verify_archive
from torchserve_ensemble.handlers.archive.record import ArchiveRecord
from torchserve_ensemble.handlers.base.archive_layout import (
    ENTRY,
    MANIFEST,
    MODEL_CONFIG,
    RECORD,
    SPEC,
)
from torchserve_ensemble.handlers.base.errors import ArchiveError, EnsembleError

Contents = dict[str, bytes]
CACHE = sys.implementation.cache_tag


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    (folder / "notes.txt").write_text("notes")
    probes(folder, extra_files=["notes.txt"])
    return build_archive(folder / "ensemble.yaml", folder / "store")


@pytest.fixture(scope="module")
def contents(archive: Path) -> Contents:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture
def planted(tmp_path: Path) -> bytes:
    """Code that tells that it ran."""
    return f"open({str(tmp_path / 'ran')!r}, 'w').close()\n".encode()


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "ran").exists(), "planted code ran"


def refusal(path: Path) -> str:
    """Of an archive as a file."""
    with pytest.raises(EnsembleError) as caught:
        verify_archive(path)
    assert str(path) in caught.value.message
    return caught.value.message


def written(contents: Contents, path: Path) -> Path:
    write_entries(contents, path)
    return path


def with_record(contents: Contents, change: Callable[[Contents], None]) -> Contents:
    """Altered by somebody who writes the record anew: each digest is right."""
    altered = dict(contents)
    change(altered)
    record = ArchiveRecord.from_json(altered.pop(RECORD).decode(), source="test")
    files = {name: sha256_of(content) for name, content in altered.items()}
    altered[RECORD] = ArchiveRecord(files, record.built_with).to_json().encode()
    return altered


def alterations(contents: Contents) -> Iterator[tuple[str, Contents, str]]:
    """Every file deleted, changed by a byte, swapped with the next one, and with one beside it."""
    names = sorted(contents)
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        missing = RECORD if name == RECORD else f"{name} is missing"
        yield f"without {name}", {n: c for n, c in contents.items() if n != name}, missing
        content = contents[name] or b"\n"
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        changed = RECORD if name == RECORD else f"{name} was changed"
        yield f"{name} changed", contents | {name: flipped}, changed
        both = {name: contents[following], following: contents[name]}
        if contents[name] != contents[following]:
            swapped = RECORD if RECORD in both else f"{name} was changed"
            yield f"{name} swapped", contents | both, swapped
        beside = f"{name.rpartition('/')[0]}/added.py".lstrip("/")
        yield f"beside {name}", contents | {beside: b""}, f"{beside} is not listed in {RECORD}"


def test_a_whole_archive(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = verify_archive(archive).digest
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "folder")
    assert verify_archive(tmp_path / "folder").digest == digest
    assert main(["verify", str(archive)]) == 0
    assert digest in capsys.readouterr().out
    assert main(["verify", str(archive), "--digest", digest]) == 0
    assert main(["verify", str(archive), "--digest", "sha256:00"]) == 1
    assert f"has the digest {digest}, not sha256:00" in capsys.readouterr().err


def test_every_alteration_of_the_file(contents: Contents, tmp_path: Path) -> None:
    for what, altered, expected in alterations(contents):
        message = refusal(written(altered, tmp_path / "altered.mar"))
        assert expected in message, what


# The worker's side: TorchServe's import of the entry, without TorchServe, in a process that is
# forked for each archive, since each must import the entry anew.
WORKERS = """
import os, sys, types
def load(folder):
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False
    import ensemble_entry
    context = types.SimpleNamespace(
        system_properties={"model_dir": folder, "gpu_id": None}, model_name="probes",
        model_yaml_config={},
    )
    try:
        ensemble_entry.EnsembleHandler().initialize(context)
    except RuntimeError as error:
        return str(error).replace("\\n", " ")
    return "loaded"
import pydantic.dataclasses, yaml
for line in sys.stdin:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            print(load(line.rstrip("\\n")), flush=True)
        except BaseException as error:
            print("crashed:", repr(error).replace("\\n", " "), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[Path], str]]:
    """What a worker says of an extracted archive."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(folder: Path) -> str:
        print(folder, file=process.stdin, flush=True)
        return process.stdout.readline().rstrip("\n")  # type: ignore[union-attr]

    yield ask
    process.stdin.close()
    assert process.wait(60) == 0


def extracted(contents: Contents, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_whole_folder_is_loaded_again_and_again(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str]
) -> None:
    folder = extracted(contents, tmp_path / "folder")
    assert [load(folder), load(folder)] == ["loaded", "loaded"]
    new = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert new - contents.keys() == {f"__pycache__/ensemble_entry.{CACHE}.pyc"}


def test_every_alteration_of_the_folder(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes
) -> None:
    for what, altered, expected in alterations(contents):
        entry_code = altered.get(ENTRY)
        if what == f"{ENTRY} changed":
            altered[ENTRY] = contents[ENTRY] + b"\n"
        elif entry_code != contents[ENTRY]:
            continue  # TorchServe runs what has the entry's name, or finds none.
        folder = extracted(
            {n: planted if n.endswith("added.py") else c for n, c in altered.items()},
            tmp_path / "folder",
        )
        message = load(folder)
        assert "cannot load ensemble" in message, (what, message)
        # Modules that the check itself needs are imported before it, each checked by itself.
        first = "__init__|(archive|base)/__init__|archive/record|base/(archive_layout|errors)"
        alone = rf"no {RECORD}|handlers/({first})\.py was changed"
        assert expected in message or re.search(alone, message), (what, message)


def test_code_of_handlers_never_runs_unchecked(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes
) -> None:
    for name in sorted(contents):
        if name.startswith("handlers/"):
            altered = contents | {name: planted + contents[name]}
            assert f"{name} was changed" in load(extracted(altered, tmp_path / "folder"))


def byte_code(folder: Path, source: str, code: bytes, *, name: str | None = None) -> None:
    """Compile planted code to the byte code that Python would take for a source."""
    path = folder / source
    target = path.parent / "__pycache__" / f"{name or path.stem}.{CACHE}.pyc"
    target.parent.mkdir(exist_ok=True)
    plant = folder.parent / "plant.py"
    plant.write_bytes(code)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(plant), cfile=str(target), invalidation_mode=mode)


@pytest.mark.parametrize(
    "source",
    [
        "handlers/__init__.py",
        "handlers/archive/record.py",
        "handlers/service.py",
        "ensemble/probe.py",
    ],
)
def test_byte_code_is_refused_and_does_not_run(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes, source: str
) -> None:
    folder = extracted(contents, tmp_path / "folder")
    byte_code(folder, source, planted)
    place = f"{Path(source).parent}/__pycache__/{Path(source).stem}.{CACHE}.pyc"
    assert f"{place} is not listed" in load(folder)
    assert f"{place} is not listed" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "sitecustomize.py",
        "usercustomize.py",
        "numpy.py",
        "safetensors/__init__.py",
        "torch/__init__.py",
        "torch.so",
        "yaml.cpython-311-x86_64-linux-gnu.so",
        "x.pth",
        "handlers/numpy.py",
        "handlers/service/__init__.py",
        "handlers/service.so",
        "ensemble/helper.py",
        "ensemble/compiled/compiled.json",
        "ensemble/compiled/a.so",
        "MAR-INF/x",
        "lib/x.py",
        "__pycache__/other.cpython-311.pyc",
        ".hidden",
    ],
)
def test_unlisted_files(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes, name: str
) -> None:
    altered = contents | {name: planted}
    expected = "byte code" if name.endswith(".pyc") else f"{name} is not listed in {RECORD}"
    assert expected in refusal(written(altered, tmp_path / "a.mar"))
    assert f"{name} is not listed in {RECORD}" in load(extracted(altered, tmp_path / "folder"))


@pytest.mark.parametrize(
    "name",
    [
        "sitecustomize.py",
        "numpy.py",
        "torch/__init__.py",
        "handlers/service.so",
        "ensemble/helper.py",
        "ensemble/compiled/compiled.json",
        f"handlers/__pycache__/service.{CACHE}.pyc",
        f"__pycache__/ensemble_entry.{CACHE}.pyc",
        "MAR-INF/x",
    ],
)
def test_even_listed_files_must_be_where_a_build_puts_them(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes, name: str
) -> None:
    altered = with_record(contents, lambda files: files.update({name: planted}))
    assert name in refusal(written(altered, tmp_path / "a.mar"))
    if name.endswith(".pyc") and not name.startswith("handlers"):
        return  # The entry's own byte code runs before it can be checked: only the file's check.
    assert name in load(extracted(altered, tmp_path / "folder"))


@pytest.mark.parametrize(
    "name",
    [
        "ensemble_entry/__init__.py",
        "ensemble_entry.so",
        "ts/__init__.py",
        "json.py",
        f"__pycache__/ensemble_entry.{CACHE}.pyc",
    ],
)
def test_what_runs_before_the_worker_can_check(
    contents: Contents, tmp_path: Path, planted: bytes, name: str
) -> None:
    """TorchServe's worker would import it before, or instead of, the entry."""
    assert "not listed" in refusal(written(contents | {name: planted}, tmp_path / "a.mar")) or (
        name.endswith(".pyc")
    )
    altered = with_record(contents, lambda files: files.update({name: planted}))
    assert name in refusal(written(altered, tmp_path / "b.mar"))


def test_empty_folders_links_and_devices(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str]
) -> None:
    folder = extracted(contents, tmp_path / "folder")
    (folder / "safetensors").mkdir()
    assert "safetensors/ is not listed" in load(folder)
    (folder / "safetensors").rmdir()
    (folder / "a\n\x1b[31mb").touch()
    assert r"'a\n\x1b[31mb' is not listed" in load(folder)
    (folder / "a\n\x1b[31mb").unlink()
    (folder / "link").symlink_to("/etc/passwd")
    assert "link is a link or no regular file" in load(folder)
    (folder / "link").unlink()
    (folder / "torch").symlink_to(tmp_path)
    assert "torch is a link or no regular file" in load(folder)
    (folder / "torch").unlink()
    os.mkfifo(folder / "pipe")
    assert "pipe is a link or no regular file" in load(folder)
    (folder / "pipe").unlink()
    weights = folder / "ensemble" / "a.safetensors"
    weights.replace(tmp_path / "a.safetensors")
    weights.symlink_to(tmp_path / "a.safetensors")
    assert "ensemble/a.safetensors is a link or no regular file" in load(folder)


def manifest(content: bytes, **model: object) -> bytes:
    changed = json.loads(content)
    changed["model"] |= model
    return (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (MANIFEST, lambda c: manifest(c, handler="other.py"), "says more or something else"),
        (MANIFEST, lambda c: manifest(c, handler=f"{ENTRY}:run"), "says more or something else"),
        (MANIFEST, lambda c: manifest(c, envelope="json"), "says more or something else"),
        (MANIFEST, lambda c: manifest(c, serializedFile="x.pt"), "says more or something else"),
        (MANIFEST, lambda c: manifest(c, configFile="a.yaml"), "says more or something else"),
        (MANIFEST, lambda c: manifest(c, requirementsFile="a"), "says more or something else"),
        (
            MANIFEST,
            lambda c: manifest(c, modelName="other"),
            "another model than",
        ),
        (
            MANIFEST,
            lambda c: manifest(c, modelVersion="2.0"),
            "another model than",
        ),
        (MANIFEST, lambda c: c.replace(b'"python"', b'"LSP"'), "says more or something else"),
        (MANIFEST, lambda c: c.replace(b"\n", b"\n\n", 1), "says more or something else"),
        (MANIFEST, lambda c: b"[" * 100_000, "says more or something else"),
        (MANIFEST, lambda c: b"", "says more or something else"),
        (MODEL_CONFIG, lambda c: c + b"useVenv: true\n", "'useVenv: true' is no number for"),
        (MODEL_CONFIG, lambda c: c + b"parallelType: pp\n", "'parallelType: pp' is no number"),
        (MODEL_CONFIG, lambda c: c + b"x: !!java.net.URL [a]\n", "is no number for one of"),
        (MODEL_CONFIG, lambda c: c.replace(b": 1\n", b": 0x1\n", 1), "is no number for one of"),
        (
            SPEC,
            lambda c: c.replace(b'"probes"', b'"other"'),
            "than the spec's other 1.0",
        ),
        (SPEC, lambda c: c.replace(b"notes.txt", b"notes.tx_"), "is named by the spec and missing"),
        (SPEC, lambda c: c.replace(b'"notes.txt"', b""), "notes.txt is not named by the spec"),
        (SPEC, lambda c: b"[" * 1000, "levels of nested values"),
        (SPEC, lambda c: b"a" * 2_000_000, "more than 1000000 characters"),
    ],
)
def test_what_the_record_lists_must_fit_together(
    contents: Contents,
    tmp_path: Path,
    load: Callable[[Path], str],
    name: str,
    change: Callable[[bytes], bytes],
    expected: str,
) -> None:
    def apply(files: Contents) -> None:
        files[name] = change(files[name])

    altered = with_record(contents, apply)
    assert expected in refusal(written(altered, tmp_path / "a.mar"))
    message = load(extracted(altered, tmp_path / "folder"))
    # The worker's spec must also find its files.
    assert expected in message or "no such file" in message


@pytest.mark.parametrize("name", [ENTRY, SPEC, MANIFEST, MODEL_CONFIG, "requirements.txt"])
def test_what_every_archive_needs(contents: Contents, tmp_path: Path, name: str) -> None:
    altered = with_record(contents, lambda files: files.__delitem__(name))
    assert f"{name} is not listed in {RECORD}" in refusal(written(altered, tmp_path / "a.mar"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/etc/passwd", "relative path without"),
        ("../a", "relative path without"),
        ("a/../../b", "relative path without"),
        ("ensemble/./a", "relative path without"),
        ("ensemble//a", "relative path without"),
        ("folder/", "relative path without"),
        ("..\\a", "a backslash"),
        ("C:a", "a colon"),
        ("a\nb", "an invisible character"),
        ("a\u202eb", "an invisible character"),
        ("a\u2028b", "an invisible character"),
        ("ensemble/a ", "ends with a space"),
        ("ensemble/a.", "ends with a dot"),
        ("ensemble/" + "a" * 256, "longer than"),
        ("ensemble/" + "a/" * 500 + "a", "longer than"),
        ("ensemble/NOTES.txt", "one name to some file systems"),
        ("Handlers/service.py", "one name to some file systems"),
    ],
)
def test_names(contents: Contents, tmp_path: Path, name: str, expected: str) -> None:
    for altered in (
        contents | {name: b""},
        with_record(contents, lambda files: files.update({name: b""})),
    ):
        assert expected in refusal(written(altered, tmp_path / "a.mar"))


def raw(contents: Contents, *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    """An archive's bytes, with further entries as they come."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in sorted(contents):
            opened.writestr(entry_of(name), contents[name])
        for entry, content in more:
            opened.writestr(entry, content)
    return file.getvalue()


def entry(
    name: str, *, mode: int = 0o100644, compress: int = zipfile.ZIP_STORED
) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.compress_type = compress
    return info


def central(content: bytes, name: str) -> int:
    """Where the directory's entry of a file begins."""
    return content.rindex(name.encode()) - 46


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def disguised(contents: Contents) -> Iterator[tuple[str, bytes, str]]:
    """Files that readers of zip files understand differently."""
    whole = raw(contents)
    notes = "ensemble/notes.txt"
    place = central(whole, notes)
    local = struct.unpack_from("<L", whole, place + 42)[0]
    directory = struct.unpack_from("<L", whole, len(whole) - 6)[0]
    yield "empty", b"", "does not end as a model archive does"
    yield "no zip", b"x" * 1000, "does not end as a model archive does"
    yield "truncated", whole[:-1], "does not end as a model archive does"
    yield "half", whole[: len(whole) // 2], "does not end as a model archive does"
    yield "appended", whole + b"junk", "does not end as a model archive does"
    yield "two", whole + whole, "byte "
    yield "prepended", b"#!/bin/sh\n" + whole, "byte 0 (before its first file)"
    hidden = raw({"sitecustomize.py": b"import os"})
    hidden = hidden[: struct.unpack_from("<L", hidden, len(hidden) - 6)[0]]
    yield "hidden before", hidden + whole, "byte "
    between = whole[:directory] + hidden + whole[directory:-6]
    between += struct.pack("<LH", directory + len(hidden), 0)
    yield "hidden from the directory", between, f"byte {directory} "
    yield (
        "comment",
        patched(whole, len(whole) - 2, b"\x04\0") + b"junk",
        "does not end as a model archive does",
    )
    yield "twice", raw(contents, (entry(notes), b"other")), f"{notes} is in it 2 times"
    link = entry("ensemble/link", mode=0o120777)
    yield "link", raw(contents, (link, b"/etc/passwd")), "ensemble/link is a link"
    listed = patched(whole, place + 38, struct.pack("<L", 0o120777 << 16))
    yield "listed link", listed, f"{notes} is a link"
    yield "device", patched(whole, place + 38, struct.pack("<L", 0o020666 << 16)), f"{notes} is a l"
    executable = patched(whole, place + 38, struct.pack("<L", 0o100777 << 16))
    yield "executable", executable, "byte "
    yield "encrypted", patched(whole, place + 8, b"\x01\0"), f"{notes} is encrypted"
    deflated = entry("ensemble/x", compress=zipfile.ZIP_DEFLATED)
    yield "bomb", raw(contents, (deflated, b"\0" * 10**8)), "ensemble/x is compressed"
    yield "odd compression", patched(whole, place + 10, b"\x63\0"), f"{notes} is compressed"
    larger = patched(whole, place + 24, struct.pack("<L", 10**9))
    yield "other sizes", larger, f"{notes} has 5 bytes and says 1000000000"
    both = patched(larger, place + 20, struct.pack("<L", 10**9))
    yield "large sizes", both, "more bytes than the archive"
    yield "other local name", patched(whole, local + 30, b"X"), "differ"
    yield "other local size", patched(whole, local + 18, b"\x04"), f"byte {local} (at {notes})"
    yield "local flag", patched(whole, local + 6, b"\x08"), f"byte {local} (at {notes})"
    yield "local date", patched(whole, local + 12, b"\x01"), f"byte {local} (at {notes})"
    yield "checksum", patched(whole, place + 16, b"\0\0\0\0"), f"{notes} was changed (its checksum)"
    zeros = patched(whole, place, b"PK\x01\x03")
    yield "no directory", zeros, "cannot be read as a model archive"
    many = patched(whole, len(whole) - 12, struct.pack("<H", 60_000))
    yield "many", many, "more than 10000 files"
    with_nul = patched(whole, place + 46 + len("ensemble/"), b"\0")
    yield "nul in a name", with_nul, "an invisible character"


def test_disguises(contents: Contents, tmp_path: Path) -> None:
    for what, content, expected in disguised(contents):
        path = tmp_path / "a.mar"
        path.write_bytes(content)
        assert expected in refusal(path), what


def test_every_byte_counts(contents: Contents, tmp_path: Path) -> None:
    whole = raw(contents)
    path = tmp_path / "a.mar"
    directory = struct.unpack_from("<L", whole, len(whole) - 6)[0]
    for place in (*range(0, directory, 1999), *range(directory, len(whole), 29)):
        path.write_bytes(patched(whole, place, bytes([whole[place] ^ 0x41])))
        refusal(path)


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such archive"):
        verify_archive(tmp_path / "none.mar")
    os.mkfifo(tmp_path / "pipe.mar")
    with pytest.raises(ArchiveError, match="neither a file nor a folder"):
        verify_archive(tmp_path / "pipe.mar")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match="was not built by `ts-ensemble build`"):
        verify_archive(tmp_path / "folder")
