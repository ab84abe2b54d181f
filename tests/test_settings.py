"""One server's configuration."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from torchserve_ensemble.handlers.errors import ServerError
from torchserve_ensemble.serving.settings import (
    DEFAULTS,
    ServerSettings,
    check_ports,
    free_ports,
    is_loopback,
    is_on,
    read_properties,
    throw_away,
)


def test_properties_files(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text("# comment\na=1\n b = x=y \nno pair\n  # c=2\n")
    assert read_properties(file) == {"a": "1", "b": "x=y"}
    with pytest.raises(ServerError, match=r"other.properties: cannot be read"):
        read_properties(tmp_path / "other.properties")


def test_what_overrides_what(tmp_path: Path) -> None:
    config = tmp_path / "config.properties"
    config.write_text("model_store=elsewhere\njob_queue_size=7\nmetrics_address=http://x:1\n")
    settings = ServerSettings(tmp_path, config=config, overrides={"metrics_address": "http://y:2"})
    properties = settings.properties()
    assert properties["inference_address"] == DEFAULTS["inference_address"]
    assert properties["job_queue_size"] == "7"
    assert properties["model_store"] == str(tmp_path)
    assert properties["metrics_address"] == "http://y:2"


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is no folder"):
        ServerSettings(tmp_path / "none").properties()
    with pytest.raises(ServerError, match=r"none: build one"):
        ServerSettings(tmp_path, ("a.mar",)).properties()
    (tmp_path / "digits-1.0.mar").touch()
    with pytest.raises(ServerError, match=r"did you mean 'digits-1.0.mar'"):
        ServerSettings(tmp_path, ("digits=digit-1.0.mar",)).properties()
    ServerSettings(tmp_path, ("digits=digits-1.0.mar", "https://example.org/a.mar")).properties()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.9.9.9:80", True),
        ("https://localhost:1", True),
        ("http://[::1]:80", True),
        ("http://0.0.0.0:8080", False),
        ("http://10.0.0.1:8080", False),
        ("http://127.0.0.1.example.org:80", False),
        ("", False),
        ("::1", True),
        ("0.0.0.0", False),
        ("unix:/tmp/a.sock", True),
        ("http://[::1", False),
    ],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_throw_away_servers_are_reached_from_here_alone() -> None:
    settings = throw_away()
    for key, value in settings.items():
        if key.endswith("_address"):
            assert is_loopback(value if "//" in value else f"http://{value}"), key
    check_ports(DEFAULTS | settings)


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_a_foreign_address_is_named() -> None:
    properties = DEFAULTS | throw_away() | {"metrics_address": "http://192.0.2.1:8082"}
    with pytest.raises(ServerError, match=r"metrics_address: cannot listen on 192.0.2.1:8082"):
        check_ports(properties)


def test_a_relative_model_store_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server runs in another folder."""
    monkeypatch.chdir(tmp_path)
    Path("store").mkdir()
    assert ServerSettings(Path("store")).properties()["model_store"] == str(tmp_path / "store")


def test_throw_away_servers_leave_no_address_to_defaults() -> None:
    settings = throw_away()
    assert {key for key in settings if key.endswith("_address")} == {
        "inference_address",
        "management_address",
        "metrics_address",
        "grpc_inference_address",
        "grpc_management_address",
    }
    assert settings["disable_token_authorization"] == "true"
    assert settings["enable_model_api"] == "true"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("grpc_inference_port", "abc"),
        ("grpc_inference_port", "99999"),
        ("inference_address", "http://127.0.0.1:99999"),
    ],
)
def test_ports_that_are_none(setting: str, value: str) -> None:
    with pytest.raises(ServerError, match=setting):
        check_ports(DEFAULTS | throw_away() | {setting: value})


def test_switches_are_read_as_java_reads_them() -> None:
    assert is_on({"a": "True"}, "a")
    assert is_on({"a": " TRUE "}, "a")
    assert not is_on({"a": "yes"}, "a")
    assert not is_on({}, "a")


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("# caf\u00e9\na=1".encode("latin-1"))
    with pytest.raises(ServerError, match="cannot be read as UTF-8"):
        read_properties(tmp_path / "latin")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa=1")
    assert read_properties(tmp_path / "marked") == {"a": "1"}
