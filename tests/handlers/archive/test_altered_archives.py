"""Archives that somebody altered are refused as files, and by the worker before their code runs.

All code that the tests plant writes a file `ran` when it runs. Every test checks that this file
does not exist.
"""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive_refusals import Contents, refusal
from signers import make_signer

from torchserve_ensemble.archiver.packing import write_entries
from torchserve_ensemble.archiver.signing import key_signing, sign_archive
from torchserve_ensemble.handlers.archive.mar_file import verify_archive
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import (
    BOM,
    ENTRY,
    MANIFEST,
    MODEL_CARD,
    MODEL_CONFIG,
    RECORD,
    REQUIREMENTS,
    SPEC,
)

CACHE = sys.implementation.cache_tag


@pytest.fixture
def planted(tmp_path: Path) -> bytes:
    """Python code that writes the file `ran`."""
    return f"open({str(tmp_path / 'ran')!r}, 'w').close()\n".encode()


@pytest.fixture(autouse=True)
def _nothing_ran(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "ran").exists(), "planted code ran"


def written(contents: Contents, path: Path) -> Path:
    """Write an archive's file, and return its path."""
    write_entries(contents, path)
    return path


def with_record(contents: Contents, change: Callable[[Contents], None]) -> Contents:
    """Alter an archive and write its record again, so that each digest in it is right."""
    altered = dict(contents)
    change(altered)
    record = ArchiveRecord.from_json(altered.pop(RECORD).decode(), source="test")
    files = {name: sha256_of_bytes(content) for name, content in altered.items()}
    altered[RECORD] = ArchiveRecord(files, record.built_with).to_json().encode()
    return altered


def alterations(contents: Contents) -> Iterator[tuple[str, Contents, str]]:
    """Alter each file in turn: delete it, change a byte, swap it, and put a file beside it.

    Yields:
        What was done, the altered contents, and what the refusal must say.
    """
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


def test_every_alteration_of_the_file_is_refused(contents: Contents, tmp_path: Path) -> None:
    for what, altered, expected in alterations(contents):
        message = refusal(written(altered, tmp_path / "altered.mar"))
        assert expected in message, what


# Imports the entry and initializes the handler as TorchServe's worker does, without TorchServe. For
# each archive a process is forked, since each archive has its own entry to import.
WORKERS = """
import os, sys, types
class NoMetrics:
    def add_metric_to_cache(self, **_):
        return self
    def add_or_update(self, *_):
        pass
def load(folder):
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False
    import ensemble_entry
    context = types.SimpleNamespace(
        system_properties={"model_dir": folder, "gpu_id": None}, model_name="probes",
        model_yaml_config={}, metrics=NoMetrics(),
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
        folder, _, keys = line.rstrip("\\n").partition("\\t")
        if keys:
            os.environ["TS_ENSEMBLE_TRUSTED_KEYS"] = keys
        try:
            print(load(folder), flush=True)
        except BaseException as error:
            print("crashed:", repr(error).replace("\\n", " "), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[..., str]]:
    """A function that loads an extracted archive in a new process: "loaded", or the error.

    With a second argument, only archives that one of these public keys signed are to be loaded.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(folder: Path, trusted_keys: Path | None = None) -> str:
        print(folder, trusted_keys or "", sep="\t", file=process.stdin, flush=True)
        return process.stdout.readline().rstrip("\n")  # type: ignore[union-attr]

    yield ask
    process.stdin.close()
    assert process.wait(60) == 0


def extracted(contents: Contents, folder: Path) -> Path:
    """Write an archive's contents into an empty folder, as TorchServe does, and return it."""
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


@pytest.mark.long
def test_every_alteration_of_the_folder_is_refused(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes
) -> None:
    for what, altered, expected in alterations(contents):
        entry_code = altered.get(ENTRY)
        if what == f"{ENTRY} changed":
            altered[ENTRY] = contents[ENTRY] + b"\n"
        elif entry_code != contents[ENTRY]:
            continue  # TorchServe runs any file of the entry's name; if there is none, it stops.
        folder = extracted(
            {n: planted if n.endswith("added.py") else c for n, c in altered.items()},
            tmp_path / "folder",
        )
        message = load(folder)
        assert "cannot load ensemble" in message, (what, message)
        # The modules of the check itself are imported before it. The import checks each of them.
        checking = (
            "__init__|(archive|base)/__init__|archive/(record|signature|trusted_keys|verification)"
            "|base/(archive_layout|errors|quoting)"
        )
        refused_by_import = rf"no {RECORD}|handlers/({checking})\.py was changed"
        assert expected in message or re.search(refused_by_import, message), (what, message)


def test_code_of_handlers_never_runs_unchecked(
    contents: Contents, tmp_path: Path, load: Callable[[Path], str], planted: bytes
) -> None:
    for name in sorted(contents):
        if name.startswith("handlers/"):
            altered = contents | {name: planted + contents[name]}
            assert f"{name} was changed" in load(extracted(altered, tmp_path / "folder"))


def test_a_worker_with_trusted_keys_loads_only_what_one_of_them_signed(
    contents: Contents, tmp_path: Path, load: Callable[..., str]
) -> None:
    own, stranger = (make_signer(tmp_path / "keys", name) for name in ("own", "stranger"))
    archive = written(contents, tmp_path / "a.mar")
    folder = tmp_path / "folder"
    assert "it is not signed" in load(extracted(contents, folder), own.public)
    for signer, expected in ((own, "loaded"), (stranger, "which is not trusted")):
        sign_archive(archive, key_signing(signer.private))
        verify_archive(archive)
        shutil.rmtree(folder)
        shutil.unpack_archive(archive, folder, "zip")
        assert expected in load(folder, own.public)
    assert "no such key file" in load(folder, tmp_path / "none")


def byte_code(folder: Path, source: str, code: bytes, *, name: str | None = None) -> None:
    """Write planted code as the byte code that Python's own import would take for a source."""
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
        "handlers/archive/verification.py",
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
def test_unlisted_files_are_refused(
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
        # The entry's own byte code runs before the worker can check it, so only the check of the
        # file can refuse it.
        return
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
def test_files_that_run_before_the_workers_check_are_refused_as_files(
    contents: Contents, tmp_path: Path, planted: bytes, name: str
) -> None:
    """TorchServe's worker would import these files before the entry, or instead of it."""
    assert "not listed" in refusal(written(contents | {name: planted}, tmp_path / "a.mar")) or (
        name.endswith(".pyc")
    )
    altered = with_record(contents, lambda files: files.update({name: planted}))
    assert name in refusal(written(altered, tmp_path / "b.mar"))


def test_empty_folders_links_and_devices_are_refused(
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
    """Return a manifest with other values for some keys of its part ``model``."""
    changed = json.loads(content)
    changed["model"] |= model
    return (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (MANIFEST, lambda c: manifest(c, handler="other.py"), "is not one that a build writes"),
        (MANIFEST, lambda c: manifest(c, handler=f"{ENTRY}:run"), "is not one that a build writes"),
        (MANIFEST, lambda c: manifest(c, envelope="json"), "is not one that a build writes"),
        (MANIFEST, lambda c: manifest(c, serializedFile="x.pt"), "is not one that a build writes"),
        (MANIFEST, lambda c: manifest(c, configFile="a.yaml"), "is not one that a build writes"),
        (MANIFEST, lambda c: manifest(c, requirementsFile="a"), "is not one that a build writes"),
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
        (MANIFEST, lambda c: c.replace(b'"python"', b'"LSP"'), "is not one that a build writes"),
        (MANIFEST, lambda c: c.replace(b"\n", b"\n\n", 1), "is not one that a build writes"),
        (MANIFEST, lambda c: b"[" * 100_000, "is not one that a build writes"),
        (MANIFEST, lambda c: b"", "is not one that a build writes"),
        (MODEL_CONFIG, lambda c: c + b"useVenv: true\n", "not 'useVenv: true'"),
        (MODEL_CONFIG, lambda c: c + b"parallelType: pp\n", "not 'parallelType: pp'"),
        (MODEL_CONFIG, lambda c: c + b"x: !!java.net.URL [a]\n", "with a whole number, not 'x: "),
        (MODEL_CONFIG, lambda c: c.replace(b": 1\n", b": 0x1\n", 1), "with a whole number, not '"),
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
def test_listed_files_that_contradict_each_other_are_refused(
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
    # The worker reads the spec before it compares it with the record, so it may miss a file first.
    assert expected in message or "no such file" in message


@pytest.mark.parametrize(
    "name", [ENTRY, SPEC, MANIFEST, MODEL_CONFIG, REQUIREMENTS, BOM, MODEL_CARD]
)
def test_an_archive_without_a_necessary_file_is_refused(
    contents: Contents, tmp_path: Path, name: str
) -> None:
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
def test_dangerous_names_are_refused(
    contents: Contents, tmp_path: Path, name: str, expected: str
) -> None:
    for altered in (
        contents | {name: b""},
        with_record(contents, lambda files: files.update({name: b""})),
    ):
        assert expected in refusal(written(altered, tmp_path / "a.mar"))
