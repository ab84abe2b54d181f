"""The samples of a bundle, before they get their positions in the request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...spec import Window


class Frame(Protocol):
    """One frame of an animation, whose pixels are not decoded yet."""

    @property
    def animation(self) -> object:
        """The animation of the frame. Its frames must be decoded in order, by one thread."""

    @property
    def pixels(self) -> int:
        """Width times height of the frame."""

    @property
    def cost(self) -> int:
        """Time to decode the frame, in pixels of a PNG file that take as long."""

    def decode(self, window: Window | None = None) -> Tensor:
        """Decode the pixels, as `decode_image` decodes those of single images.

        Args:
            window: the values of a gray image of more than 8 bits that become black to white.

        Raises:
            Exception: the file is damaged; Pillow's decoders raise many types of exceptions.
        """


@dataclass(frozen=True)
class Unreadable:
    """Stands in place of a sample that cannot be read while others of the request can.

    Attributes:
        reason: the end of a message that begins with the sample's name.
    """

    reason: str


@dataclass(frozen=True)
class Item:
    """One sample of a request that has no index yet, and perhaps the same name as another one.

    Attributes:
        name: Unicode text of bounded length: the path of an entry in an archive, the name of the
            part or tensor with the number of a row or frame, or the position in JSON.
        data: an encoded image; pixels, uint8 (3, H, W); an input that the client preprocessed
            itself, float32 (C, H, W); a frame that is still to be decoded; or the reason why the
            sample cannot be read.
    """

    name: str
    data: bytes | Tensor | Frame | Unreadable
