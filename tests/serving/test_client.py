"""What a client sends again, and when it gives up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import EnsembleError, RequestError, ServerError
from torchserve_ensemble.serving import client as client_module
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.management import ModelVersion, Worker
from torchserve_ensemble.serving.transports import (
    Answer,
    Images,
    NoAnswerError,
    NoConnectionError,
)

GOOD = Answer(200, b'{"predictions": []}')


def refusal(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"code": status, "message": message}).encode())


BUSY = refusal(503, 'Model "a" has no worker to serve inference request.')
DIED = refusal(507, "Worker died.")


class Script:
    """A transport that answers as it is told, and notes how long each attempt may take."""

    address = "script"

    def __init__(self, *answers: Answer | ServerError) -> None:
        self.answers = list(answers)
        self.timeouts: list[float] = []

    def send(
        self,
        name: str,
        version: str | None,
        images: Images,
        options: Mapping[str, str],
        timeout: float,
    ) -> Answer:
        self.timeouts.append(timeout)
        answer = self.answers.pop(0)
        if isinstance(answer, ServerError):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing to close."""


def ask(script: Script, **settings: float) -> EnsembleError | None:
    client = InferenceClient(**settings)  # type: ignore[arg-type]
    client._transport = script
    try:
        client.predict("a", [("x", b"")])
    except EnsembleError as error:
        return error
    return None


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize(
    "failure",
    [
        BUSY,
        refusal(507, "out of memory"),
        refusal(500, "Worker died."),
        DIED,
        refusal(413, "Worker died."),
        refusal(500, "Worker scaled down."),
        NoConnectionError("refused"),
    ],
    ids=lambda failure: getattr(failure, "status", 0),
)
def test_what_is_repeated(failure: Answer | ServerError) -> None:
    script = Script(failure, failure, GOOD)
    assert ask(script) is None
    assert len(script.timeouts) == 3


@pytest.mark.parametrize(
    "answer",
    [refusal(400, "bad"), refusal(413, "too large"), refusal(500, "a bug"), refusal(504, "late")],
    ids=lambda answer: str(answer.status),
)
def test_what_is_not_repeated(answer: Answer) -> None:
    script = Script(answer)
    error = ask(script)
    assert error is not None
    assert error.status == answer.status
    assert isinstance(error, RequestError) == (answer.status < 500)


def test_attempts_are_bounded() -> None:
    script = Script(*[BUSY] * 3)
    error = ask(script, retries=2)
    assert "the model has no worker, or its queue is full" in str(error)
    assert script.answers == []


@pytest.mark.parametrize(
    ("workers", "reason"), [(0, "a 1 has no worker"), (1, "the queue of a 1 was full; 99 requests")]
)
def test_a_full_queue_is_not_called_a_missing_worker(workers: int, reason: str) -> None:
    version = ModelVersion(
        name="a",
        version="1",
        archive="a.mar",
        min_workers=workers,
        max_workers=workers,
        batch_size=1,
        max_batch_delay_ms=1,
        default=True,
        workers=(Worker("9000", "READY", 1, False, 0),) * workers,
        pending_requests=99,
    )
    client = InferenceClient(retries=0, diagnose=lambda name, _: version.reason_for_503())
    client._transport = Script(BUSY)
    with pytest.raises(ServerError, match=reason) as caught:
        client.predict("a", [("x", b"")])
    assert caught.value.status == 503


def test_all_attempts_share_one_deadline() -> None:
    script = Script(*[NoConnectionError("refused")] * 1000)
    begin = time.monotonic()
    error = ask(script, retries=999, timeout=0.2)
    assert isinstance(error, NoConnectionError)
    assert time.monotonic() - begin < 1
    assert max(script.timeouts) <= 0.2
    assert script.timeouts == sorted(script.timeouts, reverse=True)


def test_an_attempt_without_an_answer_is_repeated_only_within_its_own_limit() -> None:
    script = Script(NoAnswerError("late"), GOOD)
    assert ask(script, timeout=5, attempt_timeout=0.5) is None
    assert script.timeouts[0] == 0.5


def test_a_timeout_names_the_seconds_of_the_client_and_not_those_left() -> None:
    script = Script(BUSY, NoAnswerError("late"))
    error = ask(script, timeout=0.5, retries=1)
    assert isinstance(error, NoAnswerError)
    assert "the server did not answer within 0.5 s" in str(error)


@pytest.mark.parametrize("num_bytes", [10, 50_000_000], ids=["the answer", "the upload"])
def test_a_server_that_is_silent_is_not_called_absent(num_bytes: int) -> None:
    """It accepts the connection, and then neither reads nor answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            InferenceClient(address, timeout=0.3) as client,
            pytest.raises(NoAnswerError) as caught,
        ):
            client.predict("a", [("x", bytes(num_bytes))])
    assert "the server did not answer within 0.3 s" in str(caught.value)
    assert "no server answers" not in str(caught.value)


def test_the_command_line_names_the_option_that_waits_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = ["--address", f"http://127.0.0.1:{port}", "--timeout", "0.3"]
        assert main(["predict", "a", str(tmp_path / "a.png"), *address]) == 1
        management = ["--management", f"http://127.0.0.1:{port}", "--timeout", "0.3"]
        assert main(["status", *management]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "the server did not answer within 0.3 s" in line
        assert line.endswith("--timeout SECONDS waits longer (now 0.3)")


def test_a_missing_model_is_explained() -> None:
    absent = refusal(404, "Model not found: a")
    assert "`ts-ensemble status` lists the registered models" in str(ask(Script(absent)))
    client = InferenceClient(diagnose=lambda name, _: f"no model '{name}' is registered")
    client._transport = Script(absent)
    with pytest.raises(RequestError, match="no model 'a' is registered"):
        client.predict("a", [("x", b"")])
