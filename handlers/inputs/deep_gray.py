"""Gray images of more than 8 bits: 16-bit and 32-bit whole numbers, and floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..spec import Window

DEEP_GRAY_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of gray images of more than 8 bits. It has none for colour of more than 8 bits."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF 6.0 that say how the numbers of a file are to be read."""

_WHITE_IS_ZERO = 0
_UNSIGNED = (1,)


@dataclass(frozen=True)
class GrayRange:
    """The range of a gray image's values that becomes black to white.

    Attributes:
        low: the value that becomes black.
        high: the value that becomes white.
        unsigned: whether the 32-bit whole numbers are to be read without a sign.
        inverted: whether black and white are exchanged.
    """

    low: float
    high: float
    unsigned: bool
    inverted: bool

    @classmethod
    def of(cls, image: Image.Image, rows: int, window: Window | None = None) -> GrayRange:
        """Determine the range of an image.

        Without a window it is 0 to 65535; 0 to 4095 for the 12-bit numbers of a TIFF file; and 0 to
        1 for floats. A 32-bit or 12-bit image with values outside has the range from its smallest
        to its largest value.

        Args:
            image: loaded, of one of the `DEEP_GRAY_MODES`.
            rows: number of rows that are looked at together; it bounds the memory that this takes.
            window: sets the range, if there is one.
        """
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE)
        unsigned = (
            image.mode == "I" and bits == (32,) and tags.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
        )
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        if window is not None:
            return cls(window.low, window.high, unsigned, inverted)
        if bits == (12,):
            low, high = 0.0, 4095.0
        else:
            low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
        usual = cls(low, high, unsigned, inverted)
        if image.mode not in {"I", "F"} and bits != (12,):
            return usual
        smallest, largest = usual._extremes(image, rows)
        if smallest <= largest and (smallest < low or largest > high):
            return replace(usual, low=smallest, high=largest)
        return usual

    def eight_bits(self, band: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """Convert some rows of the image to mode L, and return them with their opacity.

        Pillow itself would clip the values at 255.

        Returns:
            Mode L of the same size; and the opacity, mode L, or None if all pixels are opaque.
        """
        raw = self._values(band)
        gray = self._converted(raw, lambda levels: np.rint(levels).astype(np.uint8))
        transparent = _transparent(band, raw)
        opacity = None if transparent is None else np.where(transparent, 0, 255).astype(np.uint8)
        return Image.fromarray(gray), None if opacity is None else Image.fromarray(opacity)

    def zero_to_one(self, band: Image.Image) -> NDArray[np.float32]:
        """Convert some rows of the image to numbers from 0 (black) to 1 (white).

        Values outside the range become 0 or 1. Transparent pixels become white.

        Returns:
            float32 (height, width).
        """
        raw = self._values(band)
        gray: NDArray[np.float32] = self._converted(
            raw, lambda levels: np.clip(levels / 255.0, 0.0, 1.0).astype(np.float32)
        )
        transparent = _transparent(band, raw)
        if transparent is not None:
            gray[transparent] = 1.0
        return gray

    def _extremes(self, image: Image.Image, rows: int) -> tuple[float, float]:
        """Return the smallest and the largest finite value; infinity first if there is none."""
        smallest, largest = np.inf, -np.inf
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            values = self._values(image.crop((0, top, image.width, bottom)))
            finite = values[np.isfinite(values)]
            if finite.size:
                smallest = min(smallest, float(finite.min()))
                largest = max(largest, float(finite.max()))
        return smallest, largest

    def _values(self, image: Image.Image) -> NDArray[Any]:
        raw = np.asarray(image)
        return raw.view(np.uint32) if self.unsigned else raw

    def _converted(
        self, raw: NDArray[Any], finish: Callable[[NDArray[np.float64]], NDArray[Any]]
    ) -> NDArray[Any]:
        """Scale values to levels and finish these; 16-bit values through a table of all of them."""
        if raw.dtype.kind in "ui" and raw.dtype.itemsize == 2:
            table = finish(self._scaled(np.arange(2**16, dtype=np.float64)))
            looked_up: NDArray[Any] = table[raw]
            return looked_up
        return finish(self._scaled(raw.astype(np.float64)))

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert values to levels, 0 (black) to 255 (white); what is not finite is `low`."""
        # The widest of Pillow's pixels is a float32, so that no range overflows here.
        finite = np.isfinite(values)
        scaled = np.where(finite, values - self.low, 0.0) * (
            255.0 / ((self.high - self.low) or 1.0)
        )
        return 255.0 - scaled if self.inverted else scaled


def _transparent(band: Image.Image, raw: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which pixels have the one value that a PNG file declares transparent, if it does."""
    key = band.info.get("transparency")
    return None if key is None else np.asarray(raw == key)
