"""Each mistake with a registry ends with one message that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_archives import small_archive, unchecked

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import RegistryError
from torchserve_ensemble.registry.address import REGISTRY_VARIABLE, parse_address
from torchserve_ensemble.registry.pushing import push
from torchserve_ensemble.registry.registry import Registry


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a verb that must fail, and return the one line that it prints."""
    assert main(["registry", *map(str, arguments)]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


@pytest.mark.parametrize(
    "text", ["", "trees:", "trees:a/b", "../trees:1", "trees@sha256:12", "s3://bucket/trees:1.0"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(RegistryError, match="write registry://NAME:TAG"):
        parse_address(text)


@pytest.mark.parametrize("text", ["trees", "trees:1.0", f"trees@sha256:{'ab' * 32}"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_address(text)) == str(parse_address(f"registry://{text}")) == text


def test_no_registry_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REGISTRY_VARIABLE, raising=False)
    assert f"set {REGISTRY_VARIABLE} or --registry" in refusal(capsys, "list")


def test_an_unknown_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    printed = refusal(capsys, "list", "--registry", "s4://bucket/models")
    assert "s4://bucket/models" in printed
    assert "begins with file://, s3://, gs://" in printed


def list_in_new_process(url: str, environment: dict[str, str], *, without: str = "") -> str:
    """Run ``registry list`` where a module is missing, and return what it prints on failure."""
    program = (
        f"import sys; sys.modules[{without!r}] = None; "
        "from torchserve_ensemble.cli import main; "
        f"main(['registry', 'list', '--registry', {url!r}])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    ).stderr
    assert printed.startswith(f"ts-ensemble: {url}: ")
    assert printed.count("\n") == 1, printed
    return printed


@pytest.mark.parametrize(("protocol", "module"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_driver(protocol: str, module: str) -> None:
    printed = list_in_new_process(f"{protocol}://bucket/models", dict(os.environ), without=module)
    assert f"pip install 'torchserve-ensemble[{protocol}]'" in printed


def test_missing_credentials(s3_endpoint: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment |= {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
    }
    printed = list_in_new_process("s3://bucket/models", environment)
    assert "no credentials were found: set AWS_ACCESS_KEY_ID" in printed


@pytest.mark.usefixtures("s3_environment")
def test_a_missing_bucket(tmp_path: Path) -> None:
    registry = Registry.open("s3://no-such-bucket/models")
    with pytest.raises(RegistryError, match="bucket does not exist; make the bucket or folder"):
        push(registry, small_archive(tmp_path), verify=unchecked)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    registry = Registry.open(str(tmp_path / "file" / "registry"))
    with pytest.raises(RegistryError, match=r"file/registry: uploads/\w+\.json cannot be written"):
        push(registry, small_archive(tmp_path), verify=unchecked)


def test_an_archive_of_another_model_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = small_archive(tmp_path)
    registry = Registry.open(str(tmp_path / "registry"))
    with pytest.raises(RegistryError, match="is an archive of trees, not of bushes"):
        push(registry, archive, parse_address("bushes:1.0"), verify=unchecked)
    with pytest.raises(RegistryError, match="pushed to a tag, not to a digest"):
        push(registry, archive, parse_address(f"trees@sha256:{'0' * 64}"), verify=unchecked)
    with pytest.raises(RegistryError, match="is a folder"):
        push(registry, tmp_path, verify=unchecked)
    option = ("--registry", tmp_path / "registry")
    # The archive of these tests is not complete, and so the check of every push refuses it.
    assert "the archive is not as it was built" in refusal(capsys, "push", archive, *option)
    assert registry.store.keys("") == []
