"""Encoded image bytes to RGB pixels, as a person sees them.

Only the formats in ``image_header.FORMATS`` are read. Pillow knows some forty others; among them is
EPS, which it hands to an external interpreter, and several that it recognises by a few bytes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..base.errors import RequestError, SampleError, TooLargeError, reason
from ..base.torchvision_imports import ImageReadMode, decode_jpeg
from .colors import rgb_pixels
from .image_header import TooManyPiecesError, orientation, read_header

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


@dataclass(frozen=True)
class EncodedImage:
    """An image file whose header was read and lies within the limits; its pixels come later.

    Pillow's image is opened anew for them: some decoders take memory for the pixels at once, which
    would lie idle while the other images of a request are looked at.

    Attributes:
        sample: whose file it is, for messages.
        data: the file.
        size: width and height.
        pixels: that decoding has to hold, as `ImageHeader.pixels`.
        cost: of decoding, as `ImageHeader.cost`.
        plain: whether it is a JPEG file that is RGB and upright, without a colour profile.
    """

    sample: _Sample
    data: bytes
    size: tuple[int, int]
    pixels: int
    cost: int
    plain: bool

    def decode(self) -> Tensor:
        """The pixels, uint8 (3, height, width), as `decode_image` describes them.

        Raises:
            SampleError: the file is damaged.
            TooLargeError: there is not enough memory for it.
        """
        with self.sample.errors():
            pixels = _decode_jpeg(self.data) if self.plain else None
            if pixels is not None:
                return pixels
            image = read_header(self.data).image
            image.load()
            return torch.from_numpy(rgb_pixels(image, self.data)).permute(2, 0, 1)


def open_image(data: bytes, *, max_pixels: int, name: str = "", index: int = 0) -> EncodedImage:
    """Read an image's header; `decode_image` has the arguments.

    Raises:
        SampleError: not an image that can be read.
        TooLargeError: more pixels than the limit.
    """
    sample = _Sample(name, index, bytes(data[:64]))
    if not data:
        raise sample.unreadable(
            "is empty: send the image's bytes (curl -F file=@image.png, with the @)"
        )
    with sample.errors():
        header = read_header(data)
        excess = header.excess(max_pixels)
        if excess is not None:
            raise TooLargeError(f"{sample.where}: {excess}")
        return EncodedImage(
            sample,
            data,
            header.image.size,
            header.pixels,
            header.cost,
            _is_plain(header.image),
        )


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
        max_pixels: width times height, the padding of tiles included; checked before pixels are
            decoded. Pillow's own limit (twice ``PIL.Image.MAX_IMAGE_PIXELS``) holds besides.
        name: the sample's name, for messages.
        index: the sample's position in its request, for messages.

    Returns:
        uint8 (3, height, width). In memory the channels are innermost, as Pillow decodes them and
        as torchvision resizes fastest.

    Raises:
        SampleError: not an image that can be read.
        TooLargeError: more pixels than the limit.
    """
    return open_image(data, max_pixels=max_pixels, name=name, index=index).decode()


@dataclass(frozen=True)
class _Sample:
    """The sample that an image belongs to, and the errors that tell of it.

    Attributes:
        start: the first bytes of the file.
    """

    name: str
    index: int
    start: bytes

    @property
    def where(self) -> str:
        return f"sample {self.index} ({self.name})" if self.name else f"sample {self.index}"

    def unreadable(self, problem: str) -> SampleError:
        return SampleError(f"{self.where} {problem}", sample=self.name, index=self.index)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever Pillow raises within comes out as an error of this sample."""
        try:
            yield
        except RequestError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise TooLargeError(
                f"{self.where}: more pixels than the server can decode: send a smaller image"
            ) from None
        except UnidentifiedImageError:
            raise self.unreadable(
                f"is not an image that can be read{_seen(self.start)}; {_REMEDY}"
            ) from None
        except TooManyPiecesError as error:
            raise self.unreadable(f"cannot be decoded in time: {error}") from None
        except Exception as error:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage.
            raise self.unreadable(
                f"is a damaged or incomplete image ({reason(error)}): send it again, whole"
            ) from None


def _is_plain(image: Image.Image) -> bool:
    """Whether a file is a JPEG whose pixels need no more than decoding.

    torchvision decodes those: both call libjpeg, and their pixels are equal, but torchvision's way
    from there to a tensor takes half the time. Whatever else there is to do is left to Pillow.
    """
    if image.format != "JPEG" or image.mode != "RGB" or "icc_profile" in image.info:
        return False
    return orientation(image) == 1


def _decode_jpeg(data: bytes) -> Tensor | None:
    """None for damage, of which Pillow's message tells more, and without torchvision's libjpeg."""
    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        decoded: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    except Exception:
        return None
    return decoded


def _seen(start: bytes) -> str:
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return " (it looks like HEIC; convert it to JPEG)"
    for signature, description in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return f" (it looks like {description})"
    return ""
