"""Run a model that AOTInductor compiled to a shared library, through the library's C interface.

torch's own bindings (``torch._C._aoti``) hold Python's global lock while a model computes, which
stops every other thread of the worker. A call through ctypes releases the lock. AOTInductor keeps
this C interface stable between releases (``torch/csrc/inductor/aoti_runtime/interface.h`` and
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
    """Where one weight lies in a compiled library, and its type.

    Attributes:
        name: the weight's name in the library.
        dtype: torch's name of the element type, e.g. ``float32``.
        shape: the weight's sizes.
        strides: the weight's strides in elements; empty for a packed weight.
        offset: bytes from the start of the first weight to the start of this one.
        layout: oneDNN's description of a packed weight's memory layout, in hexadecimal digits;
            empty for a weight that is not packed.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    strides: Sequence[int]
    offset: int
    layout: str = ""


def constants_path(library: Path) -> Path:
    """Return the path of the file that lists a library's weights."""
    return library.with_suffix(".weights.json")


def write_constants(library: Path, constants: Sequence[Constant]) -> None:
    """Write the file that lists a library's weights."""
    constants_path(library).write_text(json.dumps([asdict(each) for each in constants]))


def read_constants(library: Path) -> list[Constant]:
    """Read the file that lists a library's weights.

    Raises:
        OSError: the file is missing or cannot be read.
        MemberError: the file is damaged.
    """
    try:
        return [Constant(**each) for each in json.loads(constants_path(library).read_text())]
    except (ValueError, TypeError) as error:
        raise MemberError(f"{constants_path(library).name} is damaged ({error!r})") from None


class AotLibrary:
    """A compiled model that maps float32 (N, *shape) to float32 (N, outputs) on the CPU.

    The weights are part of the mapped file, so all processes that map the file share them.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], max_batch_size: int, *, copies: int = 1
    ) -> None:
        """Load a library and check that it has one output and that its weights are listed.

        Args:
            path: the ``.so`` file; the list of its weights lies beside it (`constants_path`).
            shape: shape of one sample that the library was compiled for. The library itself does
                not check the shape of its input.
            max_batch_size: largest number of samples per call that the library was compiled for.
            copies: number of threads that may run the model at once; they share its weights.

        Raises:
            OSError: the library or the list of its weights cannot be loaded.
            MemberError: the model does not have exactly one output, or the list of weights does
                not fit the library.
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
        # With a weight missing the library would still run, and read memory that is not mapped.
        missing = sizes_in(self._library, self._container).keys() - {c.name for c in constants}
        if missing:
            listing = constants_path(path).name
            raise MemberError(
                f"{listing} does not fit {path.name}: no {', '.join(sorted(missing))}"
            )
        outputs = c_size_t()
        self._check(
            self._library.AOTInductorModelContainerGetNumOutputs(self._container, byref(outputs))
        )
        if outputs.value != 1:
            raise MemberError(f"{path.name} has {outputs.value} outputs, not one")

    def __call__(self, batch: Tensor) -> Tensor:
        """Run the model on a batch; other Python threads keep running meanwhile.

        Args:
            batch: float32 (N, *shape) with N from 1 to `max_batch_size`.

        Raises:
            MemberError: the batch has a wrong type or shape, or the library failed; the library's
                own message is in the worker's log.
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
        # The library frees the handle; `batch` keeps the memory alive until the call returns.
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
        # A library of an earlier torch lacks that function and copies its weights.
        return int(self._library.AOTInductorModelContainerCreateWithDevice(*arguments))

    def _check(self, error: int) -> None:
        if error:
            raise MemberError(f"{self._name} failed (error {error}; the reason is in the log)")


def weight_sizes(path: Path) -> dict[str, int]:
    """Return the size in bytes of each weight by name, in the order of the library.

    Raises:
        MemberError: the library cannot be loaded or does not report its weights.
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
    """Return the size in bytes of each weight by name, for a model container that is loaded.

    Raises:
        MemberError: the library does not report its weights.
    """
    count, size, name = c_size_t(), c_size_t(), c_char_p()
    bytes_by_name = {}
    failed = library.AOTInductorModelContainerGetNumConstants(container, byref(count))
    for index in map(c_size_t, range(count.value)):
        failed |= library.AOTInductorModelContainerGetConstantName(container, index, byref(name))
        failed |= library.AOTInductorModelContainerGetConstantDataSize(
            container, index, byref(size)
        )
        bytes_by_name[(name.value or b"").decode()] = size.value
    if failed:
        raise MemberError("a compiled library does not report its weights; build the archive again")
    return bytes_by_name


@cache
def _shim() -> ctypes.CDLL:
    """Load the library with torch's C functions on tensors (``shim.h``)."""
    folder = Path(torch.__file__).parent / "lib"
    (path, *_) = [*folder.glob("libtorch_cpu.*"), folder / "libtorch_cpu.so"]
    return ctypes.CDLL(str(path))


class _Weight(Structure):
    """One weight's name and tensor handle, as the C struct ``AOTInductorConstantMapEntry``."""

    _fields_ = (("name", c_char_p), ("handle", c_void_p))


def _weights(library: ctypes.CDLL, constants: Sequence[Constant]) -> ctypes.Array[_Weight]:
    """Create tensor handles for the weights, at the addresses where the library is mapped."""
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
    """Create a C tensor object that shares the memory of a float32 tensor."""
    return _handle_at(tensor.data_ptr(), tensor.shape, tensor.stride(), "float32")


def _handle_at(
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: str,
    layout: bytes = b"",
) -> c_void_p:
    """Create a C tensor object over memory that the caller keeps alive for longer.

    Args:
        address: address of the first element.
        shape: the tensor's sizes.
        strides: the tensor's strides in elements; ignored if there is a layout.
        dtype: torch's name of the element type.
        layout: oneDNN's description of a packed weight's memory layout; empty otherwise.

    Raises:
        MemberError: torch refuses to create the tensor object.
    """
    shim, handle = _shim(), c_void_p()
    sizes_type = c_int64 * len(shape)
    failed = shim.aoti_torch_create_tensor_from_blob_v2(
        c_void_p(address),
        c_int64(len(shape)),
        sizes_type(*shape),
        sizes_type(*strides),
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
        raise MemberError(f"torch cannot create a {dtype} tensor of shape {tuple(shape)}")
    return handle


def _copy_of(handle: c_void_p) -> Tensor:
    """Copy a C tensor object into a new torch tensor.

    Raises:
        MemberError: the C tensor is not float32 or not contiguous.
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
        raise MemberError("the output of a compiled library is not a contiguous float32 tensor")
    ctypes.memmove(result.data_ptr(), data.value or 0, 4 * result.numel())
    return result
