"""Decodes samples: first all headers, then the pixels of a bounded number of images at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..base.errors import (
    EnsembleError,
    PreprocessingError,
    SampleError,
    TooLargeError,
    busy,
    reason,
    unforeseen,
)
from ..base.memory import return_free_memory
from ..base.threads import ThreadPool
from ..engine.member_inputs import Input
from ..engine.runtime import Runtime
from ..inputs.image_decoding import ImageDecoding
from ..inputs.image_header import too_large
from ..inputs.sample_errors import SampleErrors
from ..requests.bundles import Frame
from ..requests.parsing import Sample
from ..spec import Limits, Window

Argument = TypeVar("Argument")
Value = TypeVar("Value")

logger = logging.getLogger(__name__)

_MAX_PIXELS_AT_ONCE = 37_000_000
"""Images are decoded side by side up to this many pixels; a pixel takes up to 7 bytes."""

_LARGE_IMAGE_PIXELS = 8_000_000
"""After decoding a larger image, its memory is returned to the operating system.

Members' inputs are so small that the memory would otherwise stay unused.
"""


@dataclass(frozen=True)
class Opened:
    """A sample whose header was read and whose pixels are not decoded yet.

    Attributes:
        sample: the sample.
        pixels: number of pixels that are in memory during decoding; 0 if nothing is decoded.
        cost: time to decode and resize the sample, in pixels of a PNG file that take as long.
        decode: returns the pixels that a decoding of the ensemble gives; None if the client
            preprocessed the sample itself.
        preprocessed: the input that the client preprocessed itself, float32 (C, H, W).
    """

    sample: Sample
    pixels: int
    cost: int
    decode: Callable[[ImageDecoding], Tensor] | None
    preprocessed: Tensor | None = None


DecodeJob = tuple[Opened, Sequence[int]]
"""A sample, and the positions of the members that it is resized for."""

DecodeUnit = list[DecodeJob]
"""Jobs that one thread does one after the other: a single sample, or the frames of an animation."""


class Decoder:
    """Decodes samples on the threads of a pool and resizes each one right after decoding it."""

    def __init__(self, limits: Limits, runtime: Runtime, pool: ThreadPool) -> None:
        """Make a decoder for the members of a runtime.

        Args:
            limits: the deployment's limits on one request.
            runtime: the members, with their preprocessing.
            pool: threads that decode.
        """
        self._limits = limits
        self._runtime = runtime
        self._pool = pool

    def open_all(
        self, samples: Sequence[tuple[Sample, Sequence[int]]]
    ) -> list[Opened | EnsembleError]:
        """Read the header of each sample; an error takes the place of a sample that is unreadable.

        Args:
            samples: the samples, each with the positions of its members.

        The pool is not used: Pillow reads headers in Python, which runs on one thread at a time.
        """
        return [self._guarded(self._open, sample) for sample in samples]

    def decode_all(self, jobs: Sequence[DecodeJob], end: float) -> list[Input | EnsembleError]:
        """Decode samples and resize each one for the members that will run on it.

        Args:
            jobs: the samples, each with the positions of its members.
            end: the time of ``time.monotonic`` from which on decoding of no further image begins.

        Returns:
            For each job, in order, the input of the members or the error of the sample.
        """
        decoded: list[Input | EnsembleError] = []
        for turn in _turns(jobs):
            if time.monotonic() > end:
                decoded += [busy() for unit in turn for _ in unit]
                continue
            for inputs in self._pool.map(self._decode_unit, turn):
                decoded += inputs
            if any(opened.pixels > _LARGE_IMAGE_PIXELS for unit in turn for opened, _ in unit):
                return_free_memory()
        return decoded

    def _decode_unit(self, unit: DecodeUnit) -> list[Input | EnsembleError]:
        """Do the jobs of a unit, on one thread."""
        return [self._guarded(self._decode, job) for job in unit]

    def _open(self, sample_and_members: tuple[Sample, Sequence[int]]) -> Opened:
        """Read the header of one sample; raises what makes it unreadable."""
        sample, members = sample_and_members
        data = sample.data
        if isinstance(data, SampleError):
            raise data
        if isinstance(data, Tensor):
            return self._check_tensor(sample, data)
        if isinstance(data, bytes):
            return self._open_file(sample, data, self._runtime.decodings(members))
        decodings = self._runtime.decodings(members)
        for decoding in decodings:
            if decoding.function is not None:
                raise _sample_error(
                    sample,
                    f"it is one frame of a file, and {decoding.function.name} decodes whole files: "
                    "send the request without the option frames",
                )
        return Opened(
            sample,
            data.pixels,
            data.cost * len(decodings),
            lambda decoding: _decode_frame(sample, data, decoding.window),
        )

    def _open_file(
        self, sample: Sample, content: bytes, decodings: Sequence[ImageDecoding]
    ) -> Opened:
        """Read the header of one image file; one decoding after the other will read its pixels."""
        errors = SampleErrors.of(sample.name, sample.index, content)
        images = {
            decoding: decoding.open(content, errors, max_pixels=self._limits.max_pixels)
            for decoding in decodings
        }
        opened = list(images.values())
        resized_pixels = self._runtime.resized_pixels(*opened[0].size)
        return Opened(
            sample,
            max(image.pixels for image in opened),
            sum(image.cost for image in opened) + resized_pixels,
            lambda decoding: images[decoding].decode(),
        )

    def _decode(self, job: DecodeJob) -> Input:
        """Decode one sample and resize it; a preprocessed input is returned unchanged."""
        opened, members = job
        if opened.decode is None:
            assert opened.preprocessed is not None
            return opened.preprocessed
        try:
            return self._runtime.prepare(opened.decode, members)
        except PreprocessingError as error:
            raise PreprocessingError(f"{opened.sample.where}: {error}") from error

    def _check_tensor(self, sample: Sample, data: Tensor) -> Opened:
        """Check pixels or a preprocessed input that a client sent as numbers.

        Raises:
            SampleError: the members do not accept the input.
            TooLargeError: there are more pixels than an image may have.
        """
        shape, problem = self._runtime.input_shape, None
        if not data.is_floating_point():
            height, width = data.shape[1:]
            excess = too_large(width, height, self._limits.max_pixels)
            if excess is not None:
                raise TooLargeError(f"{sample.where}: {excess}")
            cost = width * height + self._runtime.resized_pixels(width, height)
            return Opened(sample, width * height, cost, lambda _: data)
        if shape is None:
            problem = (
                "the members have different preprocessings, so there is no one preprocessed "
                "input; send images, or pixels (uint8)"
            )
        elif tuple(data.shape) != shape:
            problem = (
                f"a preprocessed sample has shape {tuple(data.shape)}, and the members take {shape}"
            )
        elif not bool(data.isfinite().all()):
            problem = "it holds NaN or infinite numbers; a preprocessed sample must be finite"
        if problem is not None:
            raise _sample_error(sample, problem)
        return Opened(sample, 0, 0, None, preprocessed=data)

    def _guarded(
        self, function: Callable[[Argument], Value], argument: Argument
    ) -> Value | EnsembleError:
        """Call a function; if it raises an error, return the error in place of its value."""
        try:
            return function(argument)
        except EnsembleError as error:
            return error
        except Exception:
            logger.exception("a sample could not be decoded")
            return unforeseen()


def _decode_frame(sample: Sample, frame: Frame, window: Window | None) -> Tensor:
    try:
        return frame.decode(window)
    except Exception as error:
        # For damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
        raise _sample_error(
            sample, f"the frame cannot be decoded ({reason(error)}); send the file whole"
        ) from None


def _sample_error(sample: Sample, problem: str) -> SampleError:
    """Make the error of one sample, whose message names it."""
    return SampleError(
        f"{sample.where}: {problem}",
        sample=sample.name,
        index=sample.index,
    )


def _turns(jobs: Sequence[DecodeJob]) -> Iterator[list[DecodeUnit]]:
    """Split the jobs into turns of at most `_MAX_PIXELS_AT_ONCE` pixels.

    The jobs of a turn are decoded at the same time. A larger image has a turn of its own. Of an
    animation only the first frame is counted, because its frames are decoded one after the other.
    """
    turn: list[DecodeUnit] = []
    pixels = 0
    last_animation: object = None
    for job in jobs:
        data = job[0].sample.data
        animation = None if isinstance(data, bytes | Tensor | SampleError) else data.animation
        if turn and animation is not None and animation is last_animation:
            turn[-1].append(job)
            continue
        last_animation = animation
        if turn and pixels + job[0].pixels > _MAX_PIXELS_AT_ONCE:
            yield turn
            turn, pixels = [], 0
        turn.append([job])
        pixels += job[0].pixels
    if turn:
        yield turn
