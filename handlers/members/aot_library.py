"""A library of AOTInductor, called through its C interface.

torch's own bindings (``torch._C._aoti``) hold Python's lock while a model computes, so that nothing
else in the worker does; a call through ctypes lets it go. The interface is the one that AOTInductor
keeps stable between releases (``torch/csrc/inductor/aoti_runtime/interface.h`` and
``torch/csrc/inductor/aoti_torch/c/shim.h``, in every torch wheel).
"""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import MemberError

_WITH_WEIGHTS = "AOTInductorModelContainerCreateWithExternalConstants"


@dataclass(frozen=True)
class Constant:
    """A weight in a library.

    Attributes:
        name: that the library knows it by.
        dtype: e.g. ``float32``.
        shape: of the tensor.
        strides: in elements; none for a packed weight.
        offset: bytes from the first weight.
        layout: oneDNN's description of a packed weight's, in hexadecimal digits.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    strides: Sequence[int]
    offset: int
    layout: str = ""


def constants_path(library: Path) -> Path:
    """Where the list of a library's weights is."""
    return library.with_suffix(".weights.json")


def write_constants(library: Path, constants: Sequence[Constant]) -> None:
    """Write the list of a library's weights."""
    constants_path(library).write_text(json.dumps([asdict(each) for each in constants]))


def read_constants(library: Path) -> list[Constant]:
    """The list of a library's weights.

    Raises:
        OSError: there is none.
        MemberError: it is damaged.
    """
    try:
        return [Constant(**each) for each in json.loads(constants_path(library).read_text())]
    except (ValueError, TypeError) as error:
        raise MemberError(f"{constants_path(library).name} is damaged ({error!r})") from None


class AotLibrary:
    """One model: float32 (N, ...) -> float32 (N, outputs), on the CPU.

    The weights are part of the mapped file, and shared with all processes that map it.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], max_batch_size: int, *, copies: int = 1
    ) -> None:
        """Load it.

        Args:
            path: the ``.so`` file; beside it, `constants_path`.
            shape: of a sample that it was compiled for, which the library itself does not check.
            max_batch_size: the largest number of samples in one call that it was compiled for.
            copies: how many threads may run it at once; all use the same weights.

        Raises:
            OSError: a file cannot be loaded.
            MemberError: it is no model of one output, or nothing fits what is known of its weights.
        """
        self._name = path.name
        self._shape = tuple(shape)
        self._max_batch_size = max_batch_size
        self._library = ctypes.CDLL(str(path))
        self._container = c_void_p()
        constants = read_constants(path)
        weights = _weights(self._library, constants)
        self._check(self._create(copies, weights))
        weakref.finalize(self, _delete, self._library, self._container, weights).atexit = False
        # It would run without, into memory that is not there.
        missing = sizes_in(self._library, self._container).keys() - {c.name for c in constants}
        if missing:
            known = constants_path(path).name
            raise MemberError(f"{known} does not fit {path.name}: no {', '.join(sorted(missing))}")
        outputs = c_size_t()
        self._check(
            self._library.AOTInductorModelContainerGetNumOutputs(self._container, byref(outputs))
        )
        if outputs.value != 1:
            raise MemberError(f"{path.name} has {outputs.value} outputs, not one")

    def __call__(self, batch: Tensor) -> Tensor:
        """Run it; other threads go on meanwhile.

        Args:
            batch: float32 (N, *shape) with N from 1 to `max_batch_size`.

        Raises:
            MemberError: it failed; what it printed stands in the log.
        """
        if batch.dtype is not torch.float32 or batch.device.type != "cpu":
            raise MemberError(
                f"{self._name} takes float32 on the CPU, not {batch.dtype} on {batch.device}"
            )
        if tuple(batch.shape[1:]) != self._shape or not 1 <= len(batch) <= self._max_batch_size:
            raise MemberError(
                f"{self._name} takes 1 to {self._max_batch_size} samples of {self._shape}, "
                f"not {tuple(batch.shape)}"
            )
        batch = batch.contiguous()
        # The callee takes the handle over; `batch` keeps the memory until the call is done.
        inputs = (c_void_p * 1)(_handle_of(batch))
        outputs = (c_void_p * 1)()
        self._check(
            self._library.AOTInductorModelContainerRun(
                self._container, inputs, c_size_t(1), outputs, c_size_t(1), None, None
            )
        )
        handle = c_void_p(outputs[0])
        try:
            return _copy_of(handle)
        finally:
            _shim().aoti_torch_delete_tensor_object(handle)

    def _create(self, copies: int, weights: ctypes.Array[_Weight]) -> int:
        with_weights = getattr(self._library, _WITH_WEIGHTS, None)
        arguments = (byref(self._container), c_size_t(copies), b"cpu", None)
        if with_weights is not None:
            return int(with_weights(*arguments, weights, c_size_t(len(weights))))
        # An earlier torch's library: it copies its weights.
        return int(self._library.AOTInductorModelContainerCreateWithDevice(*arguments))

    def _check(self, error: int) -> None:
        if error:
            raise MemberError(f"{self._name} failed (error {error}; its reason is in the log)")


def weight_sizes(path: Path) -> dict[str, int]:
    """The bytes that each weight takes in a library, in their order.

    Raises:
        MemberError: the library does not tell.
    """
    library, container = ctypes.CDLL(str(path)), c_void_p()
    if library.AOTInductorModelContainerCreateWithDevice(
        byref(container), c_size_t(1), b"cpu", None
    ):
        raise MemberError(f"{path.name} cannot be loaded; the reason is in the log")
    try:
        return sizes_in(library, container)
    finally:
        library.AOTInductorModelContainerDelete(container)


def sizes_in(library: ctypes.CDLL, container: c_void_p) -> dict[str, int]:
    """As `weight_sizes`, of a library that is loaded."""
    count, size, name = c_size_t(), c_size_t(), c_char_p()
    found = {}
    failed = library.AOTInductorModelContainerGetNumConstants(container, byref(count))
    for index in map(c_size_t, range(count.value)):
        failed |= library.AOTInductorModelContainerGetConstantName(container, index, byref(name))
        failed |= library.AOTInductorModelContainerGetConstantDataSize(
            container, index, byref(size)
        )
        found[(name.value or b"").decode()] = size.value
    if failed:
        raise MemberError("a library does not tell what its weights are")
    return found


@cache
def _shim() -> ctypes.CDLL:
    """torch's C functions on tensors."""
    folder = Path(torch.__file__).parent / "lib"
    (found, *_) = [*folder.glob("libtorch_cpu.*"), folder / "libtorch_cpu.so"]
    return ctypes.CDLL(str(found))


class _Weight(Structure):
    """``AOTInductorConstantMapEntry``."""

    _fields_ = (("name", c_char_p), ("handle", c_void_p))


def _weights(library: ctypes.CDLL, constants: Sequence[Constant]) -> ctypes.Array[_Weight]:
    """The weights where the library is mapped."""
    start = 0
    if constants:
        start = ctypes.addressof(c_char.in_dll(library, "_binary_constants_bin_start"))
    return (_Weight * len(constants))(
        *(
            _Weight(
                each.name.encode(),
                _handle_at(
                    start + each.offset,
                    each.shape,
                    each.strides or [0] * len(each.shape),
                    each.dtype,
                    bytes.fromhex(each.layout),
                ),
            )
            for each in constants
        )
    )


def _delete(library: ctypes.CDLL, container: c_void_p, weights: ctypes.Array[_Weight]) -> None:
    library.AOTInductorModelContainerDelete(container)
    for weight in weights:
        _shim().aoti_torch_delete_tensor_object(c_void_p(weight.handle))


def _handle_of(tensor: Tensor) -> c_void_p:
    """A tensor object over the same memory, which must be float32."""
    return _handle_at(tensor.data_ptr(), tensor.shape, tensor.stride(), "float32")


def _handle_at(
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: str,
    layout: bytes = b"",
) -> c_void_p:
    """A tensor object over memory that outlives it.

    Args:
        address: of its first element.
        shape: its sizes.
        strides: in elements; without effect where there is a layout.
        dtype: torch's name of it.
        layout: oneDNN's description, for a packed weight.
    """
    shim, handle = _shim(), c_void_p()
    whole = c_int64 * len(shape)
    failed = shim.aoti_torch_create_tensor_from_blob_v2(
        c_void_p(address),
        c_int64(len(shape)),
        whole(*shape),
        whole(*strides),
        c_int64(0),
        c_int32(getattr(shim, f"aoti_torch_dtype_{dtype}")()),
        c_int32(shim.aoti_torch_device_type_cpu()),
        c_int32(0),
        byref(handle),
        c_int32(shim.aoti_torch_layout__mkldnn() if layout else shim.aoti_torch_layout_strided()),
        layout or None,
        c_int64(len(layout)),
    )
    if failed:
        raise MemberError(f"no tensor could be made of {tuple(shape)}")
    return handle


def _copy_of(handle: c_void_p) -> Tensor:
    """A tensor of torch with the same contents.

    Raises:
        MemberError: it is not float32, or does not lie in one piece.
    """
    shim, dtype, dimensions, data = _shim(), c_int32(), c_int64(), c_void_p()
    sizes, strides = POINTER(c_int64)(), POINTER(c_int64)()
    failed = (
        shim.aoti_torch_get_dtype(handle, byref(dtype))
        or shim.aoti_torch_get_dim(handle, byref(dimensions))
        or shim.aoti_torch_get_sizes(handle, byref(sizes))
        or shim.aoti_torch_get_strides(handle, byref(strides))
        or shim.aoti_torch_get_data_ptr(handle, byref(data))
    )
    shape = sizes[: dimensions.value]
    result = torch.empty(shape)
    if (
        failed
        or dtype.value != shim.aoti_torch_dtype_float32()
        or [s for s, n in zip(strides[: dimensions.value], shape, strict=True) if n > 1]
        != [s for s, n in zip(result.stride(), shape, strict=True) if n > 1]
    ):
        raise MemberError("its output is not float32 in one piece")
    ctypes.memmove(result.data_ptr(), data.value or 0, 4 * result.numel())
    return result
