"""One server's configuration."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.settings import (
    DEFAULTS,
    ServerSettings,
    check_ports,
    differences,
    effective,
    free_ports,
    is_loopback,
    is_on,
    may_enable_model_api,
    read_properties,
    throw_away,
    write_properties,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Each read by java.util.Properties of Java 17.
        (b"# comment\na=1\n b = x=y \nno pair\n  # c=2\n", {"a": "1", "b": "x=y ", "no": "pair"}),
        (b"! comment\na: 1\nb 2\nc\t=\t3\nd", {"a": "1", "b": "2", "c": "3", "d": ""}),
        (b"a=1,\\\n   2,\\\r\n\t3\nb=4", {"a": "1,2,3", "b": "4"}),
        (b"a=1\\\n# no comment here\n", {"a": "1# no comment here"}),
        (b"# a comment goes not on \\\na=1", {"a": "1"}),
        (b"a\\=b\\:c\\ d=1\\=\\q\\\\", {"a=b:c d": "1=q\\"}),
        (b"a=\\t\\u00e9\\ud83d\\ude00|\xe9", {"a": "\té\U0001f600|é"}),
        (b"a=1\na=2", {"a": "2"}),
        (b"disable_token_authorization : true", {"disable_token_authorization": "true"}),
        (b"a=\\", {"a": ""}),
        (b"\\", {"": ""}),
        (b"a:=1\n=2\nb==3", {"a": "=1", "": "2", "b": "=3"}),
        (b"a=\\\n\nb=1", {"a": "", "b": "1"}),
        (b"", {}),
    ],
)
def test_properties_are_read_as_java_reads_them(
    tmp_path: Path, content: bytes, expected: dict[str, str]
) -> None:
    file = tmp_path / "config.properties"
    file.write_bytes(content)
    assert read_properties(file) == expected


def test_properties_that_java_refuses(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_bytes(b"a=\\u12g4")
    with pytest.raises(ServerError, match=r"four hexadecimal digits; Java refuses"):
        read_properties(file)
    file.write_bytes(b"\xef\xbb\xbfa=1")
    with pytest.raises(ServerError, match="byte order mark"):
        read_properties(file)
    with pytest.raises(ServerError, match=r"other.properties: cannot be read"):
        read_properties(tmp_path / "other.properties")


@given(st.dictionaries(st.text(), st.text()))
def test_what_is_written_is_read_again(properties: dict[str, str]) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(write_properties(properties))
        file.flush()
        assert read_properties(Path(file.name)) == properties


def test_a_value_cannot_smuggle_in_another_setting(tmp_path: Path) -> None:
    overrides = {"job_queue_size": "7\ndisable_token_authorization=true"}
    file = tmp_path / "config.properties"
    file.write_text(write_properties(ServerSettings(tmp_path, overrides=overrides).properties()))
    assert not is_on(read_properties(file), "disable_token_authorization")


def test_the_safe_settings_hold_without_a_file(tmp_path: Path) -> None:
    properties = ServerSettings(tmp_path).properties()
    assert properties == DEFAULTS | {"model_store": str(tmp_path.resolve())}
    assert differences(properties) == []
    assert not is_on(properties, "disable_token_authorization")
    assert all(is_loopback(v) for k, v in properties.items() if k.endswith("_address"))


def test_the_shipped_file_repeats_the_safe_settings() -> None:
    """A plain `torchserve --start` knows nothing of this package's defaults."""
    shipped = read_properties(ROOT / "config.properties")
    assert shipped == DEFAULTS | {"model_store": "model_store"}


def test_differences_are_shown_without_secrets() -> None:
    changed = DEFAULTS | {"job_queue_size": "7", "keystore_pass": "secret"}
    assert differences(changed) == [
        "job_queue_size=7 (default: 100)",
        "keystore_pass=... (default: not set)",
    ]


def test_what_the_environment_changes() -> None:
    environment = {
        "TS_INFERENCE_ADDRESS": "http://0.0.0.0:1",
        "TS_TOKEN_EXPIRATION_TIME_MIN": "5",
        "TS_ENSEMBLE_TOKEN": "secret",
        "PORT": "9",
    }
    assert effective(DEFAULTS, environment) == DEFAULTS
    changed = DEFAULTS | {"management_address": "http://127.0.0.1:$$PORT$$"}
    assert effective(changed, environment)["management_address"] == "http://127.0.0.1:9"
    opened = effective(DEFAULTS | {"enable_envvars_config": "true"}, environment)
    assert opened["inference_address"] == "http://0.0.0.0:1"
    assert opened["token_expiration_min"] == "5"
    assert "secret" not in opened.values()
    with pytest.raises(ServerError, match=r"names \$PORT, which is not set"):
        effective(changed, {})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"disable_token_authorization": "true"}, False),
        ({"management_address": "http://0.0.0.0:8081"}, False),
        ({"grpc_management_address": "0.0.0.0"}, False),
    ],
)
def test_model_control_only_for_the_owner_of_the_token(
    changed: dict[str, str], expected: bool
) -> None:
    assert may_enable_model_api(DEFAULTS | changed) is expected


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
    assert not is_on({"a": "true "}, "a")
    assert not is_on({"a": "yes"}, "a")
    assert not is_on({}, "a")
