"""Measures the time that lazy policies save on the presence example.

``python -m benchmarks.laziness`` (it needs the extra ``examples``) trains the members of the
example, and answers its test images in batches, in one process. It takes turns between running all
members and running them lazily, and counts how many decisions are equal. It does so twice: with the
example as it is, whose members take microseconds, and with an expensive last member, which takes
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from examples import data
from examples.presence import train
from torchserve_ensemble.handlers.deployment import load_service
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import load_spec

SPECS = {
    "ensemble.yaml": "three small members",
    "cascade.yaml": "three small members, and a ResNet-18 on 64 x 64 pixels after them",
}
"""File name of each spec -> description of its members, which is printed."""

POLICIES = (
    ("any", "any"),
    ("all", "all"),
    ("majority", "majority"),
    ("mean", "cascade(confidence=0.9)"),
    ("mean", "cascade(confidence=0.99)"),
)
"""Pairs of a policy that runs all members, and the lazy policy that is compared with it.

A cascade is the mean of the members that ran, so it is compared with the mean of all members.
"""


def ask(
    service: EnsembleService, files: Sequence[bytes], **options: str
) -> tuple[list[str], float]:
    """Send images to a service, and return their labels and the seconds that it took."""
    parts = [Part("file", "image/png", file) for file in files]
    parts += [Part(name, "", value.encode()) for name, value in options.items()]
    started = time.perf_counter()
    (response,) = service.answer([RawRequest(parts)])
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise SystemExit(response.body.decode())
    return [each["label"] for each in json.loads(response.body)["predictions"]], seconds


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laziness", description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    training, test = data.load()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = Path(train.__file__).parent
        for name in (*SPECS, "members.py"):
            shutil.copy(source / name, folder)
        for name, members in SPECS.items():
            train.train(folder, training, file=name)
            print(f"{name}: {members}")
            compare(folder / name, test.files, options)


def compare(spec: Path, files: Sequence[bytes], options: argparse.Namespace) -> None:
    """Measure all policies with the members of a spec, and print the results."""
    service = load_service(load_spec(spec), spec.parent)
    for pair in POLICIES:
        measure(service, files, pair, options.batch, options.rounds)


def measure(
    service: EnsembleService,
    files: Sequence[bytes],
    policies: tuple[str, str],
    batch: int,
    rounds: int,
) -> None:
    """Measure all images with all members and lazily, in turn, and print both rates.

    Args:
        service: the service that answers.
        files: the image files.
        policies: the policy with all members, and the lazy one.
        batch: number of images in a request.
        rounds: how often all images are answered in each way.
    """
    seconds_of_rounds: dict[str, list[float]] = {"false": [], "true": []}
    policy_of = dict(zip(seconds_of_rounds, policies, strict=True))
    labels: dict[str, list[str]] = {}
    for _ in range(rounds):
        for lazy, totals in seconds_of_rounds.items():
            total, labels[lazy] = 0.0, []
            for start in range(0, len(files), batch):
                labels_of_batch, seconds = ask(
                    service,
                    files[start : start + batch],
                    policy=policy_of[lazy],
                    lazy=lazy,
                    fields="label",
                )
                labels[lazy] += labels_of_batch
                total += seconds
            totals.append(total)
    rates = {
        lazy: len(files) / statistics.median(totals) for lazy, totals in seconds_of_rounds.items()
    }
    equal = sum(a == b for a, b in zip(labels["false"], labels["true"], strict=True))
    full, lazily = rates["false"], rates["true"]
    print(
        f"{policies[1]}: {full:.0f} images/s with all members, {lazily:.0f} lazily "
        f"({lazily / full:.2f} times), {equal} of {len(files)} decisions equal"
    )


if __name__ == "__main__":
    main()
