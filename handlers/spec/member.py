"""One entry of `members` in a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from ..base.errors import SpecError
from ..base.own_code import file_of
from .preprocessing import Preprocessing
from .provenance import MemberProvenance
from .value_types import (
    UNKNOWN_KEYS_ARE_ERRORS,
    Name,
    OwnFunctionName,
    PositiveNumber,
    Probability,
)


class WeightsFormat(StrEnum):
    """How a member's weights file is read."""

    SAFETENSORS = "safetensors"
    STATE_DICT = "state_dict"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "exported"
    ONNX = "onnx"


_FORMAT_OF_SUFFIX = {
    ".safetensors": WeightsFormat.SAFETENSORS,
    ".pt2": WeightsFormat.EXPORTED,
    ".onnx": WeightsFormat.ONNX,
}


class Output(StrEnum):
    """What the numbers are that a member's forward, or its `postprocess`, returns."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


def _preprocessing_tag(value: Any) -> str:
    """Tell pydantic whether a member names its preprocessing or has the settings inline."""
    return "name" if isinstance(value, str) else "inline"


NamedOrInlinePreprocessing = Annotated[
    Annotated[str, Tag("name")] | Annotated[Preprocessing, Tag("inline")],
    Discriminator(_preprocessing_tag),
]
"""Name of preprocessing settings or of torchvision weights, or the settings themselves."""


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Member:
    """One model of the ensemble."""

    name: Annotated[
        Name, Field(description="Unique name, by which answers, policies and options call it")
    ]
    weights: Annotated[
        str, Field(description="The file with the weights; its path starts at the spec's folder")
    ]
    architecture: Annotated[
        str | None,
        Field(
            description="The network that the weights belong to: torchvision.models.NAME, or "
            "FILE.py:CLASS with the file's path from the spec's folder. Files in the formats "
            "torchscript, exported and onnx contain their network: leave the key out"
        ),
    ] = None
    arguments: Annotated[
        Mapping[str, Any],
        Field(description="Keyword arguments that `architecture` is called with"),
    ] = field(default_factory=dict)
    format: Annotated[
        WeightsFormat | None,
        Field(description="Format of `weights`; left out: as the ending of the file name says"),
    ] = None
    preprocessing: Annotated[
        NamedOrInlinePreprocessing | None,
        Field(
            description="A name from the ensemble's `preprocessing`, the name of torchvision "
            "weights, or the settings themselves; left out: the only entry of the ensemble's "
            "`preprocessing`"
        ),
    ] = None
    postprocess: Annotated[
        OwnFunctionName | None,
        Field(
            description="A function of your own, FILE.py:FUNCTION beside the spec, for a network "
            "whose forward returns more than the labels' outputs, or in another order. It takes "
            "what forward returned for N samples (a tensor, a dict, a tuple ...; the outputs of an "
            "ONNX model with several are a dict by name) and returns a float tensor (N, labels); "
            "`output` says what its numbers are"
        ),
    ] = None
    output: Annotated[
        Output | None,
        Field(
            description="What the network's forward, or `postprocess`, returns; left out: logits, "
            "or values if the task is regression"
        ),
    ] = None
    voting_weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="How much the member counts in weighted policies"),
    ] = 1.0
    temperature: Annotated[
        PositiveNumber,
        Field(
            description="Logits are divided by this number before they become probabilities "
            "(temperature scaling, Guo et al. 2017); above 1 the member is less confident"
        ),
    ] = 1.0
    threshold: Annotated[
        Probability | Mapping[str, Probability] | None,
        Field(
            description="The member votes for a label if its score is at least this: one number "
            "for all labels, or one by label. For the tasks presence and multilabel; left out: "
            "the ensemble's threshold"
        ),
    ] = None
    provenance: Annotated[MemberProvenance, Field(description="Where the member comes from")] = (
        field(default_factory=MemberProvenance)
    )

    @property
    def weights_format(self) -> WeightsFormat:
        """The key `format`; if that is left out, the format that the file name's ending stands for.

        Raises:
            SpecError: the key is left out, and the ending stands for no format.
        """
        if self.format is not None:
            return self.format
        suffix = PurePosixPath(self.weights).suffix
        if suffix in {".pt", ".pth"}:
            return WeightsFormat.STATE_DICT if self.architecture else WeightsFormat.TORCHSCRIPT
        if suffix not in _FORMAT_OF_SUFFIX:
            raise SpecError(
                f"member '{self.name}': cannot tell the format of {self.weights}; "
                f"set format to one of {', '.join(WeightsFormat)}"
            )
        return _FORMAT_OF_SUFFIX[suffix]

    @property
    def architecture_file(self) -> str | None:
        """Path, from the spec's folder, of the user's Python file that defines the architecture.

        None if the architecture is torchvision's, or part of the weights file.
        """
        return file_of(self.architecture or "")

    @property
    def postprocess_file(self) -> str | None:
        """Path, from the spec's folder, of the file that defines `postprocess`; None if unset."""
        return file_of(self.postprocess or "")
