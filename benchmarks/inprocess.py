"""Measures how fast the members are without a server: a bound for every server that runs them.

``python -m benchmarks.inprocess ENSEMBLE --folder FOLDER`` measures in a process of its own and
prints JSON. The folder must contain the members' weights.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from torchserve_ensemble.handlers.base.archive_layout import ENSEMBLE, SPEC
from torchserve_ensemble.handlers.base.threads import ThreadPool
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.members.executable import Executable
from torchserve_ensemble.handlers.spec import Engine, load_spec

from .ensembles import ENSEMBLES, Ensemble

BATCH_SIZES = (1, 2, 8, 16, 32)
_MAX_PIXELS = 10**8


def measure(work: Callable[[], object], seconds: float) -> float:
    """Call a function again and again, and return the median milliseconds of a call.

    Args:
        work: the function. Its first call is not counted.
        seconds: time after which no further call begins.
    """
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 2)


class InProcess:
    """Measures one ensemble: a plain loop over its members, and our runtime with archives of it.

    Attributes:
        results: for each measurement the keys ``what`` (name of what was measured), ``batch``
            (number of samples) and ``ms`` (median milliseconds of a call).
    """

    def __init__(self, ensemble: Ensemble, folder: Path, seconds: float) -> None:
        self._ensemble = ensemble
        self._folder = folder
        self._seconds = seconds
        self._images = ensemble.images(max(BATCH_SIZES), 1)
        self.results: list[dict[str, object]] = []

    @torch.inference_mode()
    def run(self, archives: Sequence[Path]) -> None:
        """Measure everything at every batch size.

        Args:
            archives: archives of the ensemble, each with its own settings.
        """
        modules = {n: self._ensemble.load(n, self._folder) for n in self._ensemble.members}
        self._plain("eager float32", modules, torch.contiguous_format)
        for name, module in modules.items():
            for size in BATCH_SIZES:
                batch = self._ensemble.batch(self._images[:size])
                self._add(f"{name}, forward", size, partial(module, batch))
        for module in modules.values():
            # torchvision's members compute with either memory layout.
            module.to(memory_format=torch.channels_last)
        self._plain("eager float32, channels last", modules, torch.channels_last)
        for archive in archives:
            self._ours(archive)

    def _plain(self, what: str, modules: dict[str, nn.Module], layout: torch.memory_format) -> None:
        """Measure a loop that runs one member after another.

        Args:
            what: name of the loop in the results.
            modules: the members.
            layout: memory layout of the members' inputs.
        """

        def forward(batch: Tensor) -> None:
            inputs = batch.contiguous(memory_format=layout)
            for module in modules.values():
                module(inputs)

        def from_decoded(images: Sequence[Image.Image]) -> None:
            forward(torch.stack([self._ensemble.transform(image) for image in images]))

        def from_files(files: Sequence[bytes]) -> None:
            forward(self._ensemble.batch(files))

        for size in BATCH_SIZES:
            files = self._images[:size]
            decoded = [_decode_with_pillow(file) for file in files]
            self._add(f"{what}, forward", size, partial(forward, self._ensemble.batch(files)))
            self._add(f"{what}, decoded images", size, partial(from_decoded, decoded))
            self._add(f"{what}, image files", size, partial(from_files, files))

    def _ours(self, archive: Path) -> None:
        """Measure our runtime as a worker has it: from the extracted archive."""
        with tempfile.TemporaryDirectory() as temporary:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(temporary)
            folder = Path(temporary) / ENSEMBLE
            spec = load_spec(Path(temporary) / SPEC)
            # As many threads as a worker takes if no other worker runs on the machine.
            pool = ThreadPool(torch.get_num_threads())
            cpu, compiled = torch.device("cpu"), spec.runtime.engine is not Engine.TORCH
            runtime = Runtime.load(spec, folder, cpu, pool, compiled=compiled)

            def from_files(files: Sequence[bytes]) -> None:
                runtime.run(pool.map(_decode, files))

            what = f"our runtime, {spec.runtime.precision}, engine {spec.runtime.engine}"
            for size in BATCH_SIZES:
                files = self._images[:size]
                decoded = [_decode(file) for file in files]
                inputs = [*self._ensemble.batch(files)]
                self._add(f"{what}, forward", size, partial(runtime.run, inputs))
                batch = torch.stack(inputs)
                for name, executable in _executables_of(runtime).items():
                    self._add(f"{what}: {name} alone", size, partial(executable, batch))
                self._add(f"{what}, decoded images", size, partial(runtime.run, decoded))
                self._add(f"{what}, image files", size, partial(from_files, files))

    def _add(self, what: str, batch: int, work: Callable[[], object]) -> None:
        """Measure a function for a batch of a size, and add the result."""
        self.results.append({"what": what, "batch": batch, "ms": measure(work, self._seconds)})


def _executables_of(runtime: Runtime) -> dict[str, Executable]:
    """Name the executables that run for all members: the joint ones, and one for each other member.

    A joint executable computes several members in one call.
    """
    executables = runtime.executables
    in_joint = {position for joint in executables.joint for position in joint.members}
    named: dict[str, Executable] = {
        f"{len(joint.members)} members as one": joint for joint in executables.joint
    }
    singles = zip(runtime.spec.members, executables.single, strict=True)
    return named | {
        member.name: single
        for position, (member, single) in enumerate(singles)
        if position not in in_joint
    }


def _decode_with_pillow(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def _decode(file: bytes) -> Tensor:
    return decode_image(file, max_pixels=_MAX_PIXELS)


def main() -> None:
    """Measure, and print the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inprocess", description=__doc__)
    parser.add_argument("ensemble", choices=ENSEMBLES)
    parser.add_argument("--folder", type=Path, required=True, help="folder with the weights")
    parser.add_argument(
        "--archives", type=Path, nargs="*", default=[], help="archives of the ensemble"
    )
    parser.add_argument("--seconds", type=float, default=1, help="length of each measurement")
    options = parser.parse_args()
    in_process = InProcess(ENSEMBLES[options.ensemble], options.folder, options.seconds)
    in_process.run(options.archives)
    print(json.dumps(in_process.results))


if __name__ == "__main__":
    main()
