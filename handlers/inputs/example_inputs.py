"""Images to try members on: the same at build and in every worker."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def trial_images(count: int) -> list[Tensor]:
    """Smooth patches of colour with a little grain.

    Photographs are smooth too. On white noise, which no member was trained on, deep members amplify
    the last bit of a sum to another answer, and nothing can be compared.

    Returns:
        `count` different uint8 tensors (3, 64, 48).
    """
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand((count, 3, 6, 5), generator=generator)
    smooth = interpolate(patches, (64, 48), mode="bicubic", align_corners=False)
    grain = torch.rand(smooth.shape, generator=generator) - 0.5
    return list((255 * (smooth + 0.05 * grain)).clamp(0, 255).to(torch.uint8))
