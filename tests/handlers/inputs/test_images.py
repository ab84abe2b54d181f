"""Image files are decoded to the pixels that a person sees, or refused with one clear error."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, crc, encoded, gray_tiff, png
from PIL import Image, ImageCms
from torch import Tensor

from torchserve_ensemble.handlers.base.errors import SampleError, TooLargeError
from torchserve_ensemble.handlers.inputs import colors, images
from torchserve_ensemble.handlers.inputs.images import decode_image

WHITE = [255, 255, 255]


def decode(data: bytes, max_pixels: int = 1_000_000) -> Tensor:
    """Decode an image file to uint8 (3, height, width)."""
    tensor = decode_image(data, max_pixels=max_pixels, name="a.png", index=2)
    assert tensor.dtype == torch.uint8
    assert tensor.dim() == 3
    assert len(tensor) == 3
    return tensor


def pixels(data: bytes) -> list[list[int]]:
    """Decode an image file to all pixels in reading order, each [red, green, blue]."""
    return decode(data).permute(1, 2, 0).reshape(-1, 3).tolist()


def grays(data: bytes) -> list[int]:
    """Decode the file of a gray image to the levels of all pixels in reading order."""
    values = pixels(data)
    assert all(red == green == blue for red, green, blue in values)
    return [value[0] for value in values]


def pattern(mode: str = "RGB", height: int = 12, width: int = 16) -> Image.Image:
    """Draw a smooth image whose corners have different colours."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y / (height - 1), 255 * x / (width - 1)
    blue = 255 - (red + green) / 2
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind: str) -> None:
    expected = np.asarray(pattern())
    assert np.array_equal(decode(encoded(pattern(), kind)).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_exactly_what_pillow_decodes(mode: str) -> None:
    data = encoded(pattern(mode, 64, 48), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), expected)


def test_jpeg_has_the_same_pixels_where_simplejpeg_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = encoded(pattern(), "JPEG")
    with_simplejpeg = decode(file)
    monkeypatch.setattr(images, "simplejpeg", None)
    assert torch.equal(decode(file), with_simplejpeg)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_close(kind: str) -> None:
    difference = decode(encoded(pattern("RGB", 64, 64), kind)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(difference - np.asarray(pattern("RGB", 64, 64))).mean() < 6


def test_channels_are_innermost_in_memory() -> None:
    assert decode(encoded(pattern(), "PNG")).stride() == (1, 48, 3)


# EXIF orientation -> how an upright image is stored with it. The decoder must turn it back.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.asarray(pattern("RGB", 16, 32))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = decode(encoded(stored, kind, exif=exif, **options)).permute(1, 2, 0).numpy()
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)


def test_damaged_exif_leaves_the_pixels() -> None:
    data = encoded(pattern(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), np.asarray(pattern()))


class TestTransparency:
    def test_alpha_is_put_on_white(self) -> None:
        image = Image.new("RGBA", (3, 1))
        for x, alpha in enumerate((0, 128, 255)):
            image.putpixel((x, 0), (10, 20, 30, alpha))
        assert pixels(encoded(image, "PNG")) == [WHITE, [132, 137, 142], [10, 20, 30]]

    def test_gray_with_alpha_stays_gray(self) -> None:
        image = Image.new("LA", (2, 1), (100, 255))
        image.putpixel((1, 0), (0, 0))
        assert grays(encoded(image, "PNG")) == [100, 255]

    def test_palette_with_alpha(self) -> None:
        data = png(4, 2, PALETTE, b"\x1b", palette=bytes(range(12)), transparency=b"\x00\x80")
        assert pixels(data) == [WHITE, [129, 129, 130], [6, 7, 8], [9, 10, 11]]

    @pytest.mark.parametrize(
        ("depth", "row", "key", "expected"),
        [
            (1, b"\x40", 1, [0, 255, 0, 0]),
            (1, b"\x40", 0, [255, 255, 255, 255]),
            (2, b"\x1b", 1, [0, 255, 170, 255]),
            (4, b"\x0f\x5a", 5, [0, 255, 255, 170]),
            (8, b"\x00\x40\x80\xff", 0x80, [0, 64, 255, 255]),
            (16, struct.pack(">4H", 0, 1000, 1001, 65535), 1000, [0, 255, 4, 255]),
        ],
    )
    def test_transparent_gray_level(
        self, depth: int, row: bytes, key: int, expected: list[int]
    ) -> None:
        data = png(4, depth, GRAY, row, transparency=struct.pack(">H", key))
        assert grays(data) == expected

    def test_transparent_color(self) -> None:
        row, key = b"\x01\x02\x03\x10\x20\x30", struct.pack(">3H", 1, 2, 3)
        assert pixels(png(2, 8, RGB, row, transparency=key)) == [WHITE, [16, 32, 48]]

    def test_transparent_deep_color(self) -> None:
        row = struct.pack(">6H", 1000, 2000, 3000, 30000, 40000, 50000)
        data = png(2, 16, RGB, row, transparency=row[:6])
        assert pixels(data) == [WHITE, [117, 156, 195]]

    def test_transparent_gif(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([200, 0, 0, 0, 200, 0])
        image.putpixel((1, 0), 1)
        assert pixels(encoded(image, "GIF", transparency=0)) == [WHITE, [0, 200, 0]]

    def test_webp(self) -> None:
        image = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
        assert pixels(encoded(image, "WEBP", lossless=True)) == [WHITE] * 64


class TestDepth:
    def test_one_bit(self) -> None:
        image = Image.new("1", (2, 1), 1)
        image.putpixel((0, 0), 0)
        assert grays(encoded(image, "PNG")) == [0, 255]
        assert grays(encoded(image, "TIFF")) == [0, 255]

    @pytest.mark.parametrize(("depth", "row"), [(1, b"\x40"), (2, b"\x30"), (4, b"\x0f\x00")])
    def test_few_bits_span_black_to_white(self, depth: int, row: bytes) -> None:
        assert grays(png(4 if depth < 4 else 3, depth, GRAY, row))[:3] == [0, 255, 0]

    def test_sixteen_bit_gray_is_scaled(self) -> None:
        row = struct.pack(">4H", 0, 257 * 100, 257 * 100 + 129, 65535)
        assert grays(png(4, 16, GRAY, row)) == [0, 100, 101, 255]
        little = struct.pack("<3H", 0, 257 * 7, 65535)
        assert grays(gray_tiff(3, 16, little)) == [0, 7, 255]
        assert grays(gray_tiff(3, 16, little, white_is_zero=True)) == [255, 248, 0]

    def test_sixteen_bit_color_keeps_the_high_byte(self) -> None:
        row = struct.pack(">3H", 1000, 40000, 65535)
        assert pixels(png(1, 16, RGB, row)) == [[3, 156, 255]]
        assert pixels(png(1, 16, RGBA, row + b"\xff\xff")) == [[3, 156, 255]]
        assert grays(png(1, 16, GRAY_ALPHA, struct.pack(">2H", 40000, 65535))) == [156]

    def test_twelve_bit_gray(self) -> None:
        assert grays(gray_tiff(2, 12, b"\xff\xf8\x00")) == [255, 128]

    def test_integers_are_sixteen_bit(self) -> None:
        assert grays(gray_tiff(2, 32, struct.pack("<2i", 0, 257 * 3), sample_format=2)) == [0, 3]

    def test_wide_integers_are_stretched(self) -> None:
        signed = struct.pack("<3i", -128, 0, 127)
        assert grays(gray_tiff(3, 32, signed, sample_format=2)) == [0, 128, 255]
        unsigned = struct.pack("<2I", 1_000_000_000, 4_000_000_000)
        assert grays(gray_tiff(2, 32, unsigned)) == [0, 255]

    def test_floats_are_zero_to_one(self) -> None:
        data = struct.pack("<4f", 0.0, 0.2, 1.0, float("nan"))
        assert grays(gray_tiff(4, 32, data, sample_format=3)) == [0, 51, 255, 0]

    def test_wide_floats_are_stretched(self) -> None:
        data = struct.pack("<4f", -3e38, 0.0, 3e38, float("inf"))
        assert grays(gray_tiff(4, 32, data, sample_format=3)) == [0, 128, 255, 0]

    def test_constant_image_out_of_range(self) -> None:
        data = struct.pack("<2f", 7.0, 7.0)
        assert grays(gray_tiff(2, 32, data, sample_format=3)) == [0, 0]


class TestColorSpaces:
    @pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
    def test_cmyk(self, kind: str) -> None:
        """No ink is white, and full cyan has no red; a JPEG stores it inverted, as Adobe does."""
        for ink, expected in (((0, 0, 0, 0), WHITE), ((255, 0, 0, 0), [0, 255, 255])):
            decoded = torch.tensor(pixels(encoded(Image.new("CMYK", (8, 8), ink), kind)))
            assert (decoded - torch.tensor(expected)).abs().max() <= 2

    def test_lab(self) -> None:
        to_lab = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        image = to_lab.apply(pattern(), Image.new("LAB", pattern().size))
        decoded = decode(encoded(image, "TIFF")).permute(1, 2, 0).numpy().astype(int)
        # The 8-bit steps of L, a and b are coarser than those of sRGB.
        assert np.abs(decoded - np.asarray(pattern())).mean() < 2

    def test_ycbcr_tiff(self) -> None:
        data = encoded(pattern("YCbCr", 16, 16), "TIFF")
        decoded = decode(data).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(decoded - np.asarray(pattern("RGB", 16, 16))).max() <= 3

    def test_profile_of_srgb_leaves_pixels_exact(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        data = encoded(pattern(), "PNG", icc_profile=profile)
        assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), np.asarray(pattern()))

    def test_profile_is_converted_to_srgb(self) -> None:
        image = Image.new("RGB", (1, 1), (200, 100, 50))
        data = encoded(image, "PNG", icc_profile=swapped_primaries())
        assert pixels(data) == [[50, 100, 200]]

    def test_profile_under_alpha(self) -> None:
        image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
        image.putpixel((1, 0), (200, 100, 50, 0))
        data = encoded(image, "PNG", icc_profile=swapped_primaries())
        assert pixels(data) == [[50, 100, 200], WHITE]

    def test_gray_profile_keeps_gray(self) -> None:
        image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
        levels = grays(encoded(image, "PNG", icc_profile=gray_profile(gamma=1.0)))
        # Linear light to the sRGB curve (IEC 61966-2-1).
        light = np.arange(256) / 255
        curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        assert np.abs(np.array(levels) - 255 * curve).max() <= 2

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
    def test_broken_profile_is_ignored(self, mode: str) -> None:
        plain = encoded(pattern(mode), "PNG")
        for profile in (b"broken", gray_profile(1.0)[:200], swapped_primaries()[:-40]):
            assert torch.equal(
                decode(encoded(pattern(mode), "PNG", icc_profile=profile)), decode(plain)
            )

    def test_profile_for_other_channels_is_ignored(self) -> None:
        data = encoded(pattern(), "PNG", icc_profile=gray_profile(1.0))
        assert torch.equal(decode(data), decode(encoded(pattern(), "PNG")))


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=40), st.sampled_from(["PNG", "TIFF", "BMP"])
)
def test_gray_images_have_three_equal_channels(levels: list[int], kind: str) -> None:
    image = Image.fromarray(np.array([levels], dtype=np.uint8))
    assert grays(encoded(image, kind)) == levels


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(data)[0] == [255, 0, 0]


class TestErrors:
    def test_empty(self) -> None:
        with pytest.raises(SampleError, match=r"sample 2 \(a.png\) is empty.*with the @") as caught:
            decode(b"")
        assert (caught.value.sample, caught.value.index) == ("a.png", 2)

    @pytest.mark.parametrize(
        ("data", "hint"),
        [
            (b"\n <!doctype html><html>", "markup"),
            (b'{"a": 1}', "JSON"),
            (b"%PDF-1.7", "PDF"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
            (b"iVBORw0KGgoAAAANSUhEUg", "base64"),
            (b"nothing known", r"can be read; send JPEG"),
        ],
    )
    def test_not_an_image(self, data: bytes, hint: str) -> None:
        with pytest.raises(SampleError, match=rf"sample 2 \(a.png\) is not an image.*{hint}"):
            decode(data)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_truncated(self, kind: str) -> None:
        data = encoded(pattern("RGB", 64, 64), kind)
        with pytest.raises(SampleError, match=r"sample 2 \(a.png\)"):
            decode(data[: len(data) // 2])

    def test_too_many_pixels(self) -> None:
        data = encoded(pattern("RGB", 10, 10), "PNG")
        assert decode(data, max_pixels=100).shape == (3, 10, 10)
        with pytest.raises(TooLargeError, match="10 x 10 pixels; the limit is 99"):
            decode(data, max_pixels=99)

    def test_size_is_checked_before_decoding(self) -> None:
        """The pixels are damaged, so decoding would raise another error."""
        data = png(9000, 8, GRAY, b"") + b"rest"
        with pytest.raises(TooLargeError):
            decode(data, max_pixels=8999)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("side", [10_000, 60_000])
    def test_pillows_own_limits_never_escape(self, side: int) -> None:
        header = png(side, 8, GRAY, b"")
        bomb = header[:20] + struct.pack(">I", side) + header[24:]
        chunk = bomb[12:29]
        bomb = bomb[:29] + struct.pack(">I", crc(chunk)) + bomb[33:]
        with pytest.raises(TooLargeError):
            decode(bomb)

    def test_decoding_leaves_pillow_and_warnings_as_they_were(self) -> None:
        before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        decode(encoded(pattern(), "PNG"))
        assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


FILES = [
    *(encoded(pattern(), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")),
    *(encoded(pattern(), kind) for kind in ("JPEG2000", "AVIF")),
    encoded(pattern("CMYK"), "JPEG"),
    encoded(pattern("P"), "PNG", transparency=3),
    encoded(pattern(), "TIFF", compression="tiff_lzw"),
    gray_tiff(2, 32, struct.pack("<2f", 0.5, 1.0), sample_format=3),
    png(2, 16, GRAY, b"\x01\x02\x03\x04", transparency=b"\x01\x02"),
]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    decodes_or_refuses(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 10_000),
)
def test_damaged_files_decode_or_are_refused(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    decodes_or_refuses(bytes(damaged))
    decodes_or_refuses(bytes(damaged[: cut % len(damaged)]))


def decodes_or_refuses(data: bytes) -> None:
    """Check that an image file is decoded, or refused with an error that names the sample."""
    try:
        decode(data)
    except (SampleError, TooLargeError) as error:
        assert "sample 2 (a.png)" in str(error)


def swapped_primaries() -> bytes:
    """The sRGB profile with the columns of red and blue swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def gray_profile(gamma: float) -> bytes:
    """A minimal ICC profile of one gray curve (ICC.1:2001-04)."""
    white = struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    text = struct.pack(">4s4x", b"text") + b"test\0\0\0\0"
    description = struct.pack(">4s4xI", b"desc", 5) + b"gray\0" + bytes(78) + b"\0"
    tags, blocks, offset = b"", b"", 128 + 4 + 12 * 4
    for name, block in (
        (b"wtpt", white),
        (b"kTRC", curve),
        (b"cprt", text),
        (b"desc", description),
    ):
        tags += struct.pack(">4sII", name, offset + len(blocks), len(block))
        blocks += block + bytes(-len(block) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s",
        128 + 4 + len(tags) + len(blocks),
        0x02100000,
        b"mntr",
        b"GRAY",
        b"XYZ ",
        b"acsp",
    )
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", 4) + tags + blocks


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
)
def test_every_kind_of_jpeg_is_what_pillow_decodes(
    height: int, width: int, quality: int, subsampling: str, progressive: bool
) -> None:
    target = io.BytesIO()
    image = pattern("RGB", max(height, 2), max(width, 2)).crop((0, 0, width, height))
    image.save(target, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(target.getvalue())))
    assert np.array_equal(decode(target.getvalue()).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_conversion_in_bands_gives_the_pixels_of_the_whole_image(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images are converted in bands of rows; here each band is one row."""
    values = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray((values[..., 0].astype(np.float64) * 300).astype(dtype))
    elif mode == "LAB":
        picture = Image.merge("LAB", Image.fromarray(values[..., :3], "RGB").split())
    else:
        picture = Image.fromarray(values, "RGBA").convert(mode)
    exif = picture.getexif()
    exif[0x0112] = orientation
    kind = "TIFF" if mode in ("LA", "CMYK", "LAB", "I;16", "I", "F") else "PNG"
    data = encoded(picture, kind, exif=exif)
    whole = decode(data)
    assert tuple(whole.shape) == ((3, 5, 7) if orientation > 4 else (3, 7, 5))
    monkeypatch.setattr(colors, "_PIXELS_PER_BAND", 5)
    assert torch.equal(decode(data), whole)
