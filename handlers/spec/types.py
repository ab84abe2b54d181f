"""What an ensemble is: the dataclasses that describe ensemble.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from ..base.errors import SpecError
from ..base.own_code import file_of
from ..base.tasks import Task

_STRICT = ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=False)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(gt=0, le=16384)]


class WeightsFormat(StrEnum):
    """How a member's weights file is read."""

    SAFETENSORS = "safetensors"
    STATE_DICT = "state_dict"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "exported"
    ONNX = "onnx"


class Output(StrEnum):
    """What a member's forward returns."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


class Color(StrEnum):
    """Channels that a member sees."""

    RGB = "rgb"
    GRAYSCALE = "grayscale"


class Interpolation(StrEnum):
    """How an image is resized; the names are those of torchvision."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class ResizeLibrary(StrEnum):
    """Whose arithmetic resizes an image."""

    TORCH = "torch"
    PILLOW = "pillow"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Preprocessing:
    """From a decoded image to a member's input. Steps run in the order of the keys."""

    weights: Annotated[
        str | None,
        Field(
            description="Take everything from torchvision weights, e.g. ResNet18_Weights.DEFAULT"
        ),
    ] = None
    function: Annotated[
        str | None,
        Field(
            pattern=r"^[^:]+\.py:[A-Za-z_][A-Za-z_0-9]*$",
            description="FILE.py:FUNCTION relative to the spec, instead of all other keys but "
            "shape: takes the pixels of one image, a uint8 tensor (3, height, width), and returns "
            "the member's input, a float tensor of `shape`",
        ),
    ] = None
    shape: Annotated[
        tuple[Size, Size, Size] | None,
        Field(description="Channels, height and width of what `function` returns"),
    ] = None
    color: Annotated[Color, Field(description="Channels that the member sees")] = Color.RGB
    resize: Annotated[
        Size | tuple[Size, Size] | None,
        Field(description="Shorter side, or [height, width], in pixels"),
    ] = None
    letterbox: Annotated[
        int | None,
        Field(
            ge=0,
            le=255,
            description="With resize [height, width]: the image keeps its proportions, lies in the "
            "middle, and the rest has this level (0 is black; YOLO trains with 114). Left out: the "
            "image is stretched",
        ),
    ] = None
    crop: Annotated[
        Size | tuple[Size, Size] | None,
        Field(description="Side of a centred square, or [height, width], in pixels"),
    ] = None
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: Annotated[bool, Field(description="Low-pass filter when shrinking")] = True
    resize_library: Annotated[
        ResizeLibrary,
        Field(
            description="torch resizes as torchvision does tensors; pillow as it does PIL images, "
            "which most training code loads. Pixels differ by at most 1 of 255"
        ),
    ] = ResizeLibrary.TORCH
    value_range: Annotated[
        tuple[Finite, Finite], Field(description="What black and white (0 and 255) become")
    ] = (0.0, 1.0)
    mean: Annotated[
        tuple[Finite, ...] | None, Field(description="Subtracted per channel, after value_range")
    ] = None
    std: Annotated[
        tuple[Positive, ...] | None, Field(description="Divides per channel, after mean")
    ] = None

    @property
    def channels(self) -> int:
        """1 for grayscale, 3 for RGB, or those that the user's function returns."""
        if self.shape is not None:
            return self.shape[0]
        return 1 if self.color is Color.GRAYSCALE else 3

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the result in pixels; None if they depend on the image."""
        if self.shape is not None:
            return self.shape[1:]
        if self.crop is not None:
            return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        return self.resize if isinstance(self.resize, tuple) else None


def _preprocessing_kind(value: Any) -> str:
    return "name" if isinstance(value, str) else "inline"


PreprocessingChoice = Annotated[
    Annotated[str, Tag("name")] | Annotated[Preprocessing, Tag("inline")],
    Discriminator(_preprocessing_kind),
]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Member:
    """One model of the ensemble."""

    name: Annotated[Name, Field(description="Unique; used in answers and policies")]
    weights: Annotated[str, Field(description="File, relative to the spec")]
    architecture: Annotated[
        str | None,
        Field(
            description="torchvision.models.NAME, or FILE.py:CLASS relative to the spec; "
            "not for torchscript, exported and onnx, which carry their own"
        ),
    ] = None
    arguments: Annotated[
        Mapping[str, Any], Field(description="Keyword arguments of the architecture")
    ] = field(default_factory=dict)
    format: Annotated[
        WeightsFormat | None, Field(description="Read off the file's name if left out")
    ] = None
    preprocessing: Annotated[
        PreprocessingChoice | None,
        Field(
            description="A name from the top-level `preprocessing`, the name of torchvision "
            "weights, or the settings themselves; left out: the ensemble's only one"
        ),
    ] = None
    output: Annotated[
        Output | None,
        Field(description="What forward returns; default logits, for regression values"),
    ] = None
    voting_weight: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    temperature: Annotated[
        Positive, Field(description="Logits are divided by it (Guo et al. 2017)")
    ] = 1.0
    threshold: Annotated[
        Probability | Mapping[str, Probability] | None,
        Field(
            description="The member votes for a label from this score on, for all labels or "
            "by label; presence and multilabel; default the ensemble's threshold"
        ),
    ] = None

    @property
    def weights_format(self) -> WeightsFormat:
        """The declared format, else the one that the file's ending stands for.

        Raises:
            SpecError: the ending stands for none.
        """
        if self.format is not None:
            return self.format
        suffix = PurePosixPath(self.weights).suffix
        if suffix in {".pt", ".pth"}:
            return WeightsFormat.STATE_DICT if self.architecture else WeightsFormat.TORCHSCRIPT
        by_suffix = {
            ".safetensors": WeightsFormat.SAFETENSORS,
            ".pt2": WeightsFormat.EXPORTED,
            ".onnx": WeightsFormat.ONNX,
        }
        if suffix not in by_suffix:
            raise SpecError(
                f"member '{self.name}': cannot tell the format of {self.weights}; "
                f"set format to one of {', '.join(WeightsFormat)}"
            )
        return by_suffix[suffix]

    @property
    def architecture_file(self) -> str | None:
        """The user's .py file that defines the architecture, relative to the spec."""
        file, separator, _ = (self.architecture or "").partition(".py:")
        return f"{file}.py" if separator else None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Policies:
    """How the members' outputs become one answer."""

    default: Annotated[str, Field(description="Policy of a request that names none")] = "mean"
    allowed: Annotated[
        tuple[str, ...] | None,
        Field(
            description="Policies that a client may choose, by name ('expression' for "
            "expressions); left out: all. The default is always allowed"
        ),
    ] = None
    named: Annotated[
        Mapping[Name, str],
        Field(description="The deployment's own names, e.g. high-sensitivity: any"),
    ] = field(default_factory=dict)
    fitted: Annotated[
        Mapping[Name, str],
        Field(
            description="Name -> file of a fitted model, for the policies that need one; "
            "`ts-ensemble tune` writes them"
        ),
    ] = field(default_factory=dict)
    lazy: Annotated[
        bool,
        Field(
            description="Requests that do not say run no more members than their decision needs; "
            "decisions stay the same, answers have no members"
        ),
    ] = False
    client_overrides: Annotated[
        bool, Field(description="Clients may choose members, weights and thresholds")
    ] = True


class Precision(StrEnum):
    """Numbers that matrix products and convolutions are computed with."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"
    INT8 = "int8"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Runtime:
    """How the worker computes."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="auto: the GPU that TorchServe assigns to the worker, else the CPU"),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="auto: bfloat16 where the device is fast with it and each member's scores "
            "stay within tolerance; bfloat16: the same, or the ensemble does not load; int8: "
            "calibrated at build on --samples (compile: true), for members whose scores stay "
            "within tolerance and that are faster so, the others as with auto"
        ),
    ] = Precision.FLOAT32
    tolerance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Most that a member's scores may differ, in reduced precision or compiled, "
            "from those of the member as it was saved",
        ),
    ] = 0.01
    compile: Annotated[
        bool,
        Field(
            description="Compile the members at build, for machines like the build machine; "
            "it needs a C++ compiler there. Elsewhere the worker runs them as they were saved"
        ),
    ] = False
    threads: Annotated[
        int | None,
        Field(ge=1, description="Intra-op CPU threads; left out: cores divided by workers"),
    ] = None
    score_cache_mb: Annotated[
        int,
        Field(
            ge=0,
            description="Memory in each worker for the scores of images seen before, in MB, so "
            "that repeats run no members; 0: none",
        ),
    ] = 0
    micro_batch: Annotated[
        int, Field(ge=1, description="Most samples computed at once; bounds the worker's memory")
    ] = 64


class OnFailure(StrEnum):
    """What a member that fails, or is late, does to a request."""

    FAIL = "fail"
    DROP = "drop"
    NEUTRAL = "neutral"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Failures:
    """What happens when a member raises, gives NaN or infinity, or has not run in time."""

    on_failure: Annotated[
        OnFailure,
        Field(
            description="fail: the request is refused; drop: the policy runs over the other "
            "members; neutral: the same, but at_least and majority ask for as many votes as "
            "before. The answer says which members are missing"
        ),
    ] = OnFailure.FAIL
    min_members: Annotated[
        int,
        Field(ge=1, description="With drop or neutral: fewer members than this refuse the request"),
    ] = 1
    deadline_ms: Annotated[
        Positive | None,
        Field(
            description="A member that has not begun this long after the request reached the "
            "worker is late, in milliseconds; left out: no deadline"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Limits:
    """Bounds on one request; a request beyond them is answered with 413."""

    max_samples: Annotated[int, Field(ge=1, description="Samples in one request")] = 256
    max_request_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="All parts of one request; TorchServe's own max_request_size comes first",
        ),
    ] = 100 * 1024**2
    max_unpacked_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="What all archives and compressed bodies of one request unpack to, "
            "together, their headers and padding included; bytes that bzip2 packed count four "
            "times and those of xz twice, since they take so much longer",
        ),
    ] = 128 * 1024**2
    max_json_values: Annotated[
        int,
        Field(
            ge=1,
            description="Numbers, texts, lists and objects in the JSON of one request; each takes "
            "some 60 bytes of memory, so send tensors as binary data",
        ),
    ] = 3_000_000
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Width times height of one image, before decoding; decoding takes up to 7 "
            "bytes of memory for each pixel; those of AVIF count twice, and those of WebP and "
            "JPEG 2000 three times, for their decoders take so much more",
        ),
    ] = 37_000_000
    max_request_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Pixels of all images of one request together, before decoding; those of "
            "formats that take longer to decode count several times",
        ),
    ] = 200_000_000
    max_response_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Answer to one request; TorchServe's own max_response_size must not be "
            "smaller, or it drops the worker",
        ),
    ] = 32 * 1024**2


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Serving:
    """What TorchServe is told at registration (the archive's model-config.yaml)."""

    workers: Annotated[int, Field(ge=1, description="Each holds a full copy of the ensemble")] = 1
    batch_size: Annotated[
        int, Field(ge=1, description="Requests that TorchServe may put into one batch")
    ] = 32
    max_batch_delay_ms: Annotated[
        int,
        # TorchServe takes 0 for "not set", which is 100 ms.
        Field(ge=1, description="Longest wait for the batch to fill, in milliseconds"),
    ] = 3
    response_timeout_s: Annotated[
        int, Field(ge=1, description="A worker silent for longer is restarted, in seconds")
    ] = 60
    startup_timeout_s: Annotated[
        int, Field(ge=1, description="Longest time to load the ensemble, in seconds")
    ] = 180


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Provenance:
    """Where the ensemble comes from; carried in the archive, shown by `inspect`."""

    owner: str | None = None
    created: Annotated[str | None, Field(description="Date, ISO 8601")] = None
    source_revision: str | None = None
    training_data: str | None = None
    training_data_version: str | None = None
    tuning_data: Annotated[
        str | None, Field(description="Digest of the data that policies were tuned on")
    ] = None
    url: str | None = None
    licence: str | None = None
    metrics: Annotated[
        Mapping[str, Mapping[str, float]], Field(description="Data set -> metric -> value")
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EnsembleSpec:
    """Several models behind one endpoint."""

    name: Annotated[Name, Field(description="The endpoint: /predictions/NAME")]
    version: Annotated[
        str,
        Field(pattern=r"^[0-9]+(\.[0-9]+)*$", description="Dotted numbers in quotes, e.g. '1.0'"),
    ]
    task: Task
    labels: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="In the order of the members' outputs; presence: [absent, present]; "
            "regression: the names of the outputs",
        ),
    ]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    description: str | None = None
    preprocessing: Annotated[
        Mapping[str, Preprocessing], Field(description="Settings that members name")
    ] = field(default_factory=dict)
    threshold: Annotated[
        Probability | Mapping[str, Probability],
        Field(description="Decision threshold on combined scores; presence and multilabel"),
    ] = 0.5
    policies: Policies = field(default_factory=Policies)
    runtime: Runtime = field(default_factory=Runtime)
    failures: Failures = field(default_factory=Failures)
    limits: Limits = field(default_factory=Limits)
    serving: Serving = field(default_factory=Serving)
    provenance: Provenance = field(default_factory=Provenance)
    extra_files: Annotated[
        tuple[str, ...],
        Field(
            description="Further files for the archive, relative to the spec, e.g. modules that "
            "FILE.py imports"
        ),
    ] = ()

    @property
    def score_labels(self) -> tuple[str, ...]:
        """Labels of the score columns: for presence the positive label alone."""
        return self.labels[1:] if self.task is Task.PRESENCE else self.labels

    def preprocessing_of(self, member: Member) -> Preprocessing:
        """The settings that a member uses, references resolved (not torchvision's weights)."""
        choice = member.preprocessing
        if isinstance(choice, Preprocessing):
            return choice
        if choice is None:
            return next(iter(self.preprocessing.values()))
        return self.preprocessing.get(choice) or Preprocessing(weights=choice)

    def output_of(self, member: Member) -> Output:
        """What a member's forward returns, with the default of the task."""
        default = Output.VALUES if self.task is Task.REGRESSION else Output.LOGITS
        return member.output or default

    def thresholds(self, member: Member | None = None) -> tuple[float, ...]:
        """One threshold for each of `score_labels`: a member's for its votes, or the ensemble's."""
        own = member.threshold if member is not None else None
        return tuple(
            _by_label(own, label, _by_label(self.threshold, label, 0.5))
            for label in self.score_labels
        )

    def files(self) -> tuple[str, ...]:
        """Every file that the spec names, relative to it, sorted, each once."""
        named = {member.weights for member in self.members}
        named |= {m.architecture_file for m in self.members if m.architecture_file is not None}
        named |= set(self.policies.fitted.values())
        inline = [member.preprocessing for member in self.members]
        for each in (*self.preprocessing.values(), *inline):
            if isinstance(each, Preprocessing) and each.function is not None:
                named |= {file_of(each.function) or each.function}
        return tuple(
            sorted({PurePosixPath(file).as_posix() for file in named | set(self.extra_files)})
        )


def _by_label(value: float | Mapping[str, float] | None, label: str, default: float) -> float:
    if value is None:
        return default
    return value.get(label, default) if isinstance(value, Mapping) else value
