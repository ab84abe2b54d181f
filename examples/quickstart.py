"""Trains two ensembles, builds and serves them, sends images and measures the answers.

Run it with ``scripts/quickstart``; ``--keep`` leaves the server running.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.run_folder import DEFAULT_RUN_FOLDER
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

from .data import Part, load
from .digits.train import train as train_digits
from .presence.train import POSITIVE
from .presence.train import train as train_presence

ROOT = Path(__file__).parent.parent
IMAGES_PER_REQUEST = 150
NUM_SINGLE_IMAGES = 6
DIGIT_POLICIES = ("mean", "majority", "median", "two-agree")
SINGLE_IMAGE_POLICIES = ("mean", "majority", "two-agree")
PRESENCE_POLICIES = ("high-sensitivity", "majority", "mean", "high-specificity")

Predictions = list[dict[str, Any]]
"""The predictions of several images, as the server's JSON answer contains them."""

Trainer = Callable[[Path, Part, Callable[[str, int], None]], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the quickstart."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    parser.add_argument(
        "--free-ports", action="store_true", help="use any free ports instead of 8080 to 8082"
    )
    parser.add_argument(
        "--run-folder", type=Path, default=DEFAULT_RUN_FOLDER, help="folder of the server's files"
    )
    options = parser.parse_args(arguments)
    console = Console()
    training, held_out = load()
    console.print(f"{len(training.files)} images to train on, {len(held_out.files)} held out")
    archives = []
    started = time.monotonic()
    for name, trainer in (("digits", train_digits), ("presence", train_presence)):
        folder = ROOT / "examples" / name
        _train(console, name, folder, trainer, training)
        archives.append(build_archive(folder / "ensemble.yaml", ROOT / "model_store"))
        console.print(f"built {archives[-1].relative_to(ROOT)}")
    settings = ServerSettings(
        model_store=ROOT / "model_store",
        models=tuple(archive.name for archive in archives),
        config=ROOT / "config.properties",
        overrides=throw_away() if options.free_ports else {},
    )
    server = Server.start(settings, options.run_folder)
    try:
        server.wait_ready()
        console.print(f"TorchServe is ready at {server.inference_address}\n")
        with server.client() as client:
            show_digits(console, client, held_out)
            show_presence(console, client, held_out)
    finally:
        if not options.keep:
            server.stop()
    console.print(f"the quickstart took {time.monotonic() - started:.0f} s")
    if options.keep:
        console.print("The server keeps running; stop it with: .venv/bin/ts-ensemble stop")


def _train(console: Console, name: str, folder: Path, trainer: Trainer, training: Part) -> None:
    """Train the members of an example that have no weights yet, with a progress bar for each."""
    with Progress(console=console) as progress:
        tasks: dict[str, Any] = {}

        def on_epoch(member: str, total: int) -> None:
            if member not in tasks:
                tasks[member] = progress.add_task(f"training {name}/{member}", total=total)
            progress.advance(tasks[member])

        trainer(folder, training, on_epoch)
    if not tasks:
        console.print(f"{name}: the members are already trained")


def predict(client: InferenceClient, model: str, part: Part, policy: str) -> Predictions:
    """Send all images of a part, many in each request, and return the predictions in order."""
    predictions: Predictions = []
    for start in range(0, len(part.files), IMAGES_PER_REQUEST):
        files = part.files[start : start + IMAGES_PER_REQUEST]
        images = [(f"{start + i}.png", file) for i, file in enumerate(files)]
        answer = client.predict(model, images, options={"policy": policy})
        predictions += answer["predictions"]
    return predictions


def show_digits(console: Console, client: InferenceClient, part: Part) -> None:
    """Send one image alone and then all images, and print the accuracy of members and policies."""
    alone = client.predict("digits", [("one.png", part.files[0])])["predictions"][0]
    console.print(
        f"one image alone: {alone['label']} ({alone['score']:.3f}); truth {part.digits[0]}"
    )
    answers = {policy: predict(client, "digits", part, policy) for policy in DIGIT_POLICIES}
    first = answers[DIGIT_POLICIES[0]]
    members = list(first[0]["members"])
    disputed = [
        i for i, p in enumerate(first) if len({m["label"] for m in p["members"].values()}) > 1
    ]
    undisputed = [i for i in range(len(first)) if i not in disputed]
    # Eight columns fit into 80 characters only without padding on both sides.
    table = Table(
        title="digits: held-out images, first those on which the members disagree",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in ("image", *members, *SINGLE_IMAGE_POLICIES, "truth"):
        table.add_column(column)
    for index in (*disputed[: NUM_SINGLE_IMAGES - 2], *undisputed[:2]):
        table.add_row(
            str(part.indices[index]),
            *(first[index]["members"][member]["label"] for member in members),
            *(f"[bold]{answers[p][index]['label'] or 'none'}" for p in SINGLE_IMAGE_POLICIES),
            str(part.digits[index]),
        )
    console.print(table)
    truth = [str(digit) for digit in part.digits]
    table = Table(title=f"digits: accuracy on {len(truth)} held-out images")
    table.add_column("member or policy")
    table.add_column("accuracy", justify="right")
    for member in members:
        table.add_row(member, f"{_accuracy([p['members'][member] for p in first], truth):.4f}")
    for policy in DIGIT_POLICIES:
        table.add_row(f"[bold]{policy}", f"{_accuracy(answers[policy], truth):.4f}")
    console.print(table)


def show_presence(console: Console, client: InferenceClient, part: Part) -> None:
    """Print how well each member and each policy detects an eight."""
    truth = ["eight" if digit == POSITIVE else "other" for digit in part.digits]
    answers = {policy: predict(client, "presence", part, policy) for policy in PRESENCE_POLICIES}
    first = answers[PRESENCE_POLICIES[0]]
    rows = {name: [p["members"][name] for p in first] for name in first[0]["members"]}
    rows |= {f"[bold]{policy}": answers[policy] for policy in PRESENCE_POLICIES}
    table = Table(title=f"presence of an eight: {truth.count('eight')} among {len(truth)} images")
    for column in ("member or policy", "sensitivity", "specificity", "precision", "accuracy"):
        table.add_column(column)
    for name, predictions in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in detection(predictions, truth)))
    console.print(table)


def detection(predictions: Predictions, truth: Sequence[str]) -> tuple[float, float, float, float]:
    """Compute sensitivity, specificity, precision and accuracy of presence predictions.

    Args:
        predictions: the predictions.
        truth: the right label of each image, ``eight`` or ``other``.
    """
    predicted = [prediction["label"] == "eight" for prediction in predictions]
    actual = [label == "eight" for label in truth]
    true_positives = sum(p and a for p, a in zip(predicted, actual, strict=True))
    true_negatives = sum(not p and not a for p, a in zip(predicted, actual, strict=True))
    return (
        true_positives / sum(actual),
        true_negatives / (len(actual) - sum(actual)),
        true_positives / max(sum(predicted), 1),
        (true_positives + true_negatives) / len(actual),
    )


def _accuracy(predictions: Predictions, truth: Sequence[str]) -> float:
    """Compute the share of predictions with the right label."""
    return sum(p["label"] == t for p, t in zip(predictions, truth, strict=True)) / len(truth)


if __name__ == "__main__":
    main()
