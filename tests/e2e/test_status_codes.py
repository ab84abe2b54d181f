"""Every row of the table of status codes in docs/operations.md is what TorchServe answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
import torch
from probe_ensemble import image
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
MAX_REQUEST_BYTES = 1_000_000
MAX_SAMPLES = 2
TIMEOUT_SECONDS = 60
IMAGE = image(0.9)

# A file beside the archives says what the member does: fail, or take that many seconds. The member
# makes another file when it begins.
MEMBER = """
import time
from pathlib import Path

import torch
from torch import nn


class Controlled(nn.Module):
    def __init__(self, file):
        super().__init__()
        self.file = Path(file)
        self.bound = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        if not self.file.exists():
            behaviour = "0"
        else:
            behaviour = self.file.read_text()
            self.file.with_suffix(".begun").touch()
        if behaviour == "fail":
            raise ValueError("told to fail")
        time.sleep(float(behaviour))
        brightness = batch.mean(dim=(1, 2, 3))
        return torch.stack([-brightness, brightness], dim=1)
"""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        statuses: the statuses that the row allows.
        case: the request and what happened to it, as the row has them.
    """

    statuses: frozenset[int]
    case: tuple[str, str]

    def __str__(self) -> str:
        return f"{min(self.statuses)} {': '.join(self.case)}"


def rows_of_page() -> list[Row]:
    """The rows of the table of status codes."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Status codes\n")[2]
    rows = []
    for line in section.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0][:1].isdigit():
            statuses = frozenset(map(int, re.findall(r"\d+", cells[0])))
            rows.append(Row(statuses, (cells[1], cells[2])))
    return rows


@dataclass(frozen=True)
class Deployment:
    """A running server with tokens, and the means to provoke refusals.

    Attributes:
        server: serves version 1.0 of the model ``controlled``.
        model_store: also has version 1.1, and an archive that is only half there.
        behaviour: the file that the member reads.
    """

    server: Server
    model_store: Path
    behaviour: Path

    def predict(
        self, *images: bytes, path: str = "/predictions/controlled", **options: str
    ) -> requests.Response:
        """Send images with the inference token."""
        return requests.post(
            f"{self.server.inference_address}{path}",
            files=[("file", each) for each in images],
            data=options,
            headers=self.header("inference"),
            timeout=TIMEOUT_SECONDS,
        )

    def send_body(self, body: bytes, **headers: str) -> requests.Response:
        """Send one image as the body, with the inference token."""
        return requests.post(
            f"{self.server.inference_address}/predictions/controlled",
            data=body,
            headers=self.header("inference") | headers,
            timeout=TIMEOUT_SECONDS,
        )

    def manage(self, method: str, path: str, **query: str | int) -> requests.Response:
        """Call the management API with its token."""
        return requests.request(
            method,
            f"{self.server.management_address}{path}",
            params=query,
            headers=self.header("management"),
            timeout=TIMEOUT_SECONDS,
        )

    def header(self, kind: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.server.token(kind)}"}

    def scale(self, workers: int) -> None:
        query = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
        assert self.manage("PUT", "/models/controlled", **query).status_code == 200

    @contextmanager
    def behaving(self, behaviour: str) -> Iterator[None]:
        """Let the member fail, or take that many seconds."""
        self.behaviour.write_text(behaviour)
        try:
            yield
        finally:
            self.behaviour.unlink()
            self.begun.unlink(missing_ok=True)

    @property
    def begun(self) -> Path:
        """The file that the member makes when it begins."""
        return self.behaviour.with_suffix(".begun")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def num_pending(server: Server) -> int:
    """Number of requests that wait in the queue of the model."""
    with server.management() as management:
        (version,) = management.describe("controlled")
    return version.pending_requests


Provocation = Callable[[Deployment], list[requests.Response]]
PROVOCATIONS: dict[tuple[str, str], Provocation] = {}


def provokes(request: str, what_happened: str) -> Callable[[Provocation], Provocation]:
    """Register the function whose requests are answered as a row says."""

    def register(provocation: Provocation) -> Provocation:
        PROVOCATIONS[request, what_happened] = provocation
        return provocation

    return register


@provokes("any", "the token is missing, wrong, expired or meant for the other API")
def bad_tokens(deployment: Deployment) -> list[requests.Response]:
    """A token that expires cannot be waited for; TorchServe answers it as a wrong one."""
    answers = []
    for kind, other, url in (
        ("inference", "management", f"{deployment.server.inference_address}/ping"),
        ("management", "inference", f"{deployment.server.management_address}/models"),
    ):
        right = deployment.header(kind)
        assert requests.get(url, headers=right, timeout=TIMEOUT_SECONDS).status_code == 200
        for wrong in ({}, {"Authorization": "Bearer wrong"}, deployment.header(other)):
            answers.append(requests.get(url, headers=wrong, timeout=TIMEOUT_SECONDS))
    assert all("Token Authorization failed" in answer.text for answer in answers)
    return answers


@provokes("prediction", "an image cannot be read, or an option is wrong")
def bad_requests(deployment: Deployment) -> list[requests.Response]:
    return [deployment.predict(b"no image"), deployment.predict(IMAGE, policy="no policy")]


@provokes("prediction", "there is no such model, version or route")
def unknown_targets(deployment: Deployment) -> list[requests.Response]:
    paths = ("/predictions/none", "/predictions/controlled/9.9", "/batch")
    return [deployment.predict(IMAGE, path=path) for path in paths]


@provokes("prediction", "the request exceeds a limit of the spec")
def beyond_a_limit(deployment: Deployment) -> list[requests.Response]:
    answer = deployment.predict(*[IMAGE] * (MAX_SAMPLES + 1))
    assert "limits.max_samples" in answer.json()["message"]
    return [answer]


@provokes("prediction", "the body exceeds `max_request_size`; the answer is empty")
def too_large_a_body(deployment: Deployment) -> list[requests.Response]:
    answer = deployment.send_body(bytes(MAX_REQUEST_BYTES + 1))
    assert answer.text == ""
    return [answer]


@provokes("prediction", "the body has a `Content-Encoding` that the worker does not know")
def unknown_encoding(deployment: Deployment) -> list[requests.Response]:
    return [deployment.send_body(IMAGE, **{"Content-Encoding": "br"})]


@provokes("prediction", "a member failed, and `failures` of the spec does not drop it")
def failing_member(deployment: Deployment) -> list[requests.Response]:
    with deployment.behaving("fail"):
        answer = deployment.predict(IMAGE)
    assert "told to fail" in answer.json()["message"]
    return [answer]


@provokes("prediction", 'the worker was killed while it computed ("Worker died.")')
def killed_worker(deployment: Deployment) -> list[requests.Response]:
    with deployment.server.management() as management:
        (version,) = management.describe("controlled")
    with deployment.behaving("30"), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(deployment.predict, IMAGE)
        wait_until(deployment.begun.exists)
        psutil.Process(version.workers[0].pid).kill()
        response = answer.result()
    assert response.json()["message"] == "Worker died."
    wait_until(lambda: deployment.predict(IMAGE).status_code == 200)
    return [response]


@provokes("prediction", "the queue is full")
def full_queue(deployment: Deployment) -> list[requests.Response]:
    with deployment.behaving("2"), ThreadPoolExecutor(2) as pool:
        computed = pool.submit(deployment.predict, IMAGE)
        wait_until(deployment.begun.exists)
        queued = pool.submit(deployment.predict, IMAGE)
        wait_until(lambda: num_pending(deployment.server) == 1)
        refused = deployment.predict(IMAGE)
        assert [computed.result().status_code, queued.result().status_code] == [200, 200]
    return [refused]


@provokes("prediction", "the version has no worker")
def no_worker(deployment: Deployment) -> list[requests.Response]:
    deployment.scale(0)
    try:
        return [deployment.predict(IMAGE)]
    finally:
        deployment.scale(1)


@provokes(
    "prediction",
    "members were late (`deadline_ms`), and `failures` of the spec does not drop them",
)
def late_members(deployment: Deployment) -> list[requests.Response]:
    with deployment.behaving("1"):
        return [deployment.predict(IMAGE, deadline_ms="100")]


@provokes("management", "a parameter is missing or contradicts another one")
def bad_parameters(deployment: Deployment) -> list[requests.Response]:
    return [
        deployment.manage("POST", "/models"),
        deployment.manage("PUT", "/models/controlled", min_worker=3, max_worker=1),
    ]


@provokes("management", "the version to unregister is the default of several")
def unregistered_default(deployment: Deployment) -> list[requests.Response]:
    register = {"url": "controlled-1.1.mar", "initial_workers": 0}
    assert deployment.manage("POST", "/models", **register).status_code < 300
    try:
        return [deployment.manage("DELETE", "/models/controlled/1.0")]
    finally:
        deployment.manage("DELETE", "/models/controlled/1.1")


@provokes(
    "management",
    "there is no such model, version or archive, or the URL of the archive is not allowed",
)
def unknown_models(deployment: Deployment) -> list[requests.Response]:
    return [
        deployment.manage("GET", "/models/none"),
        deployment.manage("DELETE", "/models/controlled/9.9"),
        deployment.manage("POST", "/models", url="none.mar"),
        deployment.manage("POST", "/models", url="file:///etc/passwd"),
    ]


@provokes("management", "an archive is registered while the model control API is off")
def model_control_off(deployment: Deployment) -> list[requests.Response]:
    overrides = throw_away()
    del overrides["enable_model_api"]
    settings = ServerSettings(deployment.model_store, overrides=overrides)
    with Server.start(settings, deployment.behaviour.parent / "run-without-control") as server:
        url = f"{server.management_address}/models"
        archive = {"url": "controlled-1.0.mar"}
        return [requests.post(url, params=archive, timeout=TIMEOUT_SECONDS)]


@provokes("management", "the version is registered already")
def registered_twice(deployment: Deployment) -> list[requests.Response]:
    return [deployment.manage("POST", "/models", url="controlled-1.0.mar")]


@provokes("management", "the archive could not be extracted")
def truncated_archive(deployment: Deployment) -> list[requests.Response]:
    answer = deployment.manage("POST", "/models", url="half.mar")
    assert "Failed to save model" in answer.text
    return [answer]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder, store = tmp_path_factory.mktemp("controlled"), tmp_path_factory.mktemp("store")
    behaviour = folder / "behaviour"
    (folder / "controlled.py").write_text(MEMBER)
    save_file({"bound": torch.tensor(0.0)}, folder / "a.safetensors")
    for version in ("1.0", "1.1"):
        member = {
            "architecture": "controlled.py:Controlled",
            "arguments": {"file": str(behaviour)},
            "weights": "a.safetensors",
        }
        spec = {
            "name": "controlled",
            "version": version,
            "task": "classification",
            "labels": ["dark", "bright"],
            "preprocessing": {"small": {"resize": [2, 2]}},
            "serving": {"batch_size": 1},
            "runtime": {"engine": "torch", "score_cache_mb": 0},
            "limits": {"max_samples": MAX_SAMPLES},
            # Of two members the second has not begun when the first takes too long.
            "members": [{"name": name} | member for name in "ab"],
        }
        (folder / "ensemble.yaml").write_text(json.dumps(spec))
        build_archive(folder / "ensemble.yaml", store)
    whole = (store / "controlled-1.1.mar").read_bytes()
    (store / "half.mar").write_bytes(whole[: len(whole) // 2])
    overrides = throw_away() | {
        "disable_token_authorization": "false",
        "job_queue_size": "1",
        "max_request_size": str(MAX_REQUEST_BYTES),
    }
    settings = ServerSettings(store, ("controlled-1.0.mar",), overrides=overrides)
    with Server.start(settings, folder / "run") as server:
        server.wait_ready()
        yield Deployment(server, store, behaviour)


def test_every_row_can_be_provoked() -> None:
    assert {row.case for row in rows_of_page()} == PROVOCATIONS.keys()


@pytest.mark.parametrize("row", rows_of_page(), ids=str)
def test_a_row_is_what_torchserve_answers(deployment: Deployment, row: Row) -> None:
    answers = PROVOCATIONS[row.case](deployment)
    statuses = {answer.status_code for answer in answers}
    assert statuses <= row.statuses, [answer.text for answer in answers]
    assert deployment.predict(IMAGE).status_code == 200, "the server is as it was before"
