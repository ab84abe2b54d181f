"""Makes archives, arrays and compressed files that unpack to far more than their size suggests."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np

from .images import deflated_zeros, gray
from .wire import tar, zipped

_MIB = 1 << 20


def gzipped_zeros(size: int) -> bytes:
    """Make a gzip member of `size` zero bytes with a correct checksum."""
    crc, block = 0, bytes(_MIB)
    for _ in range(size // _MIB):
        crc = zlib.crc32(block, crc)
    crc = zlib.crc32(block[: size % _MIB], crc)
    return _gzip(deflated_zeros(size), crc, size)


def _gzip(deflated: bytes, crc: int, size: int) -> bytes:
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + deflated + struct.pack("<II", crc, size & 0xFFFFFFFF)


@cache
def _bz2_zeros(size: int) -> bytes:
    """Make bzip2 streams of 32 MiB of zeros each."""
    return bz2.compress(bytes(32 * _MIB), 9) * (size // (32 * _MIB))


def header(
    name: bytes,
    size: int,
    kind: bytes = b"0",
    *,
    size_field: bytes | None = None,
    link: bytes = b"",
) -> bytes:
    """Make the block of 512 bytes with which a tar entry begins (POSIX ustar)."""
    block = bytearray(512)
    block[: min(len(name), 100)] = name[:100]
    block[100:108] = b"0000644\0"
    block[124:136] = size_field or b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: bytes, content: bytes, kind: bytes = b"0") -> bytes:
    """Make a tar entry with its padding."""
    return header(name, len(content), kind) + content + bytes(-len(content) % 512)


_END = bytes(1024)


def _pax(records: bytes, kind: bytes = b"x") -> bytes:
    """Make a tar file of one image, with a pax header of the given records before it."""
    return entry(b"pax", records, kind) + entry(b"a.png", gray()) + _END


def _record(key: bytes, value: bytes) -> bytes:
    """Make a pax record, which begins with its own length."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body) + len(str(len(body)))))
    return str(length).encode() + body


def _tar_with_hidden(size: int) -> Iterable[bytes]:
    """Make what stands before and after the content of a hidden file of `size` bytes in a tar."""
    return header(b".hidden", size), header(b"a.png", 0) + _END


def _hidden_gz(size: int) -> bytes:
    start, end = _tar_with_hidden(size)
    return gzip.compress(start) + gzipped_zeros(size) + gzip.compress(end)


def _hidden_bz2(size: int) -> bytes:
    start, end = _tar_with_hidden(size)
    return bz2.compress(start) + _bz2_zeros(size) + bz2.compress(end)


@cache
def _hidden_xz(size: int) -> bytes:
    start, end = _tar_with_hidden(size)
    return lzma.compress(start + bytes(size) + end, preset=0)


def _many(names: Iterable[bytes], content: bytes = b"", kind: bytes = b"0") -> bytes:
    return b"".join(entry(name, content, kind) for name in names) + _END


def _ustar(*entries: tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info in entries:
            archive.addfile(info)
    return target.getvalue()


def _sparse_gnu(real: int, extensions: int) -> bytes:
    """Make a tar file in GNU's old sparse format, whose map continues in further blocks."""
    block = bytearray(header(b"s.png", 0, b"S"))
    for slot in range(4):
        at = 386 + 24 * slot
        block[at : at + 24] = b"%011o\0%011o\0" % (slot, 0)
    block[482] = 1
    block[483:495] = b"%011o\0" % min(real, 0o77777777777)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    one = b"%011o\0%011o\0" % (0, 0)
    more = (one * 21 + b"\1" + bytes(7)) * extensions
    return bytes(block) + more + one * 21 + bytes(8) + _END


def _zip(
    entries: Iterable[tuple[bytes, bytes, int, int]],
    *,
    comment: bytes = b"",
    count: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """Write a zip file of entries without checking that they fit together.

    Args:
        entries: name, deflated bytes, checksum and size of each entry.
        comment: the file's comment.
        count: number of entries that the end record claims; the true one by default.
        extra: extra field of each entry in the directory.
    """
    body, directory, number = bytearray(), bytearray(), 0
    for name, packed, crc, size in entries:
        number += 1
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(packed), size, len(name), 0)
        offset = len(body)
        body += b"PK\x03\x04" + fields + name + packed
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields[:-2]
        directory += struct.pack("<HHHHII", len(extra), 0, 0, 0, 0, offset) + name + extra
    end = struct.pack(
        "<HHHHIIH",
        0,
        0,
        *[min(number if count is None else count, 65535)] * 2,
        len(directory),
        len(body),
        len(comment),
    )
    return bytes(body + directory) + b"PK\x05\x06" + end + comment


def zip_of_zeros(number: int, size: int, name: bytes = b"%d.png") -> bytes:
    """Make a zip file of `number` entries, each of `size` zero bytes, rounded down to MiB."""
    crc = 0
    for _ in range(size // _MIB):
        crc = zlib.crc32(bytes(_MIB), crc)
    packed = deflated_zeros(size // _MIB * _MIB)
    return _zip(
        ((name % i if b"%" in name else name), packed, crc, size // _MIB * _MIB)
        for i in range(number)
    )


def _overlapping_zip(number: int, size: int) -> bytes:
    """Make a zip file whose entries all have the same content in the file (D. Fifield, 2019)."""
    packed = deflated_zeros(size)
    crc = 0
    for _ in range(size // _MIB):
        crc = zlib.crc32(bytes(_MIB), crc)
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(packed), size, 5, 0)
    body = b"PK\x03\x04" + fields + b"a.png" + packed
    one = b"PK\x01\x02" + struct.pack("<H", 20) + fields[:-2]
    directory = (one + struct.pack("<HHHHII", 0, 0, 0, 0, 0, 0) + b"a.png") * number
    end = struct.pack("<HHHHIIH", 0, 0, number, number, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def _zip64(entries: int, size: int) -> bytes:
    """Make a zip64 end record that claims any number of entries and any size."""
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, entries, entries, size, 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 30, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return b"PK\x03\x04" + bytes(26) + record + locator + end


def _nested(levels: int) -> bytes:
    """Make a zip file in a zip file, and so on; the innermost one has an image."""
    content = gray()
    for level in range(levels):
        content = zipped({f"{level}.zip": content})
    return content


def _directory_lies(count: int) -> bytes:
    """Make a zip file whose directory points to places outside the file."""
    one = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 2**31) + b"a"
    directory = one * count
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + end


def npy(description: str, data: bytes = b"", version: int = 1) -> bytes:
    """Make a NumPy file with any header."""
    text = description.encode("latin1", "replace")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + data


def _shape(shape: str, dtype: str = "'|u1'", order: str = "False") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def _pixels(*shape: int, dtype: str = "|u1", fortran: bool = False) -> bytes:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return npy(_shape(str(shape), repr(dtype), str(fortran)), bytes(size))


def safetensors(content: object, data: bytes = b"") -> bytes:
    """Make a safetensors file with any header, even one that is no JSON."""
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(head)) + head + data


def _tensors(count: int, shape: str = "[0]", offsets: str = "[0,0]", dtype: str = "U8") -> bytes:
    one = f'"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}'
    inside = ",".join(f'"{i}":{{{one}}}' for i in range(count))
    return b"{" + inside.encode() + b"}"


def _xz_streams(count: int) -> bytes:
    start, _ = _tar_with_hidden(0)
    return lzma.compress(start) + lzma.compress(b"") * count


def _xz_dictionary() -> bytes:
    """Make an xz file whose header asks for a dictionary of 4 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26, "preset": 0}]
    data = bytearray(lzma.compress(gray_tar(), lzma.FORMAT_XZ, filters=filters))
    dictionary_size = data.index(b"\x21\x01") + 2
    data[dictionary_size] = 40
    start = 12
    size = (data[start] + 1) * 4
    data[start + size - 4 : start + size] = struct.pack(
        "<I", zlib.crc32(data[start : start + size - 4])
    )
    return bytes(data)


def gray_tar() -> bytes:
    """Make a good tar file of one image."""
    return tar({"a.png": gray()})


def _long_names(count: int, length: int) -> bytes:
    """Make a tar file with one of GNU's long names before each entry."""
    name = b"n" * length + b"\0"
    one = entry(b"././@LongLink", name, b"L")
    return b"".join(one + entry(b"a.png", b"") for _ in range(count)) + _END


BUNDLES: Mapping[str, Callable[[], bytes]] = {
    # tar: Python's tarfile parses these headers before its caller can check them.
    "tar-pax-digits": lambda: _pax(b"9" * 200_000 + b" size=1\n"),
    "tar-pax-global-digits": lambda: _pax(b"9" * 200_000 + b" size=1\n", b"g"),
    "tar-pax-size-digits": lambda: _pax(_record(b"size", b"9" * 200_000)),
    "tar-pax-time-digits": lambda: _pax(_record(b"mtime", b"9" * 200_000)),
    "tar-pax-id-digits": lambda: _pax(_record(b"uid", b"9" * 4000)),
    "tar-pax-sparse-map": lambda: _pax(
        _record(b"GNU.sparse.major", b"0")
        + _record(b"GNU.sparse.map", b"1," * 2_000_000 + b"1")
        + _record(b"GNU.sparse.size", b"1")
    ),
    "tar-pax-sparse-records": lambda: _pax(
        _record(b"GNU.sparse.size", b"1")
        + (_record(b"GNU.sparse.offset", b"1") + _record(b"GNU.sparse.numbytes", b"1")) * 300_000
    ),
    "tar-pax-sparse-1.0": lambda: (
        entry(b"pax", _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0"), b"x")
        + entry(b"a.png", b"2000000\n" + b"1\n" * 4_000_000)
        + _END
    ),
    "tar-pax-records": lambda: _pax(b"".join(_record(b"k%d" % i, b"v") for i in range(500_000))),
    "tar-pax-name": lambda: _pax(_record(b"path", b"x" * 10_000_000)),
    "tar-pax-spaces": lambda: _pax(b" " * 5_000_000),
    "tar-pax-chain": lambda: (
        entry(b"pax", _record(b"path", b"x"), b"x") * 20_000 + entry(b"a.png", b"") + _END
    ),
    "tar-pax-globals": lambda: (
        b"".join(
            entry(b"pax", _record(b"k%d" % i, b"v"), b"g") + entry(b".h", b"") for i in range(4000)
        )
        + entry(b"a.png", b"")
        + _END
    ),
    "tar-long-name-chain": lambda: (
        entry(b"././@LongLink", b"x" * 500 + b"\0", b"L") * 20_000 + _END
    ),
    "tar-long-names": lambda: _long_names(200, 100_000),
    "tar-long-name": lambda: _long_names(1, 20_000_000),
    "tar-name-of-slashes": lambda: (
        entry(b"././@LongLink", b"a/" * 5_000_000 + b"\0", b"L") + entry(b"a.png", b"") + _END
    ),
    "tar-sparse-blocks": lambda: _sparse_gnu(2**33 - 1, 30_000),
    "tar-sparse": lambda: _sparse_gnu(2**33 - 1, 0),
    "tar-negative-size": lambda: header(b"a.png", 0, size_field=b"\xff" * 12) + bytes(512) + _END,
    "tar-size-of-2-to-80": lambda: (
        header(b"a.png", 0, size_field=b"\x80" + b"\xff" * 11) + bytes(512)
    ),
    "tar-size-beyond": lambda: header(b"a.png", 8 << 30) + bytes(2048),
    "tar-links": lambda: (
        b"".join(header(b"a%d.png" % i, 0, b"1", link=b"a%d.png" % (i + 1)) for i in range(200))
        + _END
    ),
    "tar-hidden": lambda: _many([b".h"] * 50_000),
    "tar-folders": lambda: _many([b"d/"] * 50_000, kind=b"5"),
    "tar-odd-kinds": lambda: _many([b"x"] * 4000, kind=b"V"),
    "tar-names-not-utf8": lambda: _many([b"\xff\xfe%d.png" % i for i in range(20)], b"x"),
    "tar-good-and-names-not-utf8": lambda: _many(
        [b"\xff\xfe%d.png" % i for i in range(20)], gray()
    ),
    "tar-names-of-control-characters": lambda: _many(
        [b"\x01\x1b[31m\r%d.png" % i for i in range(20)], b"x"
    ),
    "tar-empty": lambda: b"\0" * 257 + b"ustar" + _END * 10_000,
    "tar-nested": lambda: tar({"a.tar": tar({"b.tar": gray_tar()})}),
    # Compressed tars.
    "tar.gz-pax-digits": lambda: gzip.compress(_pax(b"9" * 200_000 + b" size=1\n")),
    "tar.bz2-pax-digits": lambda: bz2.compress(_pax(b"9" * 200_000 + b" size=1\n")),
    "tar.xz-pax-digits": lambda: lzma.compress(_pax(b"9" * 200_000 + b" size=1\n")),
    "tar.gz-hidden-500-mb": lambda: _hidden_gz(500_000_000),
    "tar.gz-hidden-30-gb": lambda: _hidden_gz(1 << 30)[:900_000],
    "tar.bz2-hidden-480-mib": lambda: _hidden_bz2(480 * _MIB),
    "tar.bz2-hidden-5-gib": lambda: _hidden_bz2(5120 * _MIB),
    "tar.xz-hidden-200-mb": lambda: _hidden_xz(200_000_000),
    "tar.gz-empty-members": lambda: gzip.compress(gray_tar()) + gzip.compress(b"") * 500_000,
    "tar.gz-empty-members-first": lambda: gzip.compress(b"") * 500_000 + gzip.compress(gray_tar()),
    "tar.gz-empty-blocks": lambda: _gzip(b"\x00\0\0\xff\xff" * 4_000_000 + b"\x03\0", 0, 0),
    "tar.gz-one-byte-members": lambda: (
        b"".join(gzip.compress(gray_tar()[i : i + 1]) for i in range(1024))
        + gzip.compress(b"\0") * 400_000
    ),
    "tar.gz-trailing-zeros": lambda: gzip.compress(gray_tar()) + bytes(25_000_000),
    "tar.gz-trailing-garbage": lambda: gzip.compress(gray_tar()) + b"x" * 25_000_000,
    "tar.gz-long-name": lambda: (
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 20_000_000 + b"\0" + b"\x03\0"
    ),
    "tar.gz-wrong-checksum": lambda: _gzip(deflated_zeros(400 * _MIB), 0, 0),
    "tar.gz-nested": lambda: gzip.compress(gzip.compress(gray_tar())),
    "gzip-of-an-image": lambda: gzip.compress(gray()),
    "tar.bz2-empty-streams": lambda: bz2.compress(gray_tar()) + bz2.compress(b"") * 800_000,
    "tar.bz2-empty-streams-first": lambda: bz2.compress(b"") * 800_000,
    "tar.bz2-garbage": lambda: b"BZh9" + b"\0" * 20_000_000,
    "tar.xz-streams": lambda: _xz_streams(300_000),
    "tar.xz-dictionary": _xz_dictionary,
    "tar.xz-trailing-garbage": lambda: lzma.compress(gray_tar()) + b"x" * 20_000_000,
    # zip.
    "zip-256-of-2-mib": lambda: zip_of_zeros(256, 2 * _MIB),
    "zip-of-30-gib": lambda: zip_of_zeros(14, 2048 * _MIB),
    "zip-one-name": lambda: zip_of_zeros(200, _MIB, b"same.png"),
    "zip-overlapping": lambda: _overlapping_zip(250, 20 * _MIB),
    "zip-overlapping-60000": lambda: _overlapping_zip(60_000, _MIB),
    "zip-many-entries": lambda: _zip((b"%d" % i, b"\x03\0", 0, 0) for i in range(60_000)),
    "zip-hidden-entries": lambda: _zip((b".%d" % i, b"\x03\0", 0, 0) for i in range(4000)),
    "zip-hidden-large": lambda: zip_of_zeros(200, 100 * _MIB, b".hidden"),
    "zip-names": lambda: _zip((b"n" * 65_000, b"\x03\0", 0, 0) for _ in range(150)),
    "zip-names-of-slashes": lambda: _zip((b"a/" * 32_000, b"\x03\0", 0, 0) for _ in range(220)),
    "zip-names-not-utf8": lambda: _zip((b"\xff\xfe%d" % i, b"\x03\0", 0, 0) for i in range(20)),
    "zip-extra-fields": lambda: _zip(
        ((b"%d" % i, b"\x03\0", 0, 0) for i in range(256)), extra=b"\x99\x99\0\0" * 16_000
    ),
    "zip-comment": lambda: _zip([(b"a", b"\x03\0", 0, 0)], comment=b"PK\x05\x06" * 16_000),
    "zip-signatures": lambda: b"PK\x03\x04" + b"PK\x05\x06" * 5_000_000,
    "zip-false-entries": lambda: b"PK\x03\x04" + b"PK\x01\x02" * 5_000_000,
    "zip-zip64": lambda: _zip64(2**63, 2**63),
    "zip-directory-lies": lambda: _directory_lies(250),
    "zip-directory-of-60000-lies": lambda: _directory_lies(60_000),
    "zip-size-lies": lambda: _zip([(b"a.png", deflated_zeros(600 * _MIB), 0, 10)]),
    "zip-nested": lambda: _nested(20),
    "zip-damaged-entries": lambda: _zip((b"%d.png" % i, b"\xff" * 100, 0, 9) for i in range(256)),
    "zip-prefix": lambda: b"PK\x03\x04" + bytes(20_000_000) + zipped({"a.png": gray()}),
    # Arrays.
    "npy-shape-with-zero": lambda: npy(_shape("(0, 4611686018427387904, 9, 3)")),
    "npy-shape-of-digits": lambda: npy(_shape(f"({'9' * 60_000}, 1, 1)")),
    "npy-negative-shape": lambda: npy(_shape("(-1, -1, 3)"), bytes(3)),
    "npy-boolean-shape": lambda: npy(_shape("(True, True, True)"), bytes(1)),
    "npy-long-shape": lambda: npy(_shape(f"({'1,' * 20_000})"), bytes(1)),
    "npy-deep-header": lambda: npy("(" * 60_000),
    "npy-deep-lists": lambda: npy(_shape("(" + "[" * 90 + "]" * 90 + ",)")),
    "npy-operators": lambda: npy(_shape("(" + "1+" * 30_000 + "1,)")),
    "npy-header-of-100-mb": lambda: npy(_shape("(1,)") + " " * 20_000_000, b"\0", version=2),
    "npy-structured": lambda: npy(_shape("(1,)", str([(f"f{i}", "|u1") for i in range(3000)]))),
    "npy-nested-types": lambda: npy(
        _shape("(1,)", "[('a', " * 80 + "'|u1'" + ")]" * 80), bytes(1), version=1
    ),
    "npy-type-with-shape": lambda: npy(_shape("(1,)", "('|u1', (2147483647, 2147483647))")),
    "npy-zero-size-type": lambda: npy(_shape("(9223372036854775807,)", "'|S0'")),
    "npy-zero-size-void": lambda: npy(_shape("(1000000000000, 2, 2)", "'|V0'")),
    "npy-objects": lambda: npy(_shape("(1,)", "'|O'"), b"cos\nsystem\n(S'true'\ntR."),
    "npy-1x1x33-million": lambda: _pixels(1, 1, 28_000_000),
    "npy-1x28-million-x1": lambda: _pixels(1, 28_000_000, 1),
    "npy-one-row-wide": lambda: _pixels(1, 1, 9_000_000, 3),
    "npy-28-million-rows": lambda: _pixels(28_000_000, 1, 1),
    "npy-256-wide-rows": lambda: _pixels(256, 1, 100_000),
    "npy-256-tall-rows": lambda: _pixels(256, 100_000, 1),
    "npy-fortran": lambda: _pixels(250, 100, 100, 3, fortran=True, dtype="<f4"),
    "npy-float64": lambda: _pixels(3, 3, 600, 600, dtype="<f8"),
    "npy-float16": lambda: _pixels(4, 3, 1100, 1100, dtype="<f2"),
    "npy-transparent": lambda: _pixels(1, 2600, 2600, 4),
    # safetensors.
    "safetensors-a-million-tensors": lambda: safetensors(_tensors(500_000)),
    "safetensors-100000-tensors": lambda: safetensors(_tensors(100_000)),
    "safetensors-duplicates": lambda: safetensors(
        b"{" + b'"input":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 300_000 + b'"a":1}'
    ),
    "safetensors-overlapping": lambda: safetensors(
        _tensors(200, "[1,1000,1000]", "[0,1000000]"), bytes(1_000_000)
    ),
    "safetensors-metadata": lambda: safetensors(
        {"__metadata__": {str(i): "v" for i in range(500_000)}}
    ),
    "safetensors-deep-metadata": lambda: safetensors(
        b'{"__metadata__":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_001
    ),
    "safetensors-shape-digits": lambda: safetensors(_tensors(1, f"[{'9' * 1_000_000}]")),
    "safetensors-long-shape": lambda: safetensors(
        _tensors(1, f"[{'1,' * 3_000_000}1]", "[0,1]"), b"\0"
    ),
    "safetensors-zero-shape": lambda: safetensors(
        _tensors(1, "[0,18446744073709551615,18446744073709551615]")
    ),
    "safetensors-offsets": lambda: safetensors(_tensors(1, "[1]", "[18446744073709551615,0]")),
    "safetensors-deep": lambda: safetensors(b"{" + b'"a":[' * 1_000_000 + b"}"),
    "safetensors-spaces": lambda: safetensors(b"{" + b" " * 25_000_000 + b"}"),
    "safetensors-name": lambda: safetensors(
        b'{"' + b"n" * 20_000_000 + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "safetensors-wide": lambda: safetensors(
        _tensors(1, "[1,1,20000000]", "[0,20000000]"), bytes(20_000_000)
    ),
    "safetensors-scalar": lambda: safetensors(_tensors(1, "[]", "[0,1]"), b"\0"),
    "safetensors-small-floats": lambda: safetensors(
        _tensors(1, "[1,3,2000,2000]", "[0,12000000]", "F8_E4M3"), bytes(12_000_000)
    ),
    "safetensors-halves": lambda: safetensors(
        _tensors(1, "[1,3,2000,2000]", "[0,24000000]", "BF16"), bytes(24_000_000)
    ),
}
"""Bundles of samples, and files that begin like bundles."""

ANSWERABLE = frozenset(
    {
        "tar-good-and-names-not-utf8",
        "tar.gz-trailing-zeros",
        "tar.gz-empty-members",
        "tar.gz-empty-members-first",
        "tar.gz-one-byte-members",
        "tar.bz2-empty-streams",
        "tar.xz-trailing-garbage",
        "tar-pax-time-digits",
        "tar-pax-records",
        "tar-pax-globals",
        "tar-pax-id-digits",
        "tar-pax-name",
        "tar-pax-spaces",
        "zip-prefix",
        "zip-comment",
    }
)
"""Names of the bundles that contain a good sample all the same."""
