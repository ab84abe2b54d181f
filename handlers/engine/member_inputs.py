"""Makes the inputs of the members from decoded samples: one batch for each preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs.preprocessing import Preprocessor, Resized


@dataclass(frozen=True)
class PreparedImage:
    """An image after resizing for the members; it is small, however large the decoded image was.

    Attributes:
        shape: (3, height, width) of the image as it was decoded.
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

    def prepare(self, pixels: Tensor, members: Iterable[int]) -> PreparedImage:
        """Resize an image for some members.

        Args:
            pixels: uint8 (3, height, width).
            members: positions of the members in the ensemble.
        """
        needed = {self.group_of_member[member] for member in members}
        return PreparedImage(
            tuple(pixels.shape),
            tuple(
                preprocessor.resize(pixels) if group in needed else None
                for group, preprocessor in enumerate(self._preprocessors)
            ),
        )

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
