"""The server's own decoder: encoded image files become pixels, as a person sees them.

Only the formats in ``image_header.FORMATS`` are read. Pillow knows some forty others; among them is
EPS, which it hands to an external interpreter, and several that it recognises by a few bytes only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..base.errors import TooLargeError
from ..spec import Window
from .colors import pixels_of
from .image_header import read_header
from .metadata_bounds import orientation
from .sample_errors import SampleErrors

try:
    import simplejpeg
except ModuleNotFoundError:
    # The check of a GPU machine runs where nothing but torch and torchvision is installed.
    simplejpeg = None
    logging.getLogger(__name__).warning(
        "simplejpeg is not installed: Pillow decodes JPEG files, which takes twice as long, and "
        "scaled_jpeg has no effect (pip install simplejpeg)"
    )


@dataclass(frozen=True)
class EncodedImage:
    """An image file whose header was read and lies within the limits; its pixels come later.

    Pillow's image is opened anew to decode the pixels: some decoders take the memory for the pixels
    at once, and would hold it while the headers of a request's other images are read.

    Attributes:
        errors: makes the errors of the image's sample.
        content: the file.
        size: width and height.
        pixels: number of pixels that decoding holds in memory, as in `ImageHeader`.
        cost: time to decode the file, as in `ImageHeader`.
        needs_only_decoding: whether it is a JPEG file that is RGB and upright, without a colour
            profile.
        window: the values that become black to white, for gray images of more than 8 bits.
        min_jpeg_size: as for `open_image`.
    """

    errors: SampleErrors
    content: bytes
    size: tuple[int, int]
    pixels: int
    cost: int
    needs_only_decoding: bool
    window: Window | None
    min_jpeg_size: tuple[int, int] | None = None

    def decode(self) -> Tensor:
        """Decode the pixels, as `decode_image` describes them.

        Raises:
            SampleError: the file is damaged.
            TooLargeError: there is not enough memory for the pixels.
        """
        with self.errors.of_decoding():
            if self.needs_only_decoding:
                pixels = _decode_jpeg(self.content, self.size, self.min_jpeg_size)
                if pixels is not None:
                    return pixels
            image = read_header(self.content).image
            image.load()
            return pixels_of(image, self.content, self.window)


def open_image(
    content: bytes,
    errors: SampleErrors,
    *,
    max_pixels: int,
    window: Window | None = None,
    min_jpeg_size: tuple[int, int] | None = None,
) -> EncodedImage:
    """Read an image's header.

    Args:
        content: the file.
        errors: makes the errors of the image's sample.
        max_pixels: as for `decode_image`.
        window: as for `decode_image`.
        min_jpeg_size: height and width; larger JPEG files may be decoded at a fraction of their
            size, but not below it. None: they are decoded at their size.

    Raises:
        SampleError: the file is not an image that can be read.
        TooLargeError: the image has more pixels than the limit.
    """
    errors.check_not_empty()
    with errors.of_decoding():
        header = read_header(content)
        excess = header.excess(max_pixels)
        if excess is not None:
            raise TooLargeError(f"{errors.where}: {excess}")
        return EncodedImage(
            errors,
            content,
            header.image.size,
            header.pixels,
            header.cost,
            _needs_only_decoding(header.image),
            window,
            min_jpeg_size,
        )


def decode_image(
    content: bytes,
    *,
    max_pixels: int,
    name: str = "",
    index: int = 0,
    window: Window | None = None,
) -> Tensor:
    """Decode one image.

    EXIF orientation is applied and transparency is put on white. Of an animation or a file of
    several pages the first frame is taken. CMYK, LAB and other colour spaces, and pixels with an
    embedded ICC profile, become sRGB; a broken profile is ignored, as viewers do. Gray images give
    three equal channels. 16-bit gray is scaled to 8 bits; of 16-bit colour the high byte is taken.
    32-bit integers are read as 0 to 65535 and floats as 0 to 1; an image that exceeds that range is
    stretched from its minimum to its maximum, and what is not finite is black.

    Args:
        content: the file.
        max_pixels: width times height, the padding of tiles included; checked before pixels are
            decoded. Pillow's own limit (twice ``PIL.Image.MAX_IMAGE_PIXELS``) holds besides.
        name: the sample's name, for messages.
        index: the sample's position in its request, for messages.
        window: the values of a gray image of more than 8 bits that become black to white. Such an
            image then is not rounded to 8 bits.

    Returns:
        uint8 (3, height, width), whose channels are innermost in memory: Pillow decodes them so,
        and torchvision resizes them fastest. Or, for a gray image of more than 8 bits and a window,
        float32 (1, height, width) from 0 to 1.

    Raises:
        SampleError: the file is not an image that can be read.
        TooLargeError: the image has more pixels than the limit.
    """
    errors = SampleErrors.of(name, index, content)
    return open_image(content, errors, max_pixels=max_pixels, window=window).decode()


def _needs_only_decoding(image: Image.Image) -> bool:
    """Whether a file is a JPEG whose pixels need nothing but decoding.

    simplejpeg decodes such files. Both it and Pillow call libjpeg-turbo, and their pixels are
    equal, but simplejpeg takes half the time.
    """
    if image.format != "JPEG" or image.mode != "RGB" or "icc_profile" in image.info:
        return False
    return orientation(image) == 1


def _decode_jpeg(
    content: bytes, size: tuple[int, int], min_size: tuple[int, int] | None
) -> Tensor | None:
    """Decode a JPEG file with simplejpeg.

    Args:
        content: the file.
        size: width and height that Pillow read in its header, which were checked.
        min_size: height and width above which a fraction of the size is enough: libjpeg scales
            while it decodes. None: the whole size.

    Returns:
        uint8 (3, height, width). None if the file is damaged, for which Pillow has the better
        message, or if simplejpeg reads another size than was checked, or is not installed.
    """
    if simplejpeg is None:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        if (width, height) != size:
            return None
        smaller = {}
        if min_size is not None:
            smaller = {"min_height": min_size[0], "min_width": min_size[1], "min_factor": 2}
        return torch.from_numpy(simplejpeg.decode_jpeg(content, **smaller)).permute(2, 0, 1)
    except ValueError:
        return None
