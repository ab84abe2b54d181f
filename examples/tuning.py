"""What tuning gains: tune on images that no member saw, measure on others, over REST.

Run it with ``.venv/bin/python -m examples.tuning`` after ``scripts/quickstart``, whose weights it
uses. Presence is tuned on the rest of the training part and measured on the held-out part. The
digits' members saw the whole training part, so that the held-out part is halved: tuned on one half,
measured on the other.
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
    unseen = order[3 * IMAGES_EACH :].tolist()
    everything = list(range(len(held_out.files)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "presence-tuning", training, unseen, _presence)
        _write(folder / "presence-measured", held_out, everything, _presence)
        plain = {"plain OR": "any", "plain mean": "mean"}
        _compare(folder, "presence", "recall>=0.9", 0.7, plain)
        _write(folder / "digits-tuning", held_out, everything[::2], str)
        _write(folder / "digits-measured", held_out, everything[1::2], str)
        _compare(folder, "digits", "accuracy>=0.9", 0.5, {"plain mean": "mean"})


def _presence(digit: int) -> str:
    return "eight" if digit == POSITIVE else "other"


def _write(folder: Path, part: Part, rows: Sequence[int], label: Callable[[int], str]) -> None:
    for row in rows:
        file = folder / label(part.digits[row]) / f"{part.indices[row]}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part.files[row])


def _compare(
    folder: Path, name: str, target: str, held_out_share: float, plain: Mapping[str, str]
) -> None:
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
        rows[f"{label}: {text}"] = _served(folder, example, spec, measured, [text])[0]
    _write_back(example, tuning)
    texts = [single.text, chosen]
    for text, each in zip(texts, _served(folder, example, spec, measured, texts), strict=True):
        rows[f"{'tuned' if text == chosen else 'best member, not guaranteed'}: {text}"] = each
    _print(
        f"{name}: {tuning.target}, tuned on {len(data.paths)} images, "
        f"measured on {len(measured.paths)} others",
        rows,
    )


def _write_back(example: Path, tuning: Tuning) -> None:
    write_operating_point(
        example / "ensemble.yaml",
        name="tuned",
        policy=tuning.operating_point.text,
        fitted=tuning.fitted,
        metrics=tuning.operating_point.held_out.values,
        data_name=tuning.data.name,
        data_digest=tuning.data.digest,
    )


def _served(
    folder: Path, example: Path, spec: EnsembleSpec, data: LabelledData, policies: Sequence[str]
) -> list[Metrics]:
    """Metrics of policies over REST, of the archive as it is now."""
    archive = build_archive(example / "ensemble.yaml", folder / "store")
    settings = ServerSettings(folder / "store", (archive.name,), overrides=throw_away())
    found = []
    with Server.start(settings, folder / "run") as server, server.client() as client:
        server.wait_ready()
        for policy in policies:
            predictions = client.predict_all(
                spec.name,
                read([str(path) for path in data.paths]),
                options={"policy": policy, "include": "scores"},
            )
            found.append(metrics_of_predictions(spec, data, list(predictions))["combined"])
    return found


def _print(title: str, rows: Mapping[str, Metrics]) -> None:
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
