"""Example images that members are tried on, equal at build and in every worker."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def example_images(count: int) -> list[Tensor]:
    """Make images of smooth patches of colour with a little grain.

    They are smooth because photographs are. No member was trained on white noise: there, deep
    members amplify the rounding of a sum until the answer changes, and outputs that were computed
    in two ways cannot be compared.

    Returns:
        `count` different uint8 tensors (3, 64, 48).
    """
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand((count, 3, 6, 5), generator=generator)
    smooth = interpolate(patches, (64, 48), mode="bicubic", align_corners=False)
    grain = torch.rand(smooth.shape, generator=generator) - 0.5
    return list((255 * (smooth + 0.05 * grain)).clamp(0, 255).to(torch.uint8))


def mirrored_images(image: Tensor) -> Iterator[Tensor]:
    """Make four images of one, (channels, height, width), by mirroring it in both directions."""
    for axes in ((), (2,), (1,), (1, 2)):
        yield image.flip(axes)
