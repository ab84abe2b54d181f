"""What a bundle is taken apart into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...spec import Window


class Frame(Protocol):
    """One frame of an animation, whose pixels are decoded when they are asked for."""

    @property
    def animation(self) -> object:
        """The file that the frame belongs to; its frames are decoded in order, by one thread."""

    @property
    def pixels(self) -> int:
        """Width times height."""

    @property
    def cost(self) -> int:
        """Of decoding it, in pixels of a PNG file."""

    def decode(self, window: Window | None = None) -> Tensor:
        """Decode the pixels, as `decode_image` decodes those of single images.

        Args:
            window: the values of a gray image of more than 8 bits that become black to white.

        Raises:
            Exception: whatever a damaged file makes the decoder raise.
        """


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
            a frame that is still to be decoded; or why it cannot be read.
    """

    name: str
    data: bytes | Tensor | Frame | Unreadable
