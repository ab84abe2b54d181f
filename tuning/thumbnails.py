"""Makes small pictures of image files, for a page of HTML that contains them."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from ..handlers.inputs.image_header import FORMATS

_SIDE_PIXELS = 160
_QUALITY = 80
_MAX_PIXELS = 100_000_000
"""Larger images are not decoded for a thumbnail."""


def thumbnail(path: Path) -> str | None:
    """Return a small picture of an image file as a data URI; None if Pillow cannot read it.

    Formats of the user's own, such as DICOM, and bundles have no picture. Only formats that the
    server reads are read: for some of the others Pillow starts a program.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return None
                # A JPEG file is decoded at a fraction of its size.
                image.draft("RGB", (2 * _SIDE_PIXELS, 2 * _SIDE_PIXELS))
                upright = ImageOps.exif_transpose(image)
                upright.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS))
                small = upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        return None
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
