"""Errors of one image file: whatever a decoder raises becomes an error of its sample alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from ..base.errors import RequestError, SampleError, TooLargeError, reason
from .metadata_bounds import TooManyPartsError

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
"""First bytes of files that clients send by mistake, and what such a file is."""

_DICOM, _DICOM_AT = b"DICM", 128
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_START_BYTES = 256


@dataclass(frozen=True)
class SampleErrors:
    """Makes the errors of the sample that an image file belongs to.

    Attributes:
        name: the sample's name; may be empty.
        index: the sample's position in its request.
        start: the first bytes of the file.
        where: what messages call the sample.
    """

    name: str
    index: int
    start: bytes
    where: str

    @classmethod
    def of(cls, name: str, index: int, content: bytes) -> SampleErrors:
        """Make the errors of a sample of a request.

        Args:
            name: the sample's name; may be empty.
            index: the sample's position in its request.
            content: the file.
        """
        where = f"sample {index} ({name})" if name else f"sample {index}"
        return cls(name, index, bytes(content[:_START_BYTES]), where)

    def unreadable(self, problem: str) -> SampleError:
        """Make the error of a file that cannot be read.

        Args:
            problem: follows the sample's name in the message, e.g. "is empty".
        """
        return SampleError(f"{self.where} {problem}", sample=self.name, index=self.index)

    def check_not_empty(self) -> None:
        """Refuse a file without content.

        Raises:
            SampleError: the file is empty.
        """
        if not self.start:
            raise self.unreadable(
                "is empty: send the image's bytes (curl -F file=@image.png, with the @)"
            )

    @contextmanager
    def of_decoding(self) -> Iterator[None]:
        """Turn whatever Pillow raises inside the ``with`` block into an error of the sample.

        Raises:
            SampleError: the file has an unknown format, is damaged, or takes too long to read.
            TooLargeError: Pillow refuses so many pixels, or there is too little memory.
        """
        try:
            yield
        except RequestError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise self.too_little_memory() from None
        except UnidentifiedImageError:
            raise self.unreadable(
                f"is not an image that can be read{_guess(self.start)}; {_REMEDY}"
            ) from None
        except TooManyPartsError as error:
            raise self.unreadable(f"cannot be decoded in time: {error}") from None
        except Exception as error:
            # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on damage.
            raise self.unreadable(
                f"is a damaged or incomplete image ({reason(error)}): send it again, whole"
            ) from None

    def too_little_memory(self) -> TooLargeError:
        """Make the error of a file whose pixels do not fit into memory."""
        return TooLargeError(
            f"{self.where}: more pixels than the server can decode: send a smaller image"
        )


def _guess(start: bytes) -> str:
    """Say in brackets what a file without a known image format seems to be, if that is clear."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return " (it looks like HEIC; convert it to JPEG)"
    if start[_DICOM_AT : _DICOM_AT + len(_DICOM)] == _DICOM:
        return " (it looks like DICOM, which a deployment reads with a decode function of its own)"
    for signature, description in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return f" (it looks like {description})"
    return ""
