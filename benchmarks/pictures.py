"""Draws images for the measurements. Equal seeds give equal images.

Each image shows one of ten kinds, which the members of an ensemble learn to tell apart.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_KINDS = 10

# Ten colours that lie far from each other.
_COLORS = (
    (30, 30, 30),
    (225, 225, 225),
    (215, 35, 35),
    (35, 175, 45),
    (40, 50, 215),
    (220, 215, 45),
    (205, 45, 205),
    (45, 210, 215),
    (125, 125, 125),
    (120, 70, 20),
)

# Ten digits of 5 x 7 dots; the bits of each number are the dots of one row.
_GLYPHS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


def photographs(count: int, seed: int) -> list[bytes]:
    """Draw JPEG files of 320 x 280 pixels. Each kind of ``kinds(count)`` is a colour with stripes.

    Smooth noise on the images makes them compress as photographs do.
    """
    generator = np.random.default_rng(seed)
    return [_photograph(kind, generator) for kind in kinds(count)]


def digits(count: int, seed: int) -> list[bytes]:
    """Draw PNG files of 8 x 8 gray pixels: the digits of ``kinds(count)``, moved and noisy."""
    generator = np.random.default_rng(seed)
    return [_digit(kind, generator) for kind in kinds(count)]


def kinds(count: int) -> list[int]:
    """Return the kind of each of `count` images; the kinds take turns."""
    return [number % NUM_KINDS for number in range(count)]


def _photograph(kind: int, generator: np.random.Generator) -> bytes:
    """Draw a JPEG file whose colour, and whose stripes' angle and width, show its kind."""
    color = np.array(_COLORS[kind]) + generator.uniform(-12, 12, 3)
    noise = generator.normal(0, 12, (14, 16, 3))
    small = np.clip(color + noise, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(small).resize((320, 280), Image.Resampling.BICUBIC)
    rows, columns = np.mgrid[0:280, 0:320]
    angle = np.pi * (kind % 5) / 5
    along = rows * np.sin(angle) + columns * np.cos(angle)
    wave = np.sin(2 * np.pi * along / (24 + 4 * kind) + generator.uniform(0, 2 * np.pi))
    pixels = np.asarray(smooth, dtype=np.float32) + 12 * wave[:, :, None]
    return _file(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG")


def _digit(kind: int, generator: np.random.Generator) -> bytes:
    """Draw a PNG file with one digit at a random place, with random brightness and noise."""
    glyph = np.array([[row >> (4 - column) & 1 for column in range(5)] for row in _GLYPHS[kind]])
    pixels = np.zeros((8, 8))
    top, left = generator.integers(0, 2), generator.integers(0, 4)
    pixels[top : top + 7, left : left + 5] = glyph * generator.uniform(140, 255)
    pixels += generator.normal(0, 15, (8, 8))
    return _file(np.clip(pixels, 0, 255).astype(np.uint8), "PNG")


def _file(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    """Encode pixels as an image file; ``quality`` is used for JPEG alone."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, encoding, quality=90)
    return target.getvalue()
