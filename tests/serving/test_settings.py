"""The settings of a server: defaults, a config file, overrides and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.addresses import check_ports, is_loopback
from torchserve_ensemble.serving.properties_file import read_properties, write_properties
from torchserve_ensemble.serving.settings import (
    DEFAULTS,
    ServerSettings,
    differences,
    effective,
    is_on,
    may_enable_model_api,
    throw_away,
)

ROOT = Path(__file__).parents[2]


def test_a_value_with_a_line_break_adds_no_other_setting(tmp_path: Path) -> None:
    overrides = {"job_queue_size": "7\ndisable_token_authorization=true"}
    file = tmp_path / "config.properties"
    file.write_text(write_properties(ServerSettings(tmp_path, overrides=overrides).properties()))
    assert not is_on(read_properties(file), "disable_token_authorization")


def test_the_safe_settings_hold_without_a_config_file(tmp_path: Path) -> None:
    properties = ServerSettings(tmp_path).properties()
    assert properties == DEFAULTS | {"model_store": str(tmp_path.resolve())}
    assert differences(properties) == []
    assert not is_on(properties, "disable_token_authorization")
    assert all(is_loopback(v) for k, v in properties.items() if k.endswith("_address"))


def test_the_shipped_file_repeats_the_safe_settings() -> None:
    """A plain `torchserve --start` does not read the defaults of this package."""
    shipped = read_properties(ROOT / "config.properties")
    assert shipped == DEFAULTS | {"model_store": "model_store"}


def test_differences_are_shown_without_secrets() -> None:
    changed = DEFAULTS | {"job_queue_size": "7", "keystore_pass": "secret"}
    assert differences(changed) == [
        "job_queue_size=7 (default: 100)",
        "keystore_pass=... (default: not set)",
    ]


def test_environment_variables_replace_settings_only_where_that_is_enabled() -> None:
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
def test_model_control_is_enabled_only_for_the_owner_of_the_token(
    changed: dict[str, str], expected: bool
) -> None:
    assert may_enable_model_api(DEFAULTS | changed) is expected


def test_overrides_replace_the_config_file_which_replaces_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config.properties"
    config.write_text("model_store=elsewhere\njob_queue_size=7\nmetrics_address=http://x:1\n")
    settings = ServerSettings(tmp_path, config=config, overrides={"metrics_address": "http://y:2"})
    properties = settings.properties()
    assert properties["inference_address"] == DEFAULTS["inference_address"]
    assert properties["job_queue_size"] == "7"
    assert properties["model_store"] == str(tmp_path)
    assert properties["metrics_address"] == "http://y:2"


def test_a_missing_model_store_or_archive_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is no folder"):
        ServerSettings(tmp_path / "none").properties()
    with pytest.raises(ServerError, match=r"none: build one"):
        ServerSettings(tmp_path, ("a.mar",)).properties()
    (tmp_path / "digits-1.0.mar").touch()
    with pytest.raises(ServerError, match=r"did you mean 'digits-1.0.mar'"):
        ServerSettings(tmp_path, ("digits=digit-1.0.mar",)).properties()
    ServerSettings(tmp_path, ("digits=digits-1.0.mar", "https://example.org/a.mar")).properties()


def test_throw_away_servers_are_reached_from_this_machine_alone() -> None:
    settings = throw_away()
    for key, value in settings.items():
        if key.endswith("_address"):
            assert is_loopback(value if "//" in value else f"http://{value}"), key
    check_ports(DEFAULTS | settings)


def test_a_relative_model_store_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server itself runs in another folder."""
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


def test_switches_are_read_as_java_reads_them() -> None:
    """Java ignores case, but not spaces, and accepts no other word for true."""
    assert is_on({"a": "True"}, "a")
    assert not is_on({"a": "true "}, "a")
    assert not is_on({"a": "yes"}, "a")
    assert not is_on({}, "a")
