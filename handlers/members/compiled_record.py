"""The record of compiled executables in an archive: their files, and the machine they are for.

``ts-ensemble build`` writes it unless the spec sets ``runtime.engine: torch``
(`archiver.compilation`). The worker reads it in `members.compiled`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..base.archive_layout import name_problem
from ..base.errors import ArchiveError
from ..spec import Engine
from .target import Target

FOLDER = "compiled"
"""The folder beside the spec with the libraries, the record and the saved members' outputs."""

RECORD = f"{FOLDER}/compiled.json"
"""The file with the `CompiledRecord`."""

OUTPUTS = f"{FOLDER}/outputs.safetensors"
"""The file with the saved members' raw outputs for the example inputs, by member name."""


@dataclass(frozen=True)
class CompiledExecutable:
    """One executable that the build made: its members and its files.

    Attributes:
        engine: name of the engine that runs the files, ``openvino`` or ``aot_inductor``.
        members: names of the members that the executable computes, in the spec's order.
        files: paths of the files, relative to the spec; the engine loads the first, which finds
            the others beside it.
        max_batch_size: largest number of samples that one call takes; None: any number.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        shape: shape of one sample, (channels, height, width).
        difference: largest difference between a score of the executable and the score of the saved
            member, measured at build.
        metric_loss: 95 % upper confidence bound of the share of images that the ensemble decides
            worse because of the executable, measured on labelled images; None if `difference` is
            within the spec's tolerance.
    """

    engine: str
    members: tuple[str, ...]
    files: tuple[str, ...]
    max_batch_size: int | None
    precision: str
    shape: tuple[int, ...]
    difference: float
    metric_loss: float | None = None

    def __post_init__(self) -> None:
        """Check what the JSON of an archive may get wrong.

        Raises:
            ValueError: the engine is unknown, or a file lies outside the folder of compiled
                executables.
        """
        if self.engine not in (Engine.OPENVINO, Engine.AOT_INDUCTOR):
            raise ValueError(f"there is no engine {self.engine[:100]!r}")
        if not self.members or not self.files:
            raise ValueError("an executable needs members and files")
        for file in self.files:
            if not file.startswith(f"{FOLDER}/") or name_problem(file) is not None:
                raise ValueError(f"{file[:100]!r} does not lie in {FOLDER}/")

    def tolerance(self, of_spec: float) -> float:
        """Return the largest difference from the saved members' scores at which it may run.

        An executable that labelled images have proven may differ by more than the spec allows. The
        factor leaves room for processors that round differently, and for other images.

        Args:
            of_spec: the tolerance of the spec.
        """
        return of_spec if self.metric_loss is None else max(of_spec, 2 * self.difference)


@dataclass(frozen=True)
class CompiledRecord:
    """The contents of `RECORD`.

    Attributes:
        target: the machine that machine code was compiled for. Models of OpenVINO are not machine
            code, and run elsewhere too.
        executables: all executables of the archive; those of several members come first.
    """

    target: Target
    executables: tuple[CompiledExecutable, ...]

    def to_json(self) -> str:
        """Write the record as the text of its file."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CompiledRecord:
        """Read the text of a record's file.

        Raises:
            ArchiveError: the text is no record that `to_json` wrote.
        """
        try:
            content: Any = json.loads(text)
            if content.keys() != {"target", "executables"}:
                raise ValueError(f"its keys are {', '.join(content)[:100]}")
            return cls(
                Target(**_with_tuples(content["target"])),
                tuple(CompiledExecutable(**_with_tuples(each)) for each in content["executables"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArchiveError(
                f"{RECORD} is damaged ({error!r}); build the archive again"
            ) from None


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists that JSON made of tuples back into tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
