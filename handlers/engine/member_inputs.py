"""Makes the inputs of the members from decoded samples: one batch for each preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs.image_decoding import ImageDecoding
from ..inputs.preprocessing import Preprocessor, Resized
from ..inputs.sample_errors import SampleErrors


@dataclass(frozen=True)
class PreparedImage:
    """An image after resizing for the members; it is small, however large the decoded image was.

    Attributes:
        shape: (channels, height, width) of the image as it was decoded.
        by_preprocessing: for each distinct preprocessing the resized image; None where no member
            that has to see the image uses this preprocessing.
    """

    shape: tuple[int, ...]
    by_preprocessing: tuple[Resized | None, ...]


Input = Tensor | PreparedImage
"""One sample for the members. Either pixels, uint8 (3, height, width), or the `PreparedImage` that
`Runtime.prepare` made of them, or an input that a client preprocessed itself, float32 of
`Runtime.input_shape`."""


class MemberInputs:
    """Makes the inputs of the members; members with equal preprocessing share them."""

    def __init__(
        self,
        preprocessors: Sequence[Preprocessor],
        group_of_member: Sequence[int],
        device: torch.device,
    ) -> None:
        """Keep the distinct preprocessings of an ensemble.

        Args:
            preprocessors: one for each distinct preprocessing.
            group_of_member: for each member the position of its preprocessor.
            device: where the inputs are made.
        """
        self.group_of_member = group_of_member
        self._preprocessors = preprocessors
        self._device = device
        self._decodings = list(dict.fromkeys(each.decoding for each in preprocessors))

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Shape of an input that fits every member; None if their preprocessings differ."""
        if len(self._preprocessors) > 1:
            return None
        return self._preprocessors[0].shape

    def resized_pixels(self, width: int, height: int) -> int:
        """Return the number of pixels to which all preprocessings together resize an image.

        Args:
            width: width of the image in pixels.
            height: height of the image in pixels.
        """
        return sum(each.resized_pixels(width, height) for each in self._preprocessors)

    def decodings(self, members: Iterable[int]) -> list[ImageDecoding]:
        """Return the distinct ways in which the image files of some members are decoded.

        Args:
            members: positions of the members in the ensemble.
        """
        if len(self._decodings) == 1:
            return self._decodings
        groups = sorted({self.group_of_member[member] for member in members})
        return list(dict.fromkeys(self._preprocessors[group].decoding for group in groups))

    def prepare(
        self, decode: Callable[[ImageDecoding], Tensor], members: Iterable[int]
    ) -> PreparedImage:
        """Decode an image for some members, and resize it.

        Args:
            decode: returns the pixels that a decoding gives, as `Preprocessor.resize` takes them;
                called once for each distinct decoding.
            members: positions of the members in the ensemble.
        """
        members = list(members)
        needed = {self.group_of_member[member] for member in members}
        shape: tuple[int, ...] = ()
        resized: list[Resized | None] = [None] * len(self._preprocessors)
        for decoding in self.decodings(members):
            pixels = decode(decoding)
            shape = tuple(pixels.shape)
            for group, preprocessor in enumerate(self._preprocessors):
                if group in needed and preprocessor.decoding == decoding:
                    resized[group] = preprocessor.resize(pixels)
            # Its memory is free before the next decoding begins.
            del pixels
        return PreparedImage(shape, tuple(resized))

    def prepare_file(self, content: bytes, name: str, *, max_pixels: int) -> PreparedImage:
        """Decode an image file for all members, as the worker does, and resize it.

        Args:
            content: the file.
            name: what messages call the file.
            max_pixels: the spec's limit on the pixels of an image.

        Raises:
            SampleError: the file is not an image that can be read.
            TooLargeError: the image has more pixels than the limit.
            PreprocessingError: a function of the user's own failed on the image.
        """
        errors = SampleErrors.of(name, 0, content)

        def decode(decoding: ImageDecoding) -> Tensor:
            return decoding.decode(content, errors, max_pixels=max_pixels)

        return self.prepare(decode, range(len(self.group_of_member)))

    def examples(self, count: int) -> list[PreparedImage]:
        """Make prepared images on which the members are tried."""
        examples = [preprocessor.examples(count) for preprocessor in self._preprocessors]
        return [
            PreparedImage(tuple(resized[0].pixels.shape), resized)
            for resized in zip(*examples, strict=True)
        ]

    def batch(self, group: int, images: Sequence[Input]) -> Tensor:
        """Preprocess samples for the members of one preprocessing.

        Args:
            group: position of the preprocessing.
            images: N samples; a sample that was not prepared for this preprocessing becomes zeros.

        Returns:
            float32 (N, channels, height, width).
        """
        preprocessor = self._preprocessors[group]
        pixels: dict[int, Tensor | Resized] = {}
        for row, image in enumerate(images):
            if isinstance(image, PreparedImage):
                resized = image.by_preprocessing[group]
                if resized is not None:
                    pixels[row] = resized
            elif image.dtype is torch.uint8:
                pixels[row] = image
        preprocessed = preprocessor(list(pixels.values()))
        if len(pixels) == len(images):
            return preprocessed
        batch = torch.zeros((len(images), *preprocessor.shape), device=self._device)
        batch[list(pixels)] = preprocessed
        for row, image in enumerate(images):
            if isinstance(image, Tensor) and image.dtype is not torch.uint8:
                batch[row] = image.to(self._device)
        return batch
