"""What a bundle is taken apart into, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import TooLargeError


@dataclass(frozen=True)
class Unreadable:
    """Why one sample alone could not be taken out."""

    reason: str


@dataclass(frozen=True)
class Item:
    """One sample.

    Attributes:
        name: the entry's path in its archive, or the bundle's name and the row or frame.
        data: an encoded image; pixels, uint8 (3, H, W); a preprocessed input, float32 (C, H, W);
            or why it cannot be read.
    """

    name: str
    data: bytes | Tensor | Unreadable


@dataclass(frozen=True)
class BundleLimits:
    """Bounds, enforced while a bundle is read, whatever its headers say.

    Attributes:
        max_entries: samples in a bundle.
        max_unpacked_bytes: all samples of a bundle together, unpacked.
        max_pixels: width times height of one frame.
    """

    max_entries: int
    max_unpacked_bytes: int
    max_pixels: int

    def check_entries(self, entries: int, name: str) -> None:
        """Raise TooLargeError if a bundle holds too many samples."""
        if entries > self.max_entries:
            raise TooLargeError(
                f"{name} holds more than {self.max_entries} samples (limits.max_samples in the "
                "spec): split it"
            )

    def too_large(self, name: str) -> TooLargeError:
        """The error for a bundle that unpacks to too much."""
        return TooLargeError(
            f"{name} unpacks to more than {self.max_unpacked_bytes} bytes "
            "(limits.max_unpacked_bytes in the spec): split it"
        )
