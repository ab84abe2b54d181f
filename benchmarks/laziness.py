"""What lazy policies save on the presence example, and how many decisions stay the same.

``python -m benchmarks.laziness`` (it needs the extra ``examples``) trains the example's members and
answers its test images in one process, in batches, with all members and lazily in turns: once as
the example is, with members of microseconds, and once with a member of milliseconds as the last.
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
    "cascade.yaml": "and a ResNet-18 on 64 x 64 pixels behind them",
}
# With all members, and lazily: a cascade is the mean of the members that ran.
POLICIES = (
    ("any", "any"),
    ("all", "all"),
    ("majority", "majority"),
    ("mean", "cascade(confidence=0.9)"),
    ("mean", "cascade(confidence=0.99)"),
)


def ask(
    service: EnsembleService, files: Sequence[bytes], **options: str
) -> tuple[list[str], float]:
    """Labels, and seconds."""
    parts = [Part("file", "image/png", file) for file in files]
    parts += [Part(name, "", value.encode()) for name, value in options.items()]
    started = time.perf_counter()
    (response,) = service.answer([RawRequest(parts)])
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise SystemExit(response.body.decode())
    return [each["label"] for each in json.loads(response.body)["predictions"]], seconds


def main() -> None:
    """Measure and print."""
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
    """All policies, with the members that the spec names."""
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
    """One policy over all images, with all members and lazily, in turns."""
    times: dict[str, list[float]] = {"false": [], "true": []}
    asked = dict(zip(times, policies, strict=True))
    labels: dict[str, list[str]] = {}
    for _ in range(rounds):
        for lazy, found in times.items():
            total, said = 0.0, []
            for start in range(0, len(files), batch):
                part, seconds = ask(
                    service,
                    files[start : start + batch],
                    policy=asked[lazy],
                    lazy=lazy,
                    fields="label",
                )
                said += part
                total += seconds
            found.append(total)
            labels[lazy] = said
    rates = {lazy: len(files) / statistics.median(found) for lazy, found in times.items()}
    equal = sum(a == b for a, b in zip(labels["false"], labels["true"], strict=True))
    full, lazily = rates["false"], rates["true"]
    print(
        f"{policies[1]}: {full:.0f} images/s with all members, {lazily:.0f} lazily "
        f"({lazily / full:.2f} times), {equal} of {len(files)} decisions equal"
    )


if __name__ == "__main__":
    main()
