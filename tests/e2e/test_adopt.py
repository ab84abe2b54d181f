"""Tests that an adopted ensemble gives the answers of the original archives on a stock server.

TorchServe's image_classifier imports captum for explanations, which these tests do not use. If
captum is not installed, the archives on the stock server get an empty captum. The archives that are
adopted stay as torch-model-archiver wrote them.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from stock_archives import LABELS, MODEL_FILE, archive, network, with_entries, write_labels
from torch import Tensor
from torchvision import transforms

from torchserve_ensemble.archiver.adopt import adopt
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

TOLERANCE = 1e-4
"""Largest allowed difference of a score; 4.0e-5 was measured.

The normalised pixels differ by one rounding of float32 (4.8e-7). These networks amplify that: on
equal pixels their scores in float32 differ by 2.2e-5 from those in float64.
"""

NUM_TOP = 5
"""Number of labels in an answer of image_classifier."""

RESPONSE_SECONDS = 300
NAMES = ("eager", "scripted", "compiled")


SIZES = [(500, 375), (256, 300), (224, 224), (180, 97)] * 2


def photographs(seed: int = 0) -> list[bytes]:
    """Make image files of several sizes and formats, with smooth shapes and noise."""
    generator = np.random.default_rng(seed)
    files = []
    for index, (width, height) in enumerate(SIZES):
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        pixels = np.asarray(
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        )
        noisy = np.clip(pixels + generator.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "PNG" if index % 2 else "JPEG")
        files.append(file.getvalue())
    return files


def preprocessed(files: list[bytes]) -> Tensor:
    """Preprocess images as image_classifier does."""
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return torch.stack([transform(Image.open(io.BytesIO(file))) for file in files])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    labels = write_labels(folder)
    images = preprocessed(photographs(seed=1))
    for seed, (name, torchvision_name, module, network_name, arguments) in enumerate(
        [
            (
                "eager",
                "resnet18",
                "resnet",
                "ResNet",
                "block=__import__('torchvision').models.resnet.BasicBlock, layers=[2, 2, 2, 2], "
                "num_classes=6",
            ),
            (
                "compiled",
                "shufflenet_v2_x0_5",
                "shufflenetv2",
                "ShuffleNetV2",
                "[4, 8, 4], [24, 48, 96, 192, 1024], num_classes=6",
            ),
        ]
    ):
        code = folder / "model.py"
        code.write_text(MODEL_FILE.format(module=module, network=network_name, arguments=arguments))
        weights = folder / f"{name}.pth"
        torch.save(network(torchvision_name, seed, images).state_dict(), weights)
        config: dict[str, object] = {"responseTimeout": RESPONSE_SECONDS}
        if name == "compiled":
            config["pt2"] = {"compile": {"enable": True, "backend": "inductor"}}
        archive(folder, name, weights, model_file=code, extra_files=(labels,), config=config)
    weights = folder / "scripted.pt"
    torch.jit.script(network("mobilenet_v3_small", 2, images)).save(weights)
    archive(folder, "scripted", weights, extra_files=(labels,))
    return folder


def answers(store: Path, run_folder: Path, models: tuple[str, ...], check: bool) -> list[object]:
    """Serve models and send every photograph to each of them.

    Args:
        store: folder with the archives.
        run_folder: folder for the server's files.
        models: file names of the archives.
        check: whether they are archives of this project, which are checked and asked for scores.

    Returns:
        The answers to the first photograph in the order of the models, then to the second, ...
    """
    settings = ServerSettings(store, models, overrides=throw_away())
    with Server.start(settings, run_folder, check_archives=check) as server:
        server.wait_ready()
        contents = []
        for file in photographs():
            for model in models:
                name = model.partition(".")[0].partition("-")[0]
                answer = requests.post(
                    f"{server.inference_address}/predictions/{name}",
                    data=file,
                    headers={"include": "scores", "top-k": str(NUM_TOP)} if check else {},
                    timeout=RESPONSE_SECONDS,
                )
                assert answer.status_code == 200, answer.text
                contents.append(answer.json())
        return contents


@pytest.mark.long
def test_labels_and_scores_are_the_originals(originals: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    stock.mkdir()
    without_captum = importlib.util.find_spec("captum") is None
    captum = (
        ("captum/__init__.py", b""),
        ("captum/attr.py", b"class IntegratedGradients:\n    def __init__(self, model): ...\n"),
    )
    for name in NAMES:
        entries = [(zipfile.ZipInfo(file), code) for file, code in captum] * without_captum
        with_entries(originals / f"{name}.mar", stock / f"{name}.mar", *entries)
    expected = answers(stock, tmp_path / "run-stock", tuple(f"{n}.mar" for n in NAMES), False)

    adoption = adopt([originals / f"{n}.mar" for n in NAMES], tmp_path / "out", name="both")
    # The build would otherwise time the members with OpenVINO, which takes longest here.
    with adoption.spec.open("a") as file:
        file.write("runtime: {engine: torch}\n")
    build_archive(adoption.spec, tmp_path / "store")
    adopted = answers(tmp_path / "store", tmp_path / "run", ("both-1.0.mar",), True)

    labels_seen: dict[str, set[str]] = {name: set() for name in NAMES}
    largest = 0.0
    for index, answer in enumerate(adopted):
        (prediction,) = answer["predictions"]  # type: ignore[index]
        for position, name in enumerate(NAMES):
            of_stock = expected[index * len(NAMES) + position]
            assert isinstance(of_stock, dict)
            assert len(of_stock) == NUM_TOP
            member = prediction["members"][name]
            best = sorted(LABELS, key=lambda label: -member["scores"][label])[:NUM_TOP]
            assert list(of_stock) == best, f"{name}, photograph {index}"
            assert member["label"] == next(iter(of_stock))
            labels_seen[name].add(member["label"])
            for label, score in of_stock.items():
                largest = max(largest, abs(member["scores"][label] - score))
    print(f"largest difference of a score: {largest:.1e}; labels: {labels_seen}")
    assert largest <= TOLERANCE
    for name, seen in labels_seen.items():
        assert len(seen) > 2, f"{name} answers {seen} for all photographs, which shows nothing"
