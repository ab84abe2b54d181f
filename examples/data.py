"""Splits the handwritten digits of scikit-learn into two parts, as PNG files.

The split is the same on every machine.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (the test part: 1,797 images of 8 x 8 pixels with 17 gray levels).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.inputs.preprocessing import Preprocessor, resolve
from torchserve_ensemble.handlers.spec import Preprocessing

SEED = 20
"""Seed of the split, and of the order in which examples take training images."""

HELD_OUT_SHARE = 0.25
"""Share of the images that no example trains on."""


@dataclass(frozen=True)
class Part:
    """The images of one part of the split.

    Attributes:
        indices: positions of the images in scikit-learn's data set.
        files: contents of PNG files, as a client would send them.
        digits: the digit, 0 to 9, that each image shows.
    """

    indices: tuple[int, ...]
    files: tuple[bytes, ...]
    digits: tuple[int, ...]

    def inputs(self, preprocessing: Preprocessing) -> Tensor:
        """Preprocess the images as the server does: (N, channels, height, width) float32.

        Members are trained with the server's own decoder and preprocessing, so that they get the
        same inputs when they are served.
        """
        images = [decode_image(file, max_pixels=1_000_000) for file in self.files]
        return Preprocessor(resolve(preprocessing), torch.device("cpu"))(images)


def load() -> tuple[Part, Part]:
    """Load the training part and the held-out part, which are stratified by digit."""
    digits = load_digits()
    training, held_out = train_test_split(
        np.arange(len(digits.target)),
        test_size=HELD_OUT_SHARE,
        random_state=SEED,
        stratify=digits.target,
    )
    return _part(digits, sorted(training)), _part(digits, sorted(held_out))


def _part(digits: object, indices: Sequence[int]) -> Part:
    """Collect the images of a part.

    Args:
        digits: scikit-learn's data set.
        indices: positions of the images in the data set.
    """
    images = getattr(digits, "images")  # noqa: B009  (scikit-learn's Bunch has no types)
    target = getattr(digits, "target")  # noqa: B009
    return Part(
        indices=tuple(int(index) for index in indices),
        files=tuple(_png(images[index]) for index in indices),
        digits=tuple(int(target[index]) for index in indices),
    )


def _png(image: np.ndarray) -> bytes:
    """Write an image as an 8-bit gray PNG; its 17 gray levels are spread over 0 to 255."""
    pixels = np.rint(image * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
