"""The handwritten digits that ship inside scikit-learn, as PNG files, on one fixed split.

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
HELD_OUT = 0.25


@dataclass(frozen=True)
class Part:
    """Images of one part of the split.

    Attributes:
        indices: positions in scikit-learn's data set.
        files: each image as the bytes of a PNG file, as a client would send it.
        digits: what each image shows, 0 to 9.
    """

    indices: tuple[int, ...]
    files: tuple[bytes, ...]
    digits: tuple[int, ...]

    def inputs(self, preprocessing: Preprocessing) -> Tensor:
        """The images as a member sees them when served: float32 (N, channels, height, width).

        Training goes through the server's own decoder and preprocessing, so that a served member
        meets nothing that it was not trained on.
        """
        images = [decode_image(file, max_pixels=1_000_000) for file in self.files]
        return Preprocessor(resolve(preprocessing), torch.device("cpu"))(images)


def load() -> tuple[Part, Part]:
    """The training part and the held-out part, stratified by digit; the same on every call."""
    digits = load_digits()
    training, held_out = train_test_split(
        np.arange(len(digits.target)),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=digits.target,
    )
    return _part(digits, sorted(training)), _part(digits, sorted(held_out))


def _part(digits: object, indices: Sequence[int]) -> Part:
    images = getattr(digits, "images")  # noqa: B009  (scikit-learn's Bunch has no types)
    target = getattr(digits, "target")  # noqa: B009
    return Part(
        indices=tuple(int(index) for index in indices),
        files=tuple(_png(images[index]) for index in indices),
        digits=tuple(int(target[index]) for index in indices),
    )


def _png(image: np.ndarray) -> bytes:
    """8-bit gray; the data's 17 levels are spread over 0 to 255."""
    pixels = np.rint(image * (255 / 16)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
