"""Measures what tuning gains, on images that were used neither for training nor for tuning.

Run it with ``.venv/bin/python -m examples.tuning`` after ``scripts/quickstart``, whose weights it
uses. The members of the presence example were trained on some images of the training part, so
presence is tuned on the other images of that part, and measured on the held-out part. The members
of the digits example were trained on the whole training part, so digits is tuned on one half of the
held-out part, and measured on the other half. The measurements go over REST.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec
from torchserve_ensemble.serving.image_sources import read
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away
from torchserve_ensemble.tuning.labelled_data import LabelledData, read_labelled
from torchserve_ensemble.tuning.member_outputs import member_outputs
from torchserve_ensemble.tuning.metrics import Metrics
from torchserve_ensemble.tuning.selection import choose
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.tune import Tuning, metrics_of_predictions, tune
from torchserve_ensemble.tuning.writing import write_operating_point

from .data import SEED, Part, load
from .presence.train import IMAGES_EACH, POSITIVE

EXAMPLES = Path(__file__).parent


def main() -> None:
    """Tune, serve and measure both examples."""
    training, held_out = load()
    order = torch.randperm(len(training.files), generator=torch.Generator().manual_seed(SEED))
    not_trained_on = order[3 * IMAGES_EACH :].tolist()
    all_held_out = list(range(len(held_out.files)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "presence-tuning", training, not_trained_on, _presence)
        _write(folder / "presence-measured", held_out, all_held_out, _presence)
        plain = {"plain OR": "any", "plain mean": "mean"}
        _compare(folder, "presence", "recall>=0.9", 0.7, plain)
        _write(folder / "digits-tuning", held_out, all_held_out[::2], str)
        _write(folder / "digits-measured", held_out, all_held_out[1::2], str)
        _compare(folder, "digits", "accuracy>=0.9", 0.5, {"plain mean": "mean"})


def _presence(digit: int) -> str:
    """Return the label of the presence example for a digit."""
    return "eight" if digit == POSITIVE else "other"


def _write(folder: Path, part: Part, rows: Sequence[int], label: Callable[[int], str]) -> None:
    """Write some images of a part into a folder with a subfolder for each label."""
    for row in rows:
        file = folder / label(part.digits[row]) / f"{part.indices[row]}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part.files[row])


def _compare(
    folder: Path, name: str, target: str, held_out_share: float, plain: Mapping[str, str]
) -> None:
    """Tune an example, and print its metrics on other images beside those of plain policies.

    Args:
        folder: has the images for tuning and for measuring.
        name: name of the example.
        target: the target of tuning.
        held_out_share: share of the images that the guarantee is computed from.
        plain: name in the table -> text of a policy that is not tuned.
    """
    example = folder / name
    shutil.copytree(EXAMPLES / name, example)
    spec = load_spec(example / "ensemble.yaml")
    data = read_labelled(folder / f"{name}-tuning", spec)
    tuning = tune(
        spec,
        data,
        member_outputs(spec, example, data),
        parse_target(target, spec.task),
        held_out_share=held_out_share,
    )
    chosen = tuning.operating_point.text
    print(tuning.operating_point.guarantee)
    single = choose([m for m in tuning.measured if m.candidate.member], tuning.target)
    measured = read_labelled(folder / f"{name}-measured", spec)
    rows = {}
    for label, text in plain.items():
        rows[f"{label}: {text}"] = _measure(folder, example, spec, measured, [text])[0]
    _write_back(example, tuning)
    texts = [single.text, chosen]
    for text, each in zip(texts, _measure(folder, example, spec, measured, texts), strict=True):
        rows[f"{'tuned' if text == chosen else 'best member, not guaranteed'}: {text}"] = each
    _print(
        f"{name}: {tuning.target}, tuned on {len(data.paths)} images, "
        f"measured on {len(measured.paths)} others",
        rows,
    )


def _write_back(example: Path, tuning: Tuning) -> None:
    """Write the chosen policy into the example's spec, as its operating point ``tuned``."""
    write_operating_point(
        example / "ensemble.yaml",
        name="tuned",
        policy=tuning.operating_point.text,
        fitted=tuning.fitted,
        metrics=tuning.operating_point.held_out.values,
        data_name=tuning.data.name,
        data_digest=tuning.data.digest,
    )


def _measure(
    folder: Path, example: Path, spec: EnsembleSpec, data: LabelledData, policies: Sequence[str]
) -> list[Metrics]:
    """Build an example as its spec is now, serve it, and measure policies over REST.

    Args:
        folder: folder for the archive and the server's files.
        example: the example's folder.
        spec: the example's spec; its labels are needed to read the answers.
        data: the images to measure with.
        policies: texts of the policies.

    Returns:
        The metrics of each policy.
    """
    archive = build_archive(example / "ensemble.yaml", folder / "store")
    settings = ServerSettings(folder / "store", (archive.name,), overrides=throw_away())
    metrics = []
    with Server.start(settings, folder / "run") as server, server.client() as client:
        server.wait_ready()
        for policy in policies:
            predictions = client.predict_all(
                spec.name,
                read([str(path) for path in data.paths]),
                options={"policy": policy, "include": "scores"},
            )
            metrics.append(metrics_of_predictions(spec, data, list(predictions))["combined"])
    return metrics


def _print(title: str, rows: Mapping[str, Metrics]) -> None:
    """Print a table with a row for each policy."""
    table = Table(title=title)
    table.add_column("policy")
    names = [
        n
        for n in ("recall", "precision", "f1", "accuracy", "coverage")
        if n in next(iter(rows.values())).values
    ]
    for name in names:
        table.add_column(name, justify="right")
    for row, each in rows.items():
        table.add_row(row, *(f"{each.values[name]:.4f}" for name in names))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
