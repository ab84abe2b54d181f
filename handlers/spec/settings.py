"""The sections of a spec that say how the whole ensemble decides, runs and is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .value_types import UNKNOWN_KEYS_ARE_ERRORS, Name, PositiveNumber


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Policies:
    """How the members' scores are combined into one answer."""

    default: Annotated[str, Field(description="The policy of requests that do not choose one")] = (
        "mean"
    )
    allowed: Annotated[
        tuple[str, ...] | None,
        Field(
            description="Names of the policies that a client may choose; 'expression' stands for "
            "policy expressions. Left out: all. The default policy is always allowed"
        ),
    ] = None
    named: Annotated[
        Mapping[Name, str],
        Field(
            description="Further names for policies, e.g. `high-sensitivity: any`; a client may "
            "choose them like any other policy"
        ),
    ] = field(default_factory=dict)
    fitted: Annotated[
        Mapping[Name, str],
        Field(
            description="Files with the parameters of policies that are learned from data: the "
            "name by which a policy refers to a file, and the file's path. `ts-ensemble tune` "
            "writes such files"
        ),
    ] = field(default_factory=dict)
    lazy: Annotated[
        bool,
        Field(
            description="Run only as many members as a decision needs, unless a request says "
            "otherwise. The decisions are the same; answers do not list the members"
        ),
    ] = False
    client_overrides: Annotated[
        bool,
        Field(
            description="Whether a client may choose members, voting weights and the members' "
            "thresholds for its request"
        ),
    ] = True


class Precision(StrEnum):
    """The number format in which members compute matrix products and convolutions."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"
    INT8 = "int8"


class Engine(StrEnum):
    """What computes the members."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"
    AOT_INDUCTOR = "aot_inductor"


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Runtime:
    """How the worker computes the members."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(
            description="Where the members run. auto: on the GPU that TorchServe assigns to the "
            "worker, or on the CPU if it assigns none"
        ),
    ] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="Number format of the arithmetic. auto: bfloat16 if the device is fast "
            "with it and every member's scores stay within `tolerance`, otherwise float32. "
            "bfloat16: as auto, but the ensemble does not load where bfloat16 cannot be used. "
            "int8: the build quantizes each member for OpenVINO, calibrated on the images of "
            "--samples; members that become faster and stay within `tolerance` use int8, the "
            "others run as with auto. With labelled images (build --data) auto tries int8 too, and "
            "`max_metric_loss` decides about bfloat16 and int8"
        ),
    ] = Precision.FLOAT32
    tolerance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="The largest allowed difference between a score of a member that runs "
            "with another engine or in lower precision, and its score as it was saved",
        ),
    ] = 0.01
    max_metric_loss: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Used with build --data: lower precision is kept if at most this share of "
            "all images is decided wrong by the default policy because of it, at 95 % confidence "
            "on the labelled images",
        ),
    ] = 0.005
    engine: Annotated[
        Engine,
        Field(
            description="What computes the members. auto: the build converts each member for "
            "OpenVINO, which computes on the CPU, and keeps a conversion if it is faster and its "
            "scores stay within `tolerance`; all other members, and all members on a GPU, run with "
            "torch. torch: all "
            "members run with torch as they were saved. openvino: the build fails if a member "
            "cannot run with OpenVINO. aot_inductor: for a GPU, the build compiles the members "
            "with torch's AOTInductor, for machines like the build machine; it needs a C++ "
            "compiler"
        ),
    ] = Engine.AUTO
    threads: Annotated[
        int | None,
        Field(
            ge=1,
            description="CPU threads of each worker; left out: the machine's cores divided by the "
            "number of workers",
        ),
    ] = None
    score_cache_mb: Annotated[
        int,
        Field(
            ge=0,
            description="Memory of each worker, in MB, that keeps the scores of recent images, so "
            "that an image which comes again runs no members; 0: no cache",
        ),
    ] = 0
    micro_batch: Annotated[
        int,
        Field(
            ge=1,
            description="The largest number of samples that a member computes in one call; larger "
            "batches are split. A smaller number needs less memory",
        ),
    ] = 64


class OnFailure(StrEnum):
    """What happens to a request when a member fails or is late."""

    FAIL = "fail"
    DROP = "drop"
    NEUTRAL = "neutral"


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Failures:
    """What happens when a member raises an error, returns NaN or infinity, or starts too late."""

    on_failure: Annotated[
        OnFailure,
        Field(
            description="fail: the request gets an error. drop: the policy decides with the "
            "remaining members, as if the ensemble had no others. neutral: the policy decides "
            "with the remaining members, but at_least and majority still require the votes that "
            "they require of all members. With drop and neutral the answer lists the missing "
            "members"
        ),
    ] = OnFailure.FAIL
    min_members: Annotated[
        int,
        Field(
            ge=1,
            description="With drop or neutral: the request gets an error if fewer members than "
            "this remain",
        ),
    ] = 1
    deadline_ms: Annotated[
        PositiveNumber | None,
        Field(
            description="A member is late if it has not started this many milliseconds after the "
            "request reached the worker; left out: no member is ever late"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Limits:
    """Bounds on one request. A request that exceeds one is answered with status 413."""

    max_samples: Annotated[int, Field(ge=1, description="Number of samples in one request")] = 256
    max_request_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Bytes of all parts of one request together (the default is 100 MiB). "
            "TorchServe applies its own max_request_size first",
        ),
    ] = 100 * 1024**2
    max_unpacked_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Bytes that all archives and compressed bodies of one request unpack to, "
            "together, including archive headers and padding (the default is 128 MiB). Bytes "
            "packed with bzip2 count four times and those packed with xz twice, because unpacking "
            "them takes that much longer",
        ),
    ] = 128 * 1024**2
    max_json_values: Annotated[
        int,
        Field(
            ge=1,
            description="Numbers, texts, lists and objects in the JSON of one request. Each takes "
            "about 60 bytes of memory: large tensors are better sent as binary data",
        ),
    ] = 3_000_000
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Width times height of one image, checked before it is decoded. Decoding "
            "takes up to 7 bytes of memory for each pixel (9 for gray images of 32 bits). "
            "AVIF needs twice and WebP and JPEG 2000 need three times as much memory, so their "
            "pixels count twice and three times",
        ),
    ] = 37_000_000
    max_request_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Pixels of all images of one request together, checked before they are "
            "decoded. Pixels of formats that take longer to decode count several times",
        ),
    ] = 200_000_000
    max_response_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="Bytes of the answer to one request (the default is 32 MiB). TorchServe's "
            "own max_response_size must be at least as large: it restarts a worker whose answer "
            "exceeds it",
        ),
    ] = 32 * 1024**2


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Serving:
    """What TorchServe reads at registration, from the archive's model-config.yaml."""

    workers: Annotated[
        int,
        Field(
            ge=1,
            description="Number of worker processes; each holds a full copy of the ensemble",
        ),
    ] = 1
    batch_size: Annotated[
        int, Field(ge=1, description="The largest number of requests in one batch")
    ] = 32
    max_batch_delay_ms: Annotated[
        int,
        # TorchServe reads 0 as "not set" and then waits for 100 ms.
        Field(
            ge=1,
            description="How long TorchServe waits for further requests to fill a batch, in "
            "milliseconds",
        ),
    ] = 3
    response_timeout_s: Annotated[
        int,
        Field(
            ge=1,
            description="TorchServe restarts a worker that has not answered after this many "
            "seconds",
        ),
    ] = 60
    startup_timeout_s: Annotated[
        int,
        Field(ge=1, description="How long a worker may take to load the ensemble, in seconds"),
    ] = 180
