"""Makes image files that need far more work or memory than their size suggests."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from image_files import GRAY, PALETTE, RGB, RGBA, encoded
from PIL import Image, ImageCms

_SIDE = 7071
"""Side of a square of just under 50 million pixels."""

_MIB = 1 << 20


def zeros(size: int) -> bytes:
    """Make a zlib stream of `size` zero bytes, without compressing that many."""
    return b"\x78\x01" + deflated_zeros(size) + struct.pack(">I", size % 65521 << 16 | 1)


def deflated_zeros(size: int) -> bytes:
    """Make a raw deflate stream of `size` zero bytes by repeating a block of one MiB."""
    whole, rest = divmod(size, _MIB)
    return _block(_MIB) * whole + _block(rest) + b"\x03\x00"


@cache
def _block(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Make a chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


_CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, 4: 2, RGBA: 4}


def png(
    width: int,
    height: int,
    depth: int = 8,
    color: int = GRAY,
    *,
    interlace: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    data: bytes | None = None,
) -> bytes:
    """Make a black PNG file, with further chunks before and after its data."""
    row = 1 + (width * depth * _CHANNELS[color] + 7) // 8
    if data is None:
        # An interlaced image has more rows, and so more filter bytes. Decoders ignore what is too
        # much.
        data = zeros(row * height + (8 * height + 8 * width if interlace else 0))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlace))
    palette = chunk(b"PLTE", bytes(768)) if color == PALETTE else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + before
        + chunk(b"IDAT", data)
        + after
        + chunk(b"IEND")
    )


def _apng(frames: int, width: int, height: int, promised: int | None = None) -> bytes:
    number = itertools.count()
    packed = zeros((1 + 3 * width) * height)

    def control() -> bytes:
        return chunk(
            b"fcTL", struct.pack(">IIIIIHHBB", next(number), width, height, 0, 0, 1, 10, 1, 0)
        )

    first, after = control(), bytearray()
    for _ in range(frames - 1):
        after += control() + chunk(b"fdAT", struct.pack(">I", next(number)) + packed)
    before = chunk(b"acTL", struct.pack(">II", promised or frames, 0)) + first
    return png(width, height, 8, RGB, before=before, after=bytes(after))


def segment(marker: int, content: bytes = b"") -> bytes:
    """Make a segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(
    width: int,
    height: int,
    frame: int,
    scans: Iterable[bytes],
    *,
    components: int = 1,
    before: bytes = b"",
    sampling: int = 0x11,
) -> bytes:
    """Make a JPEG file from the headers of scans, which have no data unless `scans` has them.

    Args:
        width: width in the header.
        height: height in the header.
        frame: frame type, as the second byte of its SOF marker.
        scans: headers of the scans.
        components: number of colour components.
        before: segments before the tables.
        sampling: sampling factors of every component.
    """
    sof = struct.pack(">BHHB", 8, height, width, components)
    sof += b"".join(bytes((number, sampling, 0)) for number in range(1, components + 1))
    # Huffman tables with a single code of one bit, for the value 0.
    codes = b"\x01" + bytes(15) + b"\0"
    tables = b"".join(segment(0xC4, bytes([kind]) + codes) for kind in (0x00, 0x10))
    return (
        b"\xff\xd8"
        + before
        + segment(0xDB, b"\0" + b"\x01" * 64)
        + segment(frame, sof)
        + tables
        + b"".join(scans)
        + b"\xff\xd9"
    )


def scan(component: int = 1, first: int = 0, last: int = 63, bits: int = 0) -> bytes:
    """Make the header of a scan of one component.

    Args:
        component: the component.
        first: first coefficient of the spectral selection.
        last: last coefficient of the spectral selection.
        bits: bit positions of the successive approximation.
    """
    return segment(0xDA, bytes((1, component, 0, first, last, bits)))


def _repeated_scan(side: int, count: int) -> bytes:
    """Make a progressive JPEG file whose last scan is repeated with its data."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


@cache
def _solid(kind: str, side: int, **options: Any) -> bytes:
    return encoded(Image.new("RGB", (side, side)), kind, **options)


def tiff(
    tags: Mapping[int, tuple[int, int, int | bytes]], data: bytes = b"", *, pages: int = 1
) -> bytes:
    """Make a little-endian TIFF file; all its pages have the same tags and the same data.

    Args:
        tags: number of each tag -> its type, its count, and its value or the bytes of its values.
        data: data of the image, at offset 8 of the file.
        pages: number of pages.
    """
    blob, table = bytearray(data), bytearray(struct.pack("<H", len(tags)))
    for tag, (kind, count, value) in sorted(tags.items()):
        if isinstance(value, bytes):
            table += struct.pack("<HHII", tag, kind, count, 8 + len(blob))
            blob += value
        else:
            table += struct.pack("<HHII", tag, kind, count, value)
    start = 8 + len(blob)
    size = len(table) + 4
    directories = bytearray()
    for page in range(pages):
        following = start + size * (page + 1) if page + 1 < pages else 0
        directories += table + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", start) + bytes(blob) + bytes(directories)


_SHORT, _LONG, _UNDEFINED, _FLOAT = 3, 4, 7, 11


def _image_tags(
    width: int, height: int, *, bits: int = 8, compression: int = 1, photometric: int = 1
) -> dict[int, tuple[int, int, int | bytes]]:
    return {
        256: (_LONG, 1, width),
        257: (_LONG, 1, height),
        258: (_SHORT, 1, bits),
        259: (_SHORT, 1, compression),
        262: (_SHORT, 1, photometric),
        277: (_SHORT, 1, 1),
    }


def _striped(
    width: int,
    height: int,
    data: bytes,
    extra: Mapping[int, tuple[int, int, int | bytes]] | None = None,
    **kind: int,
) -> bytes:
    tags = _image_tags(width, height, **kind) | {
        273: (_LONG, 1, 8),
        278: (_LONG, 1, height),
        279: (_LONG, 1, len(data)),
    }
    return tiff(tags | dict(extra or {}), data)


def _tiled(width: int, height: int, tile: int, data: bytes, **kind: int) -> bytes:
    tags = _image_tags(width, height, **kind) | {
        322: (_LONG, 1, tile),
        323: (_LONG, 1, tile),
        324: (_LONG, 1, 8),
        325: (_LONG, 1, len(data)),
    }
    return tiff(tags, data)


def _profile(padding: int, salt: int = 0) -> bytes:
    """Make an sRGB profile with `padding` bytes more; each salt gives a different one."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += struct.pack("<I", salt) + bytes(padding)
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def _table_profile(grid: int, channels: int = 3) -> bytes:
    """Make an ICC profile with a table A2B0 of grid ** channels points (ICC.1:2010, 10.9)."""
    table = b"mft1" + bytes(4) + bytes((channels, 3, grid, 0))
    table += b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table += bytes(range(256)) * channels + bytes(3 * grid**channels) + bytes(range(256)) * 3
    return _icc({b"A2B0": table}, b"RGB " if channels == 3 else b"CMYK")


def _curve_profile(points: int) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">I", points) + bytes(2 * points)
    point = b"XYZ " + bytes(4) + struct.pack(">3i", 30000, 30000, 20000)
    tags = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _icc(tags | dict.fromkeys((b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), point), b"RGB ")


def _icc(tags: Mapping[bytes, bytes], space: bytes) -> bytes:
    start = 132 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = bytearray(128)
    header[8:12] = b"\x02\x40\0\0"
    header[12:24] = b"mntr" + space + b"Lab "
    header[36:40] = b"acsp"
    header[68:80] = bytes.fromhex("0000f6d6000100000000d32d")
    profile = bytes(header) + table + data
    return struct.pack(">I", len(profile)) + profile[4:]


def _jpeg_with_profile(profile: bytes) -> bytes:
    return encoded(Image.new("RGB", (8, 8)), "JPEG", icc_profile=profile[: 255 * 65519])


def _tiff_with_profile(profile: bytes) -> bytes:
    return encoded(Image.new("RGB", (8, 8)), "TIFF", icc_profile=profile)


def _exif_loop() -> bytes:
    """Make EXIF data whose directories point at themselves."""
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x14A, 0x8769, 0x8825, 0xA005))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 4) + tags + struct.pack("<I", 8)


def _gif(width: int, height: int, frames: Iterable[bytes], extra: bytes = b"") -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + extra + b"".join(frames) + b";"


def _gif_frame(width: int, height: int, data: bytes = b"\x02\x44\x01\0", left: int = 0) -> bytes:
    return b"," + struct.pack("<HHHHB", left, 0, width, height, 0) + b"\x02" + data[1:]


def _blocks(data: bytes) -> bytes:
    """Cut data into GIF's sub-blocks, which have at most 255 bytes each."""
    cut = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes([len(each)]) + each for each in cut) + b"\0"


def _bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    palette = bytes(4 * 2**bits) if bits <= 8 else b""
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0
    )
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def _riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _animated_webp(width: int, height: int, frames: int) -> bytes:
    """Make an animated WebP file with tiny frames on a canvas of the given size."""
    image = encoded(Image.new("RGB", (2, 2)), "WEBP", lossless=True)[12:]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + b"\x01\0\0" * 2 + b"\x0a\0\0\0" + image
    return _riff(
        _riff_chunk(b"VP8X", b"\x02\0\0\0" + canvas),
        _riff_chunk(b"ANIM", bytes(6)),
        *[_riff_chunk(b"ANMF", frame)] * frames,
    )


def _webp_with(kind: bytes, flag: int, content: bytes) -> bytes:
    image = encoded(Image.new("RGB", (2, 2)), "WEBP", lossless=True)[12:]
    extended = _riff_chunk(b"VP8X", bytes([flag, 0, 0, 0]) + b"\x01\0\0" * 2)
    return _riff(extended, _riff_chunk(kind, content), image)


def _jpeg2000(old: bytes, new: bytes, side: int = 256) -> bytes:
    """Make a JPEG 2000 codestream and change its SIZ segment (ISO 15444-1, A.5.1)."""
    data = encoded(Image.new("L", (side, side)), "JPEG2000", no_jp2=True)
    assert old in data
    return data.replace(old, new, 1)


def _siz(width: int, height: int, tile: int, tile_y: int | None = None) -> bytes:
    return struct.pack(">IIIIIIII", width, height, 0, 0, tile, tile_y or tile, 0, 0)


def _many_components(count: int) -> bytes:
    data = encoded(Image.new("L", (256, 256)), "JPEG2000", no_jp2=True)
    place = data.index(_siz(256, 256, 256)) + 32
    grown = struct.pack(">H", count) + data[place + 2 : place + 5] * count
    head = data[:place] + grown + data[place + 5 :]
    return head[:4] + struct.pack(">H", 38 + 3 * count) + head[6:]


def _avif(side: int, claimed: int) -> bytes:
    """Make an AVIF file whose header claims another size than the image has."""
    data = encoded(Image.new("RGB", (side, side)), "AVIF", speed=10)
    old = b"ispe" + bytes(4) + struct.pack(">II", side, side)
    assert old in data
    return data.replace(old, old[:8] + struct.pack(">II", claimed, claimed))


def _plain_ppm(kind: bytes, width: int, height: int, token: bytes, top: bytes = b"255\n") -> bytes:
    return kind + b"\n%d %d\n" % (width, height) + top + token * (width * height)


def _mpo_loop() -> bytes:
    """Make a JPEG file whose APP2 segment lists 65,535 pictures, all at the start of the file."""
    entries = struct.pack("<HHHII", 3, 0xB000, 7, 4, 0x30303130)[2:]
    entries += struct.pack("<HHII", 0xB001, 4, 1, 65535)
    entries += struct.pack("<HHII", 0xB002, 7, 16 * 4000, 50)
    mp = b"MPF\0II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4) + bytes(16 * 4000)
    picture = encoded(Image.new("RGB", (8, 8)), "JPEG")
    return picture[:2] + segment(0xE2, mp) + picture[2:]


def _deep_jpegs() -> dict[str, Callable[[], bytes]]:
    progressive, arithmetic, sequential = 0xC2, 0xCA, 0xC0
    refinements = [scan(1, 0, 0), *[scan(1, 1, 63)] * 20_000]
    return {
        "jpeg-2000-progressive-scans": lambda: jpeg(2048, 2048, progressive, refinements[:2001]),
        "jpeg-20000-tiny-scans": lambda: jpeg(512, 512, progressive, refinements),
        "jpeg-60-large-scans": lambda: jpeg(7000, 7000, progressive, refinements[:61]),
        "jpeg-scans-with-data": lambda: _repeated_scan(4096, 2000),
        "jpeg-refinement-scans": lambda: jpeg(
            4096, 4096, progressive, [scan(1, 0, 0), *[scan(1, 1, 63, 0x10)] * 500]
        ),
        "jpeg-arithmetic-scans": lambda: jpeg(4096, 4096, arithmetic, refinements[:500]),
        "jpeg-sequential-scans": lambda: jpeg(
            4096, 4096, sequential, [scan(1)] * 500, components=3
        ),
        "jpeg-progressive-50-megapixels": lambda: jpeg(
            _SIDE, _SIDE, progressive, [scan(1, 0, 0), scan(2, 0, 0), scan(3, 0, 0)], components=3
        ),
    }


SINGLE: Mapping[str, Callable[[], bytes]] = {
    # These have more pixels when they are resized, or while they are decoded, than in the file.
    "png-65000x1": lambda: png(65_000, 1, 8, RGB),
    "png-1x65000": lambda: png(1, 65_000, 8, RGB),
    "png-20000x1": lambda: png(20_000, 1),
    "png-50000000x1": lambda: png(50_000_000, 1, 1),
    "png-1x25000000": lambda: png(1, 25_000_000, 1),
    "png-5000x3": lambda: png(5_000, 3, 8, RGB),
    "png-200000x250": lambda: png(200_000, 250, 1),
    "gif-65535x1": lambda: _gif(65535, 1, [_gif_frame(65535, 1)]),
    "bmp-1x500000": lambda: _bmp(1, 500_000, 1, 0, bytes(2_000_000)),
    "tiff-1000000x1": lambda: _striped(1_000_000, 1, zeros(1_000_000), compression=8),
    # 50 million pixels in few bytes.
    "png-1-bit-50-megapixels": lambda: png(_SIDE, _SIDE, 1),
    "png-16-bit-gray": lambda: png(_SIDE, _SIDE, 16),
    "png-16-bit-rgba": lambda: png(_SIDE, _SIDE, 16, RGBA),
    "png-interlaced": lambda: png(_SIDE, _SIDE, 8, RGB, interlace=True),
    "png-palette-transparent": lambda: png(
        _SIDE, _SIDE, 8, PALETTE, before=chunk(b"tRNS", bytes(range(256)))
    ),
    "png-rgba": lambda: png(_SIDE, _SIDE, 8, RGBA),
    "png-gray-transparent-16": lambda: png(_SIDE, _SIDE, 16, before=chunk(b"tRNS", b"\0\0")),
    "png-51-megapixels": lambda: png(7142, 7142, 1),
    "png-2-gigapixels": lambda: png(2**31 - 1, 1, 1, data=zeros(1000)),
    "png-4-billion-squared": lambda: png(2**31 - 1, 2**31 - 1, 16, RGBA, data=zeros(1000)),
    "png-no-data": lambda: png(_SIDE, _SIDE, 8, RGB, data=b""),
    "png-second-header": lambda: png(
        8, 8, after=chunk(b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0))
    ),
    "png-data-of-a-gigabyte": lambda: png(8, 8, data=zeros(1 << 30)),
    "webp-50-megapixels": lambda: _solid("WEBP", 7000, lossless=True, method=0),
    "gif-50-megapixels": lambda: _gif(_SIDE, _SIDE, [_gif_frame(_SIDE, _SIDE)]),
    "gif-65535x65535": lambda: _gif(65535, 65535, [_gif_frame(1, 1)]),
    "gif-frame-larger-than-screen": lambda: _gif(8, 8, [_gif_frame(65535, 65535)]),
    "gif-frame-far-right": lambda: _gif(8, 8, [_gif_frame(65535, 700, left=60000)]),
    "jpeg-65535x65535": lambda: jpeg(65535, 65535, 0xC0, [scan()]),
    "jpeg-no-data": lambda: jpeg(_SIDE, _SIDE, 0xC0, [scan()], components=3),
    "jpeg-without-height": lambda: jpeg(60000, 0, 0xC0, [scan()]),
    "jpeg-odd-sampling": lambda: jpeg(
        _SIDE, _SIDE, 0xC0, [scan(1), scan(2), scan(3)], components=3, sampling=0x44
    ),
    **_deep_jpegs(),
    "jpeg-restarts": lambda: jpeg(
        _SIDE,
        _SIDE,
        0xC0,
        [
            segment(0xDD, b"\0\x01"),
            scan(),
            b"".join(bytes((255, 0xD0 + i % 8)) for i in range(780_000)),
        ],
    ),
    "jpeg-many-segments": lambda: _before_jpeg(segment(0xE1) * 1_000_000),
    "jpeg-many-comments": lambda: _before_jpeg(segment(0xFE, b"x" * 60_000) * 300),
    "jpeg-many-tables": lambda: _before_jpeg(segment(0xDB, b"\0" + b"\x01" * 64) * 200_000),
    "jpeg-many-pictures": _mpo_loop,
    "jpeg-fill-bytes": lambda: _before_jpeg(b"\xff" * 10_000_000),
    "exif-loop": lambda: _before_jpeg(segment(0xE1, _exif_loop())),
    "png-exif-loop": lambda: png(8, 8, before=chunk(b"eXIf", _exif_loop()[6:])),
    # These contain much besides pixels.
    "png-texts": lambda: png(8, 8, before=chunk(b"zTXt", b"k\0\0" + zeros(1_000_000)) * 2000),
    "png-text-of-a-gigabyte": lambda: png(8, 8, before=chunk(b"zTXt", b"k\0\0" + zeros(1 << 30))),
    "png-texts-behind": lambda: png(8, 8, after=chunk(b"zTXt", b"k\0\0" + zeros(1_000_000)) * 2000),
    "png-international-text": lambda: png(
        8, 8, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zeros(1 << 30))
    ),
    "png-profile-of-a-gigabyte": lambda: png(
        8, 8, before=chunk(b"iCCP", b"p\0\0" + zeros(1 << 30))
    ),
    "png-empty-chunks": lambda: png(8, 8, before=chunk(b"teSt") * 1_500_000),
    "png-empty-data-chunks": lambda: png(8, 8, after=chunk(b"IDAT") * 1_500_000),
    "png-empty-texts": lambda: png(8, 8, before=chunk(b"tEXt", b"k\0v") * 1_000_000),
    "gif-comment": lambda: _gif(8, 8, [_gif_frame(8, 8)], b"!\xfe" + _blocks(b"x" * 20_000_000)),
    "gif-tiny-comments": lambda: _gif(8, 8, [_gif_frame(8, 8)], b"!\xfe\x01x\0" * 3_000_000),
    "gif-tiny-blocks": lambda: _gif(
        8, 8, [_gif_frame(8, 8, b"\x02" + b"\x01\0" * 8_000_000 + b"\0")]
    ),
    "gif-padding": lambda: _gif(8, 8, [_gif_frame(8, 8)], b"\0" * 20_000_000),
    "webp-large-canvas": lambda: _animated_webp(16384, 16384, 1),
    "webp-canvas-in-bounds": lambda: _animated_webp(7000, 7000, 2),
    "webp-large-profile": lambda: _webp_with(b"ICCP", 0x20, _profile(25_000_000)),
    "webp-large-exif": lambda: _webp_with(b"EXIF", 0x08, _exif_loop()[6:] + bytes(25_000_000)),
    # TIFF: nearly everything in it is a pointer.
    "tiff-tile-of-40000": lambda: _tiled(16, 16, 40_000, zeros(1000), compression=8),
    "tiff-tile-of-40000-raw": lambda: _tiled(16, 16, 40_000, bytes(1000)),
    "tiff-tile-of-40000-lzw": lambda: _tiled(16, 16, 40_000, b"\x80\x00\x80", compression=5),
    "tiff-tile-of-40000-jpeg": lambda: _tiled(
        16, 16, 40_000, jpeg(40_000, 40_000, 0xC2, [scan(1, 0, 0)]), compression=7
    ),
    "tiff-tile-of-7000": lambda: _tiled(16, 16, 7_040, zeros(7040 * 7040), compression=8),
    "tiff-jpeg-scans": lambda: _striped(
        2048, 2048, jpeg(2048, 2048, 0xC2, [scan(1, 0, 0), *[scan(1, 1, 63)] * 2000]), compression=7
    ),
    "tiff-strip-of-2-gigarows": lambda: tiff(
        _image_tags(16, 16, compression=8)
        | {273: (_LONG, 1, 8), 278: (_LONG, 1, 2**31), 279: (_LONG, 1, 100)},
        zeros(1 << 28),
    ),
    "tiff-fax": lambda: _striped(_SIDE, _SIDE, b"\x80" * 1000, bits=1, compression=4),
    "tiff-packbits": lambda: _striped(_SIDE, _SIDE, b"\x81\0" * 400_000, compression=32773),
    "tiff-16-bit": lambda: _striped(_SIDE, _SIDE, zeros(2 * _SIDE**2), bits=16, compression=8),
    "tiff-32-bit": lambda: _striped(_SIDE, _SIDE, zeros(4 * _SIDE**2), bits=32, compression=8),
    "tiff-float": lambda: _striped(
        _SIDE, _SIDE, zeros(4 * _SIDE**2), {339: (_SHORT, 1, 3)}, bits=32, compression=8
    ),
    "tiff-lab": lambda: _striped(
        4000,
        4000,
        zeros(3 * 4000**2),
        {258: (_SHORT, 3, b"\x08\0" * 3), 277: (_SHORT, 1, 3)},
        compression=8,
        photometric=8,
    ),
    "tiff-cmyk": lambda: _striped(
        _SIDE,
        _SIDE,
        zeros(4 * _SIDE**2),
        {258: (_SHORT, 4, b"\x08\0" * 4), 277: (_SHORT, 1, 4)},
        compression=8,
        photometric=5,
    ),
    "tiff-overlapping-tags": lambda: overlapping_tags(2000, 1_000_000),
    "tiff-65000-tags": lambda: overlapping_tags(65_000, 100_000),
    "tiff-many-strips": lambda: tiff(
        _image_tags(16, 16) | {273: (_LONG, 7_000_000, bytes(28_000_000)), 278: (_LONG, 1, 1)}
    ),
    "tiff-many-tiles": lambda: tiff(
        _image_tags(16, 16)
        | {322: (_LONG, 1, 16), 323: (_LONG, 1, 16), 324: (_LONG, 7_000_000, bytes(28_000_000))}
    ),
    "tiff-many-bits-per-sample": lambda: _striped(
        16, 16, bytes(256), {258: (_SHORT, 14_000_000, b"\x08\0" * 14_000_000)}
    ),
    "tiff-many-extra-samples": lambda: _striped(
        16, 16, bytes(256), {338: (_SHORT, 14_000_000, bytes(28_000_000))}
    ),
    "tiff-samples-per-pixel": lambda: _striped(16, 16, bytes(256), {277: (_SHORT, 1, 65535)}),
    "tiff-counts-of-4-billion": lambda: _striped(
        16, 16, bytes(256), {700: (1, 2**32 - 1, 8), 34675: (7, 2**32 - 1, 8)}
    ),
    "tiff-loop": lambda: _loop(),
    "tiff-large-profile": lambda: _tiff_with_profile(_profile(28_000_000)),
    # Colour profiles.
    "icc-large-table": lambda: _tiff_with_profile(_table_profile(200)),
    "icc-four-channels": lambda: encoded(
        Image.new("CMYK", (8, 8)), "TIFF", icc_profile=_table_profile(50, 4)
    ),
    "icc-large-curves": lambda: _tiff_with_profile(_curve_profile(4_000_000)),
    "icc-in-jpeg": lambda: _jpeg_with_profile(_profile(16_000_000)),
    # The formats that Pillow decodes in Python.
    "bmp-runs": lambda: _bmp(7000, 7000, 8, 1, b"\x01\0" * 14_000_000),
    "bmp-runs-past-the-end": lambda: _bmp(100, 100, 8, 1, b"\xff\0" * 14_000_000),
    "bmp-deltas": lambda: _bmp(7000, 7000, 8, 1, b"\0\2\0\0" * 7_000_000),
    "bmp-runs-of-4-bits": lambda: _bmp(7000, 7000, 4, 2, b"\xff\0" * 200_000),
    "bmp-1-bit": lambda: _bmp(_SIDE, _SIDE, 1, 0, bytes(884 * _SIDE)),
    "bmp-huge": lambda: _bmp(2**31 - 1, 2**31 - 1, 24, 0, bytes(1000)),
    "ppm-plain": lambda: _plain_ppm(b"P2", 4000, 3500, b"1 "),
    "ppm-plain-color": lambda: _plain_ppm(b"P3", 2000, 2300, b"1 1 1 "),
    "ppm-plain-bits": lambda: _plain_ppm(b"P1", 5000, 5600, b"1", b""),
    "ppm-comments": lambda: _plain_ppm(b"P2", 2000, 3000, b"#\n1 "),
    "ppm-scaled": lambda: b"P5\n5200 5200\n254\n" + bytes(5200 * 5200),
    "ppm-scaled-16": lambda: b"P5\n3700 3700\n65534\n" + bytes(2 * 3700 * 3700),
    "ppm-header-digits": lambda: b"P5\n" + b"9" * 10_000_000 + b" 1\n255\n",
    "ppm-header-comments": lambda: b"P5\n" + b"#\n" * 10_000_000 + b"1 1\n255\n0",
    "ppm-no-data": lambda: b"Pf\n7071 7071\n-1.0\n",
    # JPEG 2000 and AVIF.
    "j2k-a-million-tiles": lambda: _jpeg2000(_siz(256, 256, 256), _siz(7000, 7000, 7)),
    "j2k-50-million-tiles": lambda: _jpeg2000(_siz(256, 256, 256), _siz(7000, 7000, 1)),
    "j2k-tile-larger-than-image": lambda: _jpeg2000(_siz(256, 256, 256), _siz(256, 256, 2**31 - 1)),
    "j2k-50-megapixels": lambda: _jpeg2000(_siz(256, 256, 256), _siz(7000, 7000, 7000)),
    "j2k-4-billion-squared": lambda: _jpeg2000(
        _siz(256, 256, 256), _siz(2**32 - 1, 2**32 - 1, 256)
    ),
    "j2k-components": lambda: _many_components(8000),
    "avif-50-megapixels": lambda: _solid("AVIF", 7000, speed=10),
    "avif-claims-less": lambda: _avif(3000, 8),
    "avif-claims-more": lambda: _avif(8, 7000),
    "avif-claims-4-billion": lambda: _avif(8, 2**32 - 1),
}
"""Files of one image each."""


def _before_jpeg(content: bytes) -> bytes:
    picture = encoded(Image.new("RGB", (8, 8)), "JPEG")
    return picture[:2] + content + picture[2:]


def overlapping_tags(count: int, size: int) -> bytes:
    """Make a TIFF file whose private tags all refer to the same bytes."""
    tags = _image_tags(4, 4) | {273: (_LONG, 1, 8), 278: (_LONG, 1, 4), 279: (_LONG, 1, 16)}
    first = 400
    tags |= dict.fromkeys(range(first, min(first + count, 65536)), (_UNDEFINED, size, 8))
    return tiff(tags, bytes(size))


def _loop() -> bytes:
    """Make a TIFF file whose only directory names itself as the next one."""
    data = bytearray(_striped(4, 4, bytes(16)))
    data[-4:] = data[4:8]
    return bytes(data)


FRAMES: Mapping[str, Callable[[], bytes]] = {
    "gif-500000-frames": lambda: _gif(8, 8, [_gif_frame(1, 1) * 500_000]),
    "gif-200-large-frames": lambda: _gif(7000, 7000, [_gif_frame(1, 1) * 200]),
    "gif-20-large-frames": lambda: _gif(7000, 7000, [_gif_frame(1, 1) * 20]),
    "gif-empty-extensions": lambda: _gif(8, 8, [_gif_frame(1, 1), b"!\xf9\0" * 7_000_000]),
    "webp-20000-frames": lambda: _animated_webp(8, 8, 20_000),
    "webp-100-large-frames": lambda: _animated_webp(7000, 7000, 100),
    "webp-10-large-frames": lambda: _animated_webp(7000, 7000, 10),
    "webp-large-canvas": lambda: _animated_webp(16384, 16384, 10),
    "apng-10000-frames": lambda: _apng(10_000, 2, 2),
    "apng-200-large-frames": lambda: _apng(50, 3000, 3000),
    "apng-promises-4-billion": lambda: _apng(2, 2, 2, 2**32 - 1),
    "tiff-60000-pages": lambda: tiff(
        _image_tags(2, 2) | {273: (_LONG, 1, 8), 278: (_LONG, 1, 2), 279: (_LONG, 1, 4)},
        bytes(4),
        pages=60_000,
    ),
    "tiff-200-large-pages": lambda: tiff(
        _image_tags(7000, 7000, bits=1, compression=8)
        | {273: (_LONG, 1, 8), 278: (_LONG, 1, 7000), 279: (_LONG, 1, 10_000)},
        zeros(875 * 7000),
        pages=200,
    ),
    "tiff-10-deep-pages": lambda: tiff(
        _image_tags(5000, 5000, bits=16, compression=8)
        | {273: (_LONG, 1, 8), 278: (_LONG, 1, 5000), 279: (_LONG, 1, 60_000)},
        zeros(2 * 5000**2),
        pages=6,
    ),
    "tiff-pages-with-overlapping-tags": lambda: overlapping_tags(2000, 1_000_000),
    "tiff-loop": _loop,
    "png-second-size": lambda: _apng(3, 2, 2) + chunk(b"fcTL", bytes(26)),
}
"""Animations and files of several pages, which are sent with ``frames=true``."""


def many_profiles(count: int) -> list[bytes]:
    """Make TIFF files with large ICC profiles that all differ, so that a cache would grow."""
    return [_tiff_with_profile(_profile(1_000_000, salt)) for salt in range(count)]


def gray(side: int = 8) -> bytes:
    """Make a small good PNG file."""
    return png(side, side)
