"""Encoded image bytes to RGB pixels, as a person sees them.

Only the formats in ``_FORMATS`` are read. Pillow knows some forty others; among them is EPS, which
it hands to an external interpreter, and several that it recognises by a few bytes only.
"""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .colors import ORIENTATION, to_rgb
from .errors import SampleError, TooLargeError
from .vision import ImageReadMode, decode_jpeg

Image.init()
_FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
]
_REMEDY = "send JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 or AVIF"
_SIGNATURES = (
    (b"<", "markup such as HTML or SVG"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"data:", "a data URL; send the bytes that it encodes"),
    (b"iVBORw0", "a PNG file in base64; decode it"),
    (b"/9j/", "a JPEG file in base64; decode it"),
    (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
# `warnings.catch_warnings` swaps state of the whole process.
_warnings_lock = threading.Lock()


def decode_image(data: bytes, *, max_pixels: int, name: str = "", index: int = 0) -> Tensor:
    """Decode one image.

    EXIF orientation is applied and transparency is put on white. Of an animation or a file of
    several pages the first frame is taken. CMYK, LAB and other colour spaces, and pixels with an
    embedded ICC profile, become sRGB; a broken profile is ignored, as viewers do. Gray images give
    three equal channels. 16-bit gray is scaled to 8 bits; of 16-bit colour the high byte is taken.
    32-bit integers are read as 0 to 65535 and floats as 0 to 1; an image that exceeds that range is
    stretched from its minimum to its maximum, and what is not finite is black.

    Args:
        data: the file's bytes.
        max_pixels: width times height; checked before pixels are decoded. Pillow's own limit
            (twice ``PIL.Image.MAX_IMAGE_PIXELS``) holds besides.
        name: the sample's name, for messages.
        index: the sample's position in its request, for messages.

    Returns:
        uint8 (3, height, width). In memory the channels are innermost, as Pillow decodes them and
        as torchvision resizes fastest.

    Raises:
        SampleError: not an image that can be read.
        TooLargeError: more pixels than the limit.
    """
    where = f"sample {index} ({name})" if name else f"sample {index}"

    def unreadable(problem: str) -> SampleError:
        return SampleError(f"{where} {problem}", sample=name, index=index)

    if not data:
        raise unreadable("is empty: send the image's bytes (curl -F file=@image.png, with the @)")
    try:
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise TooLargeError(
                f"{where}: {width} x {height} pixels; the limit is {max_pixels} pixels "
                "(limits.max_pixels in the spec): send a smaller image"
            )
        pixels = _plain_jpeg(image, data)
        if pixels is not None:
            return pixels
        image.load()
        # A copy, since Pillow's buffer is read-only.
        upright = np.array(to_rgb(image, data))
    except TooLargeError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise TooLargeError(
            f"{where}: more pixels than the server can decode: send a smaller image"
        ) from None
    except UnidentifiedImageError:
        raise unreadable(f"is not an image that can be read{_seen(data)}; {_REMEDY}") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage.
        raise unreadable(
            f"is a damaged or incomplete image ({str(error) or type(error).__name__}): send it "
            "again, whole"
        ) from None
    return torch.from_numpy(upright).permute(2, 0, 1)


def _plain_jpeg(image: Image.Image, data: bytes) -> Tensor | None:
    """A JPEG file that is RGB and upright already, decoded by torchvision.

    Both call libjpeg, and their pixels are equal; torchvision's way from there to a tensor takes
    half the time. Whatever else there is to do or to say is left to Pillow.
    """
    if image.format != "JPEG" or image.mode != "RGB" or "icc_profile" in image.info:
        return None
    try:
        if image.getexif().get(ORIENTATION, 1) != 1:
            return None
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        decoded: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    except Exception:
        # Damage, of which Pillow's message tells more; or a torchvision without libjpeg.
        return None
    return decoded


def _open(data: bytes) -> Image.Image:
    """Read the header. Pillow's warning of many pixels is void: our limit comes right after."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _seen(data: bytes) -> str:
    start = bytes(data[:64])
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return " (it looks like HEIC; convert it to JPEG)"
    for signature, description in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return f" (it looks like {description})"
    return ""
