"""The geometry of one image: gray, resized, in a frame. It changes no value range.

All functions take and return pixels (channels, height, width): uint8, or float32 from 0 to 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.torchvision_imports import InterpolationMode, functional
from ..spec import Interpolation, Preprocessing, ResizeLibrary

_MAX_ASPECT_RATIO = 16
_MAX_RESIZED_PIXELS = 1 << 20
"""Images that are longer for their width, and would become larger than this, are cut to their
middle before they are resized."""

_MARGIN_PIXELS = 8
"""Pixels of the resized image that are computed beyond the crop, so that no edge shows in it."""

_PIXELS_PER_BAND = 1 << 20
"""Pixels that become gray at once; the arithmetic takes 12 bytes for each."""

_SIZES_OF_ONE_PIXEL = (1, (1, 1))
"""Values of ``resize`` that can make an image one pixel: 1 does so to a square one."""

_PILLOW_FILTERS = {
    Interpolation.NEAREST: Image.Resampling.NEAREST,
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}


def resized_pixels(settings: Preprocessing, width: int, height: int) -> int:
    """Return how many pixels resizing an image makes, before the crop.

    Args:
        settings: the preprocessing that resizes it.
        width: width of the image in pixels.
        height: height of the image in pixels.
    """
    size = settings.resize
    if size is None:
        return 0
    if not isinstance(size, int):
        return size[0] * size[1]
    shorter, longer = min(width, height), max(width, height)
    whole = size * size * longer // max(shorter, 1)
    # A longer image is cut to its middle first.
    return min(whole, max(_MAX_RESIZED_PIXELS, _MAX_ASPECT_RATIO * size * size))


def resize(image: Tensor, settings: Preprocessing) -> Tensor:
    """Resize an image as ``settings.resize``, which is set, and ``settings.letterbox`` say."""
    size = settings.resize
    assert size is not None
    if settings.letterbox is None or isinstance(size, int):
        return _resize_to(image, size, settings)
    height, width = size
    scale = min(height / image.shape[1], width / image.shape[2])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
    level = settings.letterbox / 255 if image.is_floating_point() else settings.letterbox
    framed = image.new_full((image.shape[0], height, width), level)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    inside = framed[:, top : top + inner[0], left : left + inner[1]]
    inside.copy_(_resize_to(image, inner, settings))
    return framed


def middle(image: Tensor, resize: int, crop: int) -> Tensor:
    """Cut a very long image to what a centred crop will keep of it, and a margin around that.

    When the shorter side becomes `resize`, the longer one of such an image would have any length:
    65,000 x 1 pixels would become 16 million x 256. The result is that of resizing the whole to
    within a twentieth of a pixel.

    Args:
        image: (channels, height, width).
        resize: pixels that the shorter side will have.
        crop: pixels of the longer side of the crop.
    """
    height, width = image.shape[1:]
    shorter, longer = min(height, width), max(height, width)
    resized_pixels = resize * resize * longer // shorter
    if longer <= _MAX_ASPECT_RATIO * shorter or resized_pixels <= _MAX_RESIZED_PIXELS:
        return image
    length = math.ceil((crop + 2 * _MARGIN_PIXELS) * shorter / resize) + 2 * _MARGIN_PIXELS
    # An even number of pixels is cut off, so that the middle stays the middle.
    length = max(length + (longer - length) % 2, _MAX_ASPECT_RATIO * shorter + longer % 2)
    if length >= longer:
        return image
    start = (longer - length) // 2
    dimension = 1 if height > width else 2
    return image.narrow(dimension, start, length)


def to_gray(image: Tensor) -> Tensor:
    """Convert an image of three channels, or of one, to (1, height, width).

    torchvision's weights sum to 0.9999 and it rounds down, so that every gray level but black would
    lose one; an image that is gray already is taken as it is.
    """
    if len(image) == 1 or (torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])):
        return image[:1]
    rows = max(1, _PIXELS_PER_BAND // max(image.shape[2], 1))
    bands = [image[:, top : top + rows] for top in range(0, image.shape[1], rows)]
    return torch.cat([functional.rgb_to_grayscale(band) for band in bands], dim=1)


def _resize_to(image: Tensor, size: int | tuple[int, int], settings: Preprocessing) -> Tensor:
    """Resize an image to a shorter side of `size` pixels, or to the given height and width."""
    if settings.resize_library is ResizeLibrary.PILLOW:
        return _resize_by_pillow(image, size, settings.interpolation)
    # PyTorch 2.14 takes one pixel of several channels for channels in another order, and fails.
    # As a batch of images with one channel each, the channels give the same pixel.
    by_channel = size in _SIZES_OF_ONE_PIXEL
    resized: Tensor = functional.resize(
        image.unsqueeze(1) if by_channel else image,
        [size] if isinstance(size, int) else list(size),
        interpolation=InterpolationMode(settings.interpolation.value),
        antialias=settings.antialias,
    )
    return resized.squeeze(1) if by_channel else resized


def _resize_by_pillow(
    image: Tensor, size: int | tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Resize as torchvision resizes a PIL image: the same sizes, and Pillow's arithmetic."""
    height, width = image.shape[1:]
    if isinstance(size, int):
        shorter, longer = min(height, width), max(height, width)
        new_longer = int(size * longer / shorter)
        size = (size, new_longer) if height <= width else (new_longer, size)
    # Pillow resizes three channels together if they are uint8, and floats one channel at a time.
    together = len(image) == 3 and not image.is_floating_point()
    planes = [image.permute(1, 2, 0)] if together else list(image)
    resized = [
        np.array(
            Image.fromarray(plane.contiguous().numpy()).resize(
                (size[1], size[0]), _PILLOW_FILTERS[interpolation]
            )
        )
        for plane in planes
    ]
    if together:
        return torch.from_numpy(resized[0]).permute(2, 0, 1)
    return torch.from_numpy(np.stack(resized))
