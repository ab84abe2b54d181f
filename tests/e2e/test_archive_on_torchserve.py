"""Tests the archive of the presence example on a real TorchServe, through its clients."""

from __future__ import annotations

import concurrent.futures
import json
import py_compile
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from examples import data
from examples.presence.train import train
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.archiver.packing import write_entries
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.archive_layout import MANIFEST
from torchserve_ensemble.handlers.base.errors import WorkerDiedError
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.serving.properties_file import read_properties
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "presence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presence")
    for file in ("ensemble.yaml", "members.py"):
        (folder / file).write_bytes((EXAMPLE / file).read_bytes())
    train(folder, data.load()[0])
    return folder


@pytest.fixture(scope="module")
def images() -> tuple[bytes, ...]:
    return data.load()[1].files[:12]


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    archive = build_archive(folder / "ensemble.yaml", store)
    second = (folder / "ensemble.yaml").read_text().replace('"1.0"', '"2.0"')
    (folder / "second.yaml").write_text(second.replace("default: majority", "default: all"))
    build_archive(folder / "second.yaml", store)
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    contents[MANIFEST] = contents[MANIFEST].replace(b'"presence"', b'"bad"')
    (linear,) = (name for name in contents if name.endswith("linear.safetensors"))
    write_entries(contents | {linear: contents[linear][:-1]}, store / "bad.mar")
    marks = store / "marks"
    marks.mkdir()
    # Python runs this byte code without comparing it with its source, and imports sitecustomize
    # when it starts. Both leave a mark if they run.
    (store / "plant.py").write_text(f"open({str(marks / 'byte code')!r}, 'w').close()\n")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(
        str(store / "plant.py"), str(store / "plant.pyc"), invalidation_mode=unchecked
    )
    for folder, module in (("", "__init__"), ("archive/", "record"), ("", "service")):
        place = f"handlers/{folder}__pycache__/{module}.{sys.implementation.cache_tag}.pyc"
        contents[place] = (store / "plant.pyc").read_bytes()
    contents["sitecustomize.py"] = f"open({str(marks / 'start')!r}, 'w').close()\n".encode()
    write_entries(contents, store / "planted.mar")
    settings = ServerSettings(store, (archive.name,), overrides=throw_away())
    with Server.start(settings, tmp_path_factory.mktemp("run")) as server:
        server.wait_ready()
        yield server


def post(server: Server, files: list[bytes], **fields: str) -> requests.Response:
    return requests.post(
        f"{server.inference_address}/predictions/presence",
        files=[("file", ("image.png", file, "image/png")) for file in files],
        data=fields,
        timeout=60,
    )


def test_rest_answers_as_the_same_pipeline_in_process(
    server: Server, folder: Path, images: tuple[bytes, ...]
) -> None:
    service = load_service(load_spec(folder / "ensemble.yaml"), folder)
    parts = [Part("file", "image/png", image) for image in images]
    local = json.loads(service.answer([RawRequest(parts)])[0].body)
    served = post(server, list(images)).json()
    assert len(served["predictions"]) == len(images)
    for actual, expected in zip(served["predictions"], local["predictions"], strict=True):
        # In the archive OpenVINO may run members that torch runs here.
        for one, other in (
            (actual, expected),
            *((actual["members"][name], expected["members"][name]) for name in actual["members"]),
        ):
            assert one["label"] == other["label"]
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        for answer in (actual, expected):
            del answer["score"], answer["members"]
    assert served["predictions"] == local["predictions"]
    assert served["model"]["archive"].startswith("sha256:")


def test_every_image_of_one_name_is_answered_as_if_alone(
    server: Server, images: tuple[bytes, ...]
) -> None:
    together = post(server, list(images), policy="any").json()["predictions"]
    # The frontend drops the parts' file names, "image.png", so that the field's name is left.
    assert [each["sample"] for each in together] == [f"file[{i}]" for i in range(len(images))]
    for image, prediction in zip(images, together, strict=True):
        alone = post(server, [image], policy="any").json()["predictions"][0]
        assert alone["sample"] == "file"
        assert alone["label"] == prediction["label"]
        assert alone["score"] == pytest.approx(prediction["score"], abs=1e-6)


def test_a_bad_image_fails_alone_among_batched_requests(
    server: Server, images: tuple[bytes, ...]
) -> None:
    bodies = [*images[:5], b"<html>", *images[5:10]]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: post(server, [body]), bodies))
    assert [answer.status_code for answer in answers] == [200] * 5 + [400] + [200] * 5
    refusal = answers[5].json()
    assert refusal["code"] == 400
    assert refusal["type"] == "SampleError"
    assert "sample 0" in refusal["message"]


def test_on_error_skip_answers_the_others(server: Server, images: tuple[bytes, ...]) -> None:
    answer = post(server, [images[0], b"junk", images[1]], on_error="skip")
    assert answer.status_code == 200
    first, bad, last = answer.json()["predictions"]
    assert "label" in first
    assert bad["error"]["index"] == 1
    assert "label" in last


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"policy": "anny"}, "any"),
        ({"policy": "at_least(k=9)"}, "9"),
        ({"polcy": "any"}, "did you mean 'policy'"),
    ],
)
def test_wrong_options_are_400_with_the_remedy(
    server: Server, images: tuple[bytes, ...], fields: dict[str, str], words: str
) -> None:
    answer = post(server, [images[0]], **fields)
    assert answer.status_code == 400
    assert words in answer.json()["message"]


def test_an_empty_body_is_400(server: Server) -> None:
    address = f"{server.inference_address}/predictions/presence"
    assert requests.post(address, data=b"", timeout=60).status_code == 400


def test_policy_by_header(server: Server, images: tuple[bytes, ...]) -> None:
    answer = requests.post(
        f"{server.inference_address}/predictions/presence",
        data=images[0],
        headers={"policy": "high-specificity", "content-type": "image/png"},
        timeout=60,
    )
    assert answer.json()["policy"]["name"] == "all"


def test_describe_lists_members_labels_and_policies(server: Server) -> None:
    with server.management() as management:
        (version,) = management.describe("presence", customized=True)
    assert version.customized is not None
    assert version.customized["labels"] == ["other", "eight"]
    assert [m["name"] for m in version.customized["members"]] == [
        "linear",
        "perceptron",
        "convolutional",
    ]


def test_two_versions_side_by_side(server: Server, images: tuple[bytes, ...]) -> None:
    server.register("presence-2.0.mar")
    with server.client() as client, server.management() as management:
        image = [("a.png", images[0])]
        for version, policy in (("1.0", "majority"), ("2.0", "all")):
            answer = client.predict("presence", image, version=version)
            assert answer["policy"]["name"] == policy
        management.set_default("presence", "2.0")
        assert client.predict("presence", image)["model"]["version"] == "2.0"
        management.set_default("presence", "1.0")
        management.unregister("presence", "2.0")


def test_a_worker_that_dies_shows_its_own_traceback(server: Server) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        server.register("bad.mar", check_archive=False)
    assert "linear.safetensors was changed" in caught.value.message
    assert "Traceback" in caught.value.worker_traceback
    with server.management() as management:
        assert "bad" not in management.models()


def test_an_altered_archive_does_not_reach_torchserve(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = str(server.run_folder)
    assert main(["register", "planted.mar", "--run-folder", run_folder]) == 1
    assert "an archive must not contain Python's byte code" in capsys.readouterr().err
    store = Path(read_properties(server.run_folder / "config.properties")["model_store"])
    assert not list((store / "marks").iterdir())


def test_byte_code_of_an_altered_archive_never_runs(server: Server) -> None:
    """The worker refuses byte code even if the archive was not checked before TorchServe loads it.

    It cannot prevent that sitecustomize.py runs, because that happens when Python starts.
    """
    with pytest.raises(WorkerDiedError) as caught:
        server.register("planted.mar", check_archive=False)
    assert "handlers/__pycache__/service.cpython-" in caught.value.message
    assert "sitecustomize.py is not listed in archive.json" in caught.value.message
    store = Path(read_properties(server.run_folder / "config.properties")["model_store"])
    # Python starts before the worker can check anything; docs/trust.md explains it.
    assert [mark.name for mark in (store / "marks").iterdir()] == ["start"]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_builds_are_equal_to_the_byte(folder: Path, tmp_path: Path, engine: str) -> None:
    spec = folder / f"{engine}.yaml"
    spec.write_text(f"{(folder / 'ensemble.yaml').read_text()}\nruntime: {{engine: {engine}}}\n")
    first = build_archive(spec, tmp_path / "a")
    second = build_archive(spec, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_the_archive_runs_without_this_project(folder: Path, tmp_path: Path) -> None:
    archive = build_archive(folder / "ensemble.yaml", tmp_path)
    extracted = tmp_path / "extracted"
    with zipfile.ZipFile(archive) as contents:
        contents.extractall(extracted)
    program = f"""
import sys, types
sys.path.insert(0, {str(extracted)!r})
import ensemble_entry
class NoMetrics:
    def add_metric_to_cache(self, **_):
        return self
    def add_or_update(self, *_):
        pass
context = types.SimpleNamespace(
    system_properties={{"model_dir": {str(extracted)!r}, "gpu_id": None}},
    model_name="presence", model_yaml_config={{}}, metrics=NoMetrics(),
)
ensemble_entry.EnsembleHandler().initialize(context)
import handlers
assert handlers.__file__.startswith({str(extracted)!r}), handlers.__file__
print(sorted(m for m in sys.modules if m.split(".")[0] in
    ("archiver", "serving", "torchserve_ensemble")))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
