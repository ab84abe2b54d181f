"""Takes apart a body that holds several samples: a zip, a tar, an array or an animation.

The first bytes of a body tell what it is. File names and content types are not trusted.
"""

from __future__ import annotations

from ..budget import RequestBudget
from . import frames, tar_files, tensors, zip_files
from .items import Frame, Item, Unreadable
from .tensors import rows

__all__ = ["Frame", "Item", "Unreadable", "rows", "unpack"]


def unpack(
    data: bytes, *, name: str, split_frames: bool, budget: RequestBudget
) -> list[Item] | None:
    """Take a bundle apart into its samples, in its order; return None for any other body.

    Args:
        data: the body, or a part of a form.
        name: name of the part, for messages and for samples that have no name in the bundle.
        split_frames: whether animations, and TIFF files of several pages, are bundles.
        budget: budget of the request, in which samples and unpacked bytes are counted.

    Raises:
        RequestError: the bundle is damaged or holds no sample.
        TooLargeError: the bundle exceeds what the budget has left.
    """
    if zip_files.is_zip(data):
        return zip_files.unzip(data, name, budget)
    if tar_files.is_tar(data):
        return tar_files.untar(data, name, budget)
    if data.startswith(tensors.NPY):
        return tensors.from_npy(data, name, budget)
    if tensors.is_safetensors(data):
        return tensors.from_safetensors(data, name, budget)
    return frames.split(data, name, budget) if split_frames else None
