"""Step: JPEG files decoded by the GPU (nvJPEG in torchvision) against the worker's threads."""

from __future__ import annotations

import importlib.util
import io
import os
from functools import partial

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

from torchserve_ensemble.handlers.base.threads import ThreadPool
from torchserve_ensemble.handlers.inputs.images import decode_image

from .rows import Skipped, Step
from .timing import median_seconds

_MAX_PIXELS = 10**8
_MAX_MEAN_DIFFERENCE = 3.0
"""Largest mean difference, in levels of 255, that counts as the same image. Decoders round and
interpolate colour differently."""


def measure(step: Step) -> None:
    """Decode the same files in both ways; their pixels lie in the device's memory afterwards."""
    files = _photographs(128 if step.on_gpu else 4)
    pool = ThreadPool(os.cpu_count() or 1)
    library = "simplejpeg" if importlib.util.find_spec("simplejpeg") else "Pillow"
    with step.row(f"decoding by {pool.threads} threads ({library})", measures=True) as row:
        seconds = median_seconds(step, partial(_decode_on_pool, files, pool, step.device))
        row.values["images_per_second"] = round(len(files) / seconds)
        row.detail = f"{row.values['images_per_second']} images/s of 500 x 375 pixels"
    name = "nvJPEG" if step.on_gpu else "torchvision on the CPU"
    with step.row(f"decoding by {name}", measures=True) as row:
        decode_jpeg = getattr(torchvision.io, "decode_jpeg", None)
        if decode_jpeg is None:
            raise Skipped("this torchvision has no decode_jpeg")
        encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        decode = partial(decode_jpeg, encoded, device=step.device)
        seconds = median_seconds(step, decode)
        row.values["images_per_second"] = round(len(files) / seconds)
        expected = _decode_on_pool(files[:1], pool, step.device)[0]
        changed = float((decode()[0].float() - expected.float()).abs().mean())
        assert changed <= _MAX_MEAN_DIFFERENCE, f"pixels differ by {changed:.1f} levels on average"
        row.values["mean_difference_levels"] = round(changed, 3)
        row.detail = (
            f"{row.values['images_per_second']} images/s; pixels differ by {changed:.2f} of 255 "
            "levels on average"
        )


def _decode_on_pool(files: list[bytes], pool: ThreadPool, device: torch.device) -> list[Tensor]:
    decode = partial(decode_image, max_pixels=_MAX_PIXELS)
    return [pixels.to(device) for pixels in pool.map(decode, files)]


def _photographs(count: int) -> list[bytes]:
    """Draw JPEG files that compress as photographs do: smooth noise with a little grain."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        patches = Image.fromarray(generator.integers(0, 256, (18, 24, 3), dtype=np.uint8))
        smooth = np.asarray(patches.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = generator.normal(0, 6, smooth.shape)
        file = io.BytesIO()
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
