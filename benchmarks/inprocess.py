"""What the members take without a server: the bound that no server can pass, with its parts.

Run in a process of its own: ``python -m benchmarks.inprocess ENSEMBLE --folder FOLDER``, where the
folder has the weights; the result is JSON on the standard output.
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
from torchserve_ensemble.handlers.spec import load_spec

from .ensembles import ENSEMBLES, Ensemble

BATCHES = (1, 2, 8, 16, 32)
_MOST_PIXELS = 10**8


def measure(work: Callable[[], object], seconds: float) -> float:
    """Median milliseconds, after one call that is not counted."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 2)


class InProcess:
    """All forms of one ensemble on one batch after the other."""

    def __init__(self, ensemble: Ensemble, folder: Path, seconds: float) -> None:
        self._ensemble = ensemble
        self._folder = folder
        self._seconds = seconds
        self._images = ensemble.images(max(BATCHES), 1)
        self.found: list[dict[str, object]] = []

    @torch.inference_mode()
    def run(self, archives: Sequence[Path]) -> None:
        """Every form at every batch size."""
        modules = {n: self._ensemble.load(n, self._folder) for n in self._ensemble.members}
        self._plain("eager float32", modules, torch.contiguous_format)
        for name, module in modules.items():
            for size in BATCHES:
                batch = self._ensemble.batch(self._images[:size])
                self._add(f"{name}, forward", size, partial(module, batch))
        for module in modules.values():
            # torchvision's members are modules that take either layout.
            module.to(memory_format=torch.channels_last)
        self._plain("eager float32, channels last", modules, torch.channels_last)
        for archive in archives:
            self._ours(archive)

    def _plain(self, what: str, modules: dict[str, nn.Module], layout: torch.memory_format) -> None:
        def forward(batch: Tensor) -> None:
            inputs = batch.contiguous(memory_format=layout)
            for module in modules.values():
                module(inputs)

        def from_decoded(images: Sequence[Image.Image]) -> None:
            forward(torch.stack([self._ensemble.transform(image) for image in images]))

        def from_files(files: Sequence[bytes]) -> None:
            forward(self._ensemble.batch(files))

        for size in BATCHES:
            files = self._images[:size]
            opened = [_opened(file) for file in files]
            self._add(f"{what}, forward", size, partial(forward, self._ensemble.batch(files)))
            self._add(f"{what}, decoded images", size, partial(from_decoded, opened))
            self._add(f"{what}, image files", size, partial(from_files, files))

    def _ours(self, archive: Path) -> None:
        """Our runtime with what a worker gets: the unpacked archive."""
        with tempfile.TemporaryDirectory() as temporary:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(temporary)
            folder = Path(temporary) / ENSEMBLE
            spec = load_spec(Path(temporary) / SPEC)
            # As a worker that has the machine for itself.
            pool = ThreadPool(torch.get_num_threads())
            cpu, compiled = torch.device("cpu"), spec.runtime.compile
            runtime = Runtime.load(spec, folder, cpu, pool, compiled=compiled)

            def from_files(files: Sequence[bytes]) -> None:
                runtime.run(pool.map(_decode, files))

            what = f"our runtime, {spec.runtime.precision}"
            what += ", compiled" if spec.runtime.compile else ""
            for size in BATCHES:
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
        self.found.append({"what": what, "batch": batch, "ms": measure(work, self._seconds)})


def _executables_of(runtime: Runtime) -> dict[str, Executable]:
    """What the runtime calls for all members: joint executables, and those of the other members."""
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


def _opened(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def _decode(file: bytes) -> Tensor:
    return decode_image(file, max_pixels=_MOST_PIXELS)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inprocess", description=__doc__)
    parser.add_argument("ensemble", choices=ENSEMBLES)
    parser.add_argument("--folder", type=Path, required=True, help="with the weights")
    parser.add_argument("--archives", type=Path, nargs="*", default=[], help="of the ensemble")
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement")
    options = parser.parse_args()
    work = InProcess(ENSEMBLES[options.ensemble], options.folder, options.seconds)
    work.run(options.archives)
    print(json.dumps(work.found))


if __name__ == "__main__":
    main()
