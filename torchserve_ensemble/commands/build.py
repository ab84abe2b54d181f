"""The verb ``build``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..tuning.requirements import TUNING_MODULES, require_installed
from .completion import DEFAULT_MODEL_STORE
from .options import DATA_HELP
from .printing import reported_work, transfer_bar

if TYPE_CHECKING:
    from ..archiver.metric_proof import ProofMaker

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_NUM_CALIBRATION_IMAGES = 64
"""Images of --data on which int8 is calibrated if there is no --samples."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``build``."""
    build = subparsers.add_parser(
        "build",
        help="build a model archive from a spec",
        description="Build NAME-VERSION.mar from an ensemble spec, after loading and running every "
        "member once. The result is a plain TorchServe archive.",
    )
    build.add_argument("spec", type=Path, metavar="SPEC", help="the ensemble's YAML file")
    build.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        default=DEFAULT_MODEL_STORE,
        help="folder for the archive (default: %(default)s)",
    )
    build.add_argument(
        "--no-check",
        action="store_true",
        help="write the archive without loading and running the members first",
    )
    build.add_argument(
        "--samples",
        type=Path,
        metavar="FOLDER",
        help="images like those that will be sent: members that run with another engine than torch "
        "must answer on them as the saved ones do",
    )
    build.add_argument(
        "--keep-samples",
        type=int,
        metavar="N",
        default=0,
        help="put the first N images of --samples into the archive, as probes of its self-test; "
        "whoever has the archive or may describe the model can see them (default: none)",
    )
    build.add_argument(
        "--data",
        type=Path,
        help=f"labelled {DATA_HELP}: lower precision is kept only as far as they prove that the "
        "ensemble decides as well with it (runtime.max_metric_loss), and precision: auto tries "
        "int8, too; needs the extras int8 and tune",
    )
    build.add_argument(
        "--folder",
        action="store_true",
        help="write a folder instead of a .mar file, for development: after an edit in it only "
        "`ts-ensemble renew FOLDER` is needed. All members run as they were saved, with torch",
    )
    build.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from ..archiver.build import build_archive

    samples, make_proof = arguments.samples, None
    if arguments.data is not None:
        development, make_proof = _proof(arguments)
        samples = samples or development
    with ExitStack() as bar:
        report = bar.enter_context(reported_work(f"building {arguments.spec}"))
        bar_of_bytes: list[Callable[[int, int], None]] = []

        def on_bytes(num_bytes: int, total: int) -> None:
            if not bar_of_bytes:
                # A terminal shows one bar at a time.
                bar.close()
                bar_of_bytes.append(bar.enter_context(transfer_bar("writing the archive")))
            bar_of_bytes[0](num_bytes, total)

        archive = build_archive(
            arguments.spec,
            arguments.output,
            check=not arguments.no_check,
            samples=samples,
            kept_samples=arguments.keep_samples,
            make_proof=make_proof,
            report=report,
            as_folder=arguments.folder,
            on_bytes=on_bytes,
        )
    if archive.is_dir():
        print(f"{archive} is a folder; after an edit in it: ts-ensemble renew {archive}")
        return 0
    print(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


def _proof(arguments: argparse.Namespace) -> tuple[Sequence[Path], ProofMaker]:
    """Return the images of --data that nothing is proven with, and the maker of the proof.

    Raises:
        SpecError: the spec or the data have a mistake, there are too few images for a proof, or a
            package is missing.
    """
    require_installed(TUNING_MODULES, "build --data needs")
    from ..handlers.spec import load_spec
    from ..tuning.labelled_data import read_labelled
    from ..tuning.metric_loss import LabelledProof, split

    spec = load_spec(arguments.spec)
    data = read_labelled(arguments.data, spec)
    development, _ = split(spec, data)
    images = [data.paths[row] for row in development[:_NUM_CALIBRATION_IMAGES].tolist()]
    return images, partial(LabelledProof, data=data)
