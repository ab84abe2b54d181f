"""Bundles of every kind are unpacked to samples; damaged and too large ones are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded
from PIL import Image
from safetensors.numpy import save

from torchserve_ensemble.handlers.base.errors import EnsembleError, RequestError, TooLargeError
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.requests.budget import RequestBudget
from torchserve_ensemble.handlers.requests.bundles import Item, Unreadable, rows, unpack
from torchserve_ensemble.handlers.requests.bundles.frames import AnimationFrame
from torchserve_ensemble.handlers.spec import Limits

LIMITS = Limits(max_samples=4, max_unpacked_bytes=100_000, max_pixels=10_000)
FILES = {"b.png": b"first", "folder/a.png": b"second", "b/c.png": b"third"}


def take(data: bytes, *, split_frames: bool = False, limits: Limits = LIMITS) -> list[Item]:
    """Unpack a bundle."""
    items = unpack(data, name="file", split_frames=split_frames, budget=RequestBudget(limits))
    assert items is not None
    return items


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def npy(array: object) -> bytes:
    target = io.BytesIO()
    np.save(target, np.asarray(array), allow_pickle=True)
    return target.getvalue()


PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda files: tarred(files, "w:gz"),
    "tar.bz2": lambda files: tarred(files, "w:bz2"),
    "tar.xz": lambda files: tarred(files, "w:xz"),
}


@pytest.fixture(params=PACKERS)
def pack(request: pytest.FixtureRequest) -> Callable[[dict[str, bytes]], bytes]:
    return PACKERS[request.param]


class TestArchives:
    def test_files_in_the_archives_order(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        assert [(item.name, item.data) for item in take(pack(FILES))] == list(FILES.items())

    def test_hidden_files_are_passed_over(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        extra = {"__MACOSX/._b.png": b"x", ".DS_Store": b"x", "a/.hidden": b"x", "b.png": b"yes"}
        assert [item.name for item in take(pack(extra))] == ["b.png"]

    def test_an_archive_without_samples_is_refused(
        self, pack: Callable[[dict[str, bytes]], bytes]
    ) -> None:
        with pytest.raises(RequestError, match="holds no image"):
            take(pack({".hidden": b""}))

    def test_too_many_files_are_refused(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        with pytest.raises(TooLargeError, match=r"limits\.max_samples"):
            take(pack({f"{i}.png": b"" for i in range(5)}))

    def test_too_many_hidden_files_are_refused(
        self, pack: Callable[[dict[str, bytes]], bytes]
    ) -> None:
        with pytest.raises(TooLargeError, match=r"limits\.max_samples"):
            take(
                pack({f".{i}": b"" for i in range(1000)}),
                limits=Limits(max_samples=4, max_unpacked_bytes=10**7),
            )

    def test_bombs_are_refused_before_they_take_memory(
        self, pack: Callable[[dict[str, bytes]], bytes]
    ) -> None:
        bomb = pack({"a.png": bytes(20_000_000)})
        tracemalloc.start()
        try:
            with pytest.raises(TooLargeError, match=r"limits\.max_unpacked_bytes"):
                take(bomb)
            # The dictionary of xz alone takes 8 MiB.
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()

    def test_a_damaged_archive_is_refused(self, pack: Callable[[dict[str, bytes]], bytes]) -> None:
        whole = pack({"a.png": np.random.default_rng(0).bytes(5000)})
        with pytest.raises(RequestError, match="damaged"):
            take(whole[: len(whole) // 2])

    @pytest.mark.parametrize("size", [10**9, 8**11 - 1, 2**60])
    @pytest.mark.parametrize("extended", [False, True])
    def test_an_entry_longer_than_its_file_ends_at_once(self, size: int, extended: bool) -> None:
        info = tarfile.TarInfo(".a")
        info.size = 0 if extended else size
        info.pax_headers = {"size": str(size)} if extended else {}
        tar_format = tarfile.PAX_FORMAT if extended else tarfile.GNU_FORMAT
        data = info.tobuf(tar_format) + bytes(2048)
        began = time.process_time()
        with pytest.raises(RequestError, match="damaged"):
            take(data)
        for pack in (gzip.compress, bz2.compress, lzma.compress):
            with pytest.raises(RequestError):
                take(pack(data))
        assert time.process_time() - began < 1

    def test_a_link_fails_alone(self) -> None:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as archive:
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            info = tarfile.TarInfo("a.png")
            info.size = 2
            archive.addfile(info, io.BytesIO(b"ok"))
        first, second = take(target.getvalue())
        assert isinstance(first.data, Unreadable)
        assert second.data == b"ok"

    def test_a_damaged_entry_of_a_zip_fails_alone(self) -> None:
        whole = bytearray(zipped({"a.png": b"A" * 50, "b.png": b"fine"}, zipfile.ZIP_STORED))
        whole[whole.index(b"A" * 50)] ^= 1
        first, second = take(bytes(whole))
        assert isinstance(first.data, Unreadable)
        assert second.data == b"fine"

    def test_an_encrypted_entry_fails_alone(self) -> None:
        whole = bytearray(zipped({"a.png": b"x"}))
        directory = whole.index(b"PK\x01\x02")
        whole[6] |= 1
        whole[directory + 8] |= 1
        (item,) = take(bytes(whole))
        assert item.data == Unreadable("it is encrypted")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_a_zip_bomb_of_another_method_is_never_unpacked(self, method: int) -> None:
        bomb = zipped({"a.png": bytes(100_000_000)}, method)
        tracemalloc.start()
        try:
            (item,) = take(bomb)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()
        assert isinstance(item.data, Unreadable)

    def test_a_gigabyte_of_zeros_in_a_gzip_is_refused_without_taking_memory(self) -> None:
        target = io.BytesIO()
        info = tarfile.TarInfo("a.png")
        info.size = 1 << 30
        with gzip.GzipFile(fileobj=target, mode="wb") as file:
            file.write(info.tobuf())
            for _ in range(1 << 10):
                file.write(bytes(1 << 20))
        tracemalloc.start()
        try:
            with pytest.raises(TooLargeError, match=r"limits\.max_unpacked_bytes"):
                take(target.getvalue())
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_no_sample_is_lost_behind_a_damaged_header(self, mode: str) -> None:
        plain = bytearray(tarred(FILES))
        plain[1024 + 5] ^= 1  # In the second entry's name, so that its checksum is wrong.
        packed = {"w": bytes, "w:gz": gzip.compress, "w:bz2": bz2.compress, "w:xz": lzma.compress}
        with pytest.raises(RequestError, match="damaged"):
            take(packed[mode](bytes(plain)))

    def test_a_tar_that_ends_between_two_entries_is_damaged(self) -> None:
        with pytest.raises(RequestError, match="damaged"):
            take(tarred(FILES)[:2048])

    def test_a_compressed_tar_with_a_wrong_checksum_is_damaged(self) -> None:
        whole = bytearray(tarred(FILES, "w:gz"))
        whole[-6] ^= 1
        with pytest.raises(RequestError, match="damaged"):
            take(bytes(whole))

    def test_gzip_that_is_no_tar_is_no_bundle(self) -> None:
        assert (
            unpack(
                gzip.compress(b"x" * 999),
                name="f",
                split_frames=False,
                budget=RequestBudget(LIMITS),
            )
            is None
        )


class TestNumbers:
    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_floats_are_inputs(self, dtype: str, order: str) -> None:
        array = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
        stored = np.asarray(array, dtype=dtype, order=order)  # type: ignore[call-overload]
        items = take(npy(stored))
        assert [item.name for item in items] == ["file[0]", "file[1]"]
        for item, row in zip(items, array, strict=True):
            assert isinstance(item.data, torch.Tensor)
            assert item.data.dtype is torch.float32
            assert np.array_equal(item.data.numpy(), row)

    @pytest.mark.parametrize("shape", [(2, 5, 6), (2, 5, 6, 3), (2, 5, 6, 1), (2, 3, 5, 6)])
    def test_bytes_are_pixels(self, shape: tuple[int, ...]) -> None:
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        for item in take(save({"anything": array})):
            assert isinstance(item.data, torch.Tensor)
            assert tuple(item.data.shape) == (3, 5, 6)
            assert item.data.dtype is torch.uint8

    def test_transparency_is_put_on_white(self) -> None:
        array = np.zeros((1, 1, 3, 4), dtype=np.uint8)
        array[0, 0, :, 3] = [0, 255, 128]
        (item,) = take(npy(array))
        assert isinstance(item.data, torch.Tensor)
        assert item.data[0].tolist() == [[255, 0, 127]]

    def test_of_several_tensors_the_one_named_input_is_read(self) -> None:
        tensors = {"other": np.zeros(1, "f4"), "input": np.ones((1, 1, 2, 2), "f4")}
        (item,) = take(save(tensors))
        assert isinstance(item.data, torch.Tensor)
        with pytest.raises(RequestError, match="2 tensors"):
            take(save({"a": np.zeros(1, "f4"), "b": np.zeros(1, "f4")}))

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((2, 2), "u1"), "not a batch"),
            (np.zeros((3, 4, 4), "f4"), "array[None]"),
            (np.zeros((5, 6, 3), "u1"), "array[None]"),
            (np.zeros((2, 3, 7, 1), "u1"), "not clearly pixels"),
            (np.zeros((2, 3, 4, 4), np.longdouble), "neither"),
            (np.zeros((0, 3, 4, 4), "f4"), "empty"),
            (np.zeros((2, 3, 4, 4), "i8"), "neither"),
            (np.zeros((2, 5, 4, 7), "u1"), "not pixels"),
            (np.zeros((2, 3, 7, 3), "u1"), "not clearly pixels"),
            (np.array([object()]), "Python objects"),
            (np.zeros((5, 1, 1, 1), "f4"), "limits.max_samples"),
        ],
    )
    def test_arrays_that_are_no_batch_of_samples_are_refused(
        self, array: object, words: str
    ) -> None:
        with pytest.raises(RequestError) as caught:
            take(npy(array))
        assert words in caught.value.message

    def test_a_header_with_another_shape_is_refused(self) -> None:
        whole = npy(np.zeros((2, 3, 4, 4), "f4"))
        lying = whole.replace(b"(2, 3, 4, 4)", b"(9, 9, 9, 9)")
        with pytest.raises(RequestError, match="do not make the shape"):
            take(lying)

    def test_the_rows_of_an_array_are_samples(self) -> None:
        items = rows(np.zeros((2, 3, 4, 4), "f8"), name="images", budget=RequestBudget(LIMITS))
        assert [item.name for item in items] == ["images[0]", "images[1]"]


class TestFrames:
    @staticmethod
    def animation(image_format: str, frames: int = 3, **options: object) -> bytes:
        images = [Image.new("RGB", (4, 3), (80 * i, 0, 0)) for i in range(frames)]
        target = io.BytesIO()
        images[0].save(target, image_format, save_all=True, append_images=images[1:], **options)
        return target.getvalue()

    @pytest.mark.parametrize("image_format", ["GIF", "TIFF", "WEBP", "PNG"])
    def test_each_frame_is_a_sample(self, image_format: str) -> None:
        options = {"lossless": True} if image_format == "WEBP" else {}
        items = take(self.animation(image_format, **options), split_frames=True)
        assert [item.name for item in items] == ["file[0]", "file[1]", "file[2]"]
        for index, item in enumerate(items):
            assert isinstance(item.data, AnimationFrame)
            pixels = item.data.decode()
            assert tuple(pixels.shape) == (3, 3, 4)
            assert abs(int(pixels[0, 0, 0]) - 80 * index) <= 1

    def test_pages_of_16_bits_are_read_as_a_single_image_is(self) -> None:
        pages = [Image.fromarray(np.full((3, 4), value, np.uint16)) for value in (1000, 30000)]
        target = io.BytesIO()
        pages[0].save(target, "TIFF", save_all=True, append_images=pages[1:])
        items = take(target.getvalue(), split_frames=True)
        for page, item in zip(pages, items, strict=True):
            single = decode_image(encoded(page, "TIFF"), max_pixels=100)
            assert isinstance(item.data, AnimationFrame)
            assert torch.equal(item.data.decode(), single)

    def test_countless_pages_are_refused_at_once(self) -> None:
        tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1)]
        directory = struct.pack("<H", len(tags)) + b"".join(
            struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
        )
        size = len(directory) + 4
        content = struct.pack("<2sHI", b"II", 42, 8) + b"".join(
            directory + struct.pack("<I", 8 + size * (page + 1)) for page in range(40_000)
        )
        began = time.monotonic()
        with pytest.raises(TooLargeError, match=r"limits\.max_samples"):
            take(content, split_frames=True)
        assert time.monotonic() - began < 1

    def test_frames_are_split_only_on_request(self) -> None:
        data = self.animation("GIF")
        assert unpack(data, name="f", split_frames=False, budget=RequestBudget(LIMITS)) is None

    def test_one_frame_is_no_bundle(self) -> None:
        still = encoded(Image.new("RGB", (2, 2)), "PNG")
        assert unpack(still, name="f", split_frames=True, budget=RequestBudget(LIMITS)) is None

    def test_number_and_size_of_frames_are_limited(self) -> None:
        with pytest.raises(TooLargeError, match=r"limits\.max_samples"):
            take(self.animation("GIF", frames=5), split_frames=True)
        small = Limits(max_samples=9, max_unpacked_bytes=10**6, max_pixels=11)
        with pytest.raises(TooLargeError, match=r"limits\.max_pixels"):
            take(self.animation("GIF"), split_frames=True, limits=small)


WHOLE = [
    zipped(FILES),
    tarred(FILES),
    tarred(FILES, "w:gz"),
    tarred(FILES, "w:bz2"),
    tarred(FILES, "w:xz"),
    npy(np.zeros((2, 3, 2, 2), "f4")),
    save({"input": np.zeros((2, 3, 2, 2), np.float32)}),
    TestFrames.animation("GIF"),
    TestFrames.animation("TIFF"),
]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damage_is_the_clients_mistake(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        items = unpack(
            bytes(content[:cut]), name="f", split_frames=True, budget=RequestBudget(LIMITS)
        )
    except EnsembleError as error:
        assert error.status in (400, 413)
    else:
        assert items is None or 0 < len(items) <= LIMITS.max_samples


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_unpacked_or_refused(content: bytes) -> None:
    for start in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x1f\x8b", b"GIF89a"):
        try:
            unpack(start + content, name="f", split_frames=True, budget=RequestBudget(LIMITS))
        except EnsembleError as error:
            assert error.status in (400, 413)
