"""Runs the load generator in a process of its own, so that the benchmark's process stays idle.

``python -m benchmarks.load --help`` lists the options. The measurement is printed as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torchserve_ensemble.serving.load import LoadTarget, closed_loop, open_loop


def arguments_of(target: LoadTarget) -> list[str]:
    """Make the options of this module's command line that describe a target."""
    arguments = ["--address", target.address, "--form", target.form]
    if target.image_type is not None:
        arguments += ["--image-type", target.image_type]
    for path in target.paths:
        arguments += ["--path", path]
    for name, value in target.fields.items():
        arguments += ["--field", f"{name}={value}"]
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the measurement as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--address", required=True, help="http://HOST:PORT")
    parser.add_argument("--path", action="append", required=True)
    parser.add_argument("--form", choices=("multipart", "raw"), default="multipart")
    parser.add_argument("--field", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--image-type", help="media type (default: each image's own)")
    parser.add_argument("--images", type=Path, required=True, help="folder")
    parser.add_argument("--size", type=int, default=1, help="images in a request")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument(
        "--warm-up", type=float, default=0.5, help="seconds before a closed loop is measured"
    )
    parser.add_argument(
        "--rate", type=float, help="measure an open loop with this many requests in a second"
    )
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson")
    options = parser.parse_args(arguments)
    target = LoadTarget(
        options.address,
        tuple(options.path),
        options.form,
        dict(entry.split("=", 1) for entry in options.field),
        options.image_type,
    )
    images = [path.read_bytes() for path in sorted(options.images.iterdir())]
    if options.rate is None:
        measurement = closed_loop(
            target,
            images,
            clients=options.clients,
            size=options.size,
            seconds=options.seconds,
            warm_up=options.warm_up,
        )
    else:
        measurement = open_loop(
            target,
            images,
            rate=options.rate,
            arrivals=options.arrivals,
            size=options.size,
            seconds=options.seconds,
        )
    print(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
