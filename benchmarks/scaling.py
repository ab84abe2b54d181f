"""Measures how the time of a batch grows with its members, its samples and the size of its images.

``python -m benchmarks.scaling`` measures in one process, and writes a table and a plot into
``benchmarks/results``. For each curve it computes the slope of a line through the logarithms of
both axes. A slope of 1 means that the time grows linearly.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchserve_ensemble.handlers.base.threads import ThreadPool
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.inputs.preprocessing import Preprocessor
from torchserve_ensemble.handlers.spec import EnsembleSpec, load_spec

from . import machine
from .ensembles import ENSEMBLES, Ensemble
from .inprocess import measure

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
_MAX_PIXELS = 10**9


@dataclass(frozen=True)
class Curve:
    """Milliseconds as a function of a quantity that grows.

    Attributes:
        name: name of what was measured.
        grows: name of the quantity that grows, such as "members".
        points: value of the quantity -> milliseconds.
    """

    name: str
    grows: str
    points: Mapping[int, float]

    @property
    def slope(self) -> float:
        """Slope of the least-squares line through the logarithms of all points."""
        x, y = np.log(list(self.points)), np.log(list(self.points.values()))
        return float(np.polyfit(x, y, 1)[0])

    @property
    def last_slope(self) -> float:
        """Slope between the two largest points, where constant costs matter least."""
        (first, before), (second, after) = sorted(self.points.items())[-2:]
        return float(np.log(after / before) / np.log(second / first))


class Scaling:
    """Measures the curves, with the runtime that a worker has."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Prepare the measurements.

        Args:
            folder: an existing folder for the ensembles' weights and specs.
            seconds: length of the measurement of each point.
        """
        self._folder = folder
        self._seconds = seconds
        self._pool = ThreadPool(torch.get_num_threads())

    def run(self) -> Iterator[Curve]:
        """Measure all curves, one after another."""
        yield self._members("digits", (1, 2, 4, 8, 16), batch=16)
        yield self._members("mixed", (1, 2, 4, 8), batch=8)
        yield self._batches("three", (1, 2, 4, 8, 16, 32, 64, 128))
        yield self._batches("digits", (1, 2, 4, 8, 16, 32, 64, 128))
        yield self._image_sizes((128, 256, 512, 1024, 2048))

    def _spec(self, ensemble: Ensemble) -> tuple[EnsembleSpec, Path]:
        """Load an ensemble's spec, after writing it and the weights if they are missing.

        Returns:
            The spec and its folder.
        """
        folder = self._folder / ensemble.name
        if not folder.exists():
            folder.mkdir()
            ensemble.write_weights(folder)
            ensemble.write(folder, ensemble.name)
        return load_spec(folder / f"{ensemble.name}.yaml"), folder

    def _members(self, name: str, counts: Sequence[int], batch: int) -> Curve:
        """Measure ensembles of 1, 2 and more copies of one member, which all cost the same."""
        ensemble = ENSEMBLES[name]
        spec, folder = self._spec(ensemble)
        images = _decoded(ensemble.images(batch, 1))
        points = {}
        for count in counts:
            members = tuple(replace(spec.members[0], name=f"m{i}") for i in range(count))
            runtime = Runtime.load(replace(spec, members=members), folder, CPU, self._pool)
            points[count] = measure(partial(runtime.run, images), self._seconds)
        return Curve(f"{spec.members[0].name}, batch {batch}", "members", points)

    def _batches(self, name: str, sizes: Sequence[int]) -> Curve:
        """Measure an ensemble with batches of different sizes."""
        ensemble = ENSEMBLES[name]
        spec, folder = self._spec(ensemble)
        runtime = Runtime.load(spec, folder, CPU, self._pool)
        images = _decoded(ensemble.images(max(sizes), 1))
        points = {
            size: measure(partial(runtime.run, images[:size]), self._seconds) for size in sizes
        }
        return Curve(f"{len(spec.members)} members of '{name}'", "samples in a batch", points)

    def _image_sizes(self, sides: Sequence[int]) -> Curve:
        """Measure the decoding of JPEG files of different sizes and their resizing for a member."""
        ensemble = ENSEMBLES["three"]
        spec, _ = self._spec(ensemble)
        preprocessor = Preprocessor(spec.preprocessing_of(spec.members[0]), CPU)
        whole = Image.open(io.BytesIO(ensemble.images(1, 1)[0]))
        points = {}
        for side in sides:
            target = io.BytesIO()
            whole.resize((side, side)).save(target, "JPEG", quality=90)
            file = target.getvalue()

            def work(file: bytes = file) -> None:
                preprocessor(_decoded([file]))

            points[side * side] = measure(work, self._seconds)
        return Curve("decoding and resizing one image", "pixels of the image", points)


def _decoded(files: Sequence[bytes]) -> list[Tensor]:
    return [decode_image(file, max_pixels=_MAX_PIXELS) for file in files]


def write(curves: Sequence[Curve], folder: Path) -> Path:
    """Write a JSON file, a Markdown file and a plot, and return the path of the Markdown file."""
    measured_on = machine.machine()
    stem = folder / f"{measured_on['date']}-scaling"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": measured_on,
        "curves": [{**asdict(c), "slope": c.slope, "last_slope": c.last_slope} for c in curves],
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["# Scaling", "", machine.describe(measured_on), ""]
    lines += ["| what | grows | ms | slope | last slope |", "| --- | --- | --- | --- | --- |"]
    for curve in curves:
        points = ", ".join(f"{x}: {ms:g}" for x, ms in curve.points.items())
        lines.append(
            f"| {curve.name} | {curve.grows} | {points} | {curve.slope:.2f} | "
            f"{curve.last_slope:.2f} |"
        )
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    _draw(curves, stem.with_suffix(".svg"), machine.describe(measured_on))
    return stem.with_suffix(".md")


def _draw(curves: Sequence[Curve], path: Path, caption: str) -> None:
    """Draw a panel with logarithmic axes for each quantity that grows, in an SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(curve.grows for curve in curves))
    figure, panels = pyplot.subplots(
        1, len(kinds), figsize=(4 * len(kinds), 4), squeeze=False, layout="constrained"
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        for curve in curves:
            if curve.grows == kind:
                label = f"{curve.name}, slope {curve.slope:.2f}"
                panel.plot(list(curve.points), list(curve.points.values()), "o-", label=label)
        panel.set(xscale="log", yscale="log", xlabel=kind, ylabel="ms")
        panel.legend(fontsize=7)
    figure.suptitle(caption, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure all curves, and write them to files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1, help="length of each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        curves = []
        for curve in Scaling(Path(temporary), options.seconds).run():
            curves.append(curve)
            print(f"{curve.name}, {curve.grows}: {dict(curve.points)}, slope {curve.slope:.2f}")
    print(f"written: {write(curves, options.output).name}")


if __name__ == "__main__":
    main()
