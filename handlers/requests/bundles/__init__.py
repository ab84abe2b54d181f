"""Several samples in one body: a tar or zip of images, a batch of numbers, an animation.

What a body is, its first bytes say; names and content types are never trusted.
"""

from __future__ import annotations

from ..budget import RequestBudget
from . import archives, frames, tensors
from .items import Frame, Item, Unreadable
from .tensors import rows

__all__ = ["Frame", "Item", "Unreadable", "rows", "unpack"]


def unpack(
    data: bytes, *, name: str, split_frames: bool, budget: RequestBudget
) -> list[Item] | None:
    """The samples of a bundle, in its order; None if the bytes are none.

    Args:
        data: a body or part.
        name: for messages and for samples without a name of their own.
        split_frames: take an animation or a TIFF of several pages apart.
        budget: of the request, used up while reading.

    Raises:
        RequestError: a bundle that is damaged, empty, or holds no samples.
        TooLargeError: a bundle beyond what is left of the budget.
    """
    if archives.is_zip(data):
        return archives.unzip(data, name, budget)
    if archives.is_tar(data):
        return archives.untar(data, name, budget)
    if data.startswith(tensors.NPY):
        return tensors.from_npy(data, name, budget)
    if tensors.is_safetensors(data):
        return tensors.from_safetensors(data, name, budget)
    return frames.split(data, name, budget) if split_frames else None
