"""Lays out the weights of compiled members for oneDNN's kernels, and finds them in the library.

Inductor packs the weights of convolutions itself only if the batch size is fixed. Otherwise oneDNN
lays every weight out again in every run. For a ResNet-18 in float32 that takes a fifth of the time
of one sample, and a twelfth of the time of four samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.constant_folding import replace_node_with_constant
from torch.utils._python_dispatch import _disable_current_modes

from ..handlers.base.errors import MemberError
from ..handlers.members.aot_library import Constant, weight_sizes

# The layout that a kernel expects depends on the batch size and on the number of threads. A weight
# is packed only if all of these expect the same layout: changing the layout of a packed weight in a
# run takes longer than laying out one that is not packed.
_BATCH_SIZES = (1, 2, 4, 8)
_THREAD_COUNTS = (1, 2)

_ALIGNMENT_BYTES = 64
"""Each weight in a library is padded to a multiple of this size."""


def pack_weights(graph: fx.Graph) -> None:
    """Pack the weights of convolutions whose layout is the same for every batch size.

    This is a pass for ``post_grad_custom_pre_pass`` of torch._inductor.config.

    Args:
        graph: a frozen graph for the CPU, which is changed in place.
    """
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    module = graph.owning_module
    assert module is not None
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not convolution:
            continue
        image, weight, _, *geometry = node.args[:7]
        plain = _constant_value(module, weight)
        if plain is None or plain.is_mkldnn:
            continue
        input_shape, output_shape = image.meta["val"].shape[1:], node.meta["val"].shape[1:]
        # For such an output Inductor expects channels first, as the input is. But oneDNN writes
        # channels last once the weight is packed.
        if _has_one_layout(input_shape) and not _has_one_layout(output_shape):
            continue
        packed = _packed_for_all_sizes(plain, geometry, [int(size) for size in input_shape])
        if packed is None:
            continue
        with graph.inserting_before(node):
            packed_node = graph.create_node("get_attr", weight.target)
        packed_node.meta.update(weight.meta)
        node.replace_input_with(weight, packed_node)
        replace_node_with_constant(module, packed_node, packed)


def constants_of(library: Path) -> list[Constant]:
    """List the weights of a compiled library for the CPU, and where each lies in the file.

    A library that loads its weights itself copies them in every worker to memory from ``malloc``.
    That memory begins 16 bytes after the start of a cache line, so every load of 64 bytes touches
    two lines. This takes an eighth of the time of a convolution.

    Args:
        library: the compiled library.

    Raises:
        MemberError: a weight takes more space in the library than it should.
    """
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    original_names = runner.get_constant_names_to_original_fqns()
    values = runner.extract_constants_map(False)
    constants, offset = [], 0
    for name, padded_bytes in weight_sizes(library).items():
        # A constant that Inductor made itself has no name in the exported program. One name of the
        # program may stand for several constants, such as the scales of quantized activations;
        # these are then equal.
        value = values[original_names[name] or name]
        num_bytes = _num_storage_bytes(value)
        if not 0 <= padded_bytes - num_bytes < _ALIGNMENT_BYTES:
            raise MemberError(f"{library.name}: {name} takes {padded_bytes} bytes, not {num_bytes}")
        constants.append(
            Constant(
                name=name,
                dtype=str(value.dtype).removeprefix("torch."),
                shape=tuple(value.shape),
                strides=() if value.is_mkldnn else value.stride(),
                offset=offset + _offset_in_storage_bytes(value),
                layout=layout_of(value) if value.is_mkldnn else "",
            )
        )
        offset += padded_bytes
    return constants


def layout_of(packed: Tensor) -> str:
    """Return oneDNN's description of a packed weight's memory layout, in hexadecimal digits."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist()).hex()


def _constant_value(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Return the tensor that a node of a graph reads; None if it does not read a constant."""
    if node.op != "get_attr":
        return None
    value: Any = attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, Tensor) else None


def _has_one_layout(shape: Sequence[int]) -> bool:
    """Return whether channels first and channels last are the same layout for an image.

    Args:
        shape: (channels, height, width) of the image.
    """
    channels, *sides = shape
    return channels == 1 or all(side == 1 for side in sides)


def _packed_for_all_sizes(
    plain: Tensor, geometry: Sequence[object], shape: Sequence[int]
) -> Tensor | None:
    """Pack a convolution's weight in the layout that every batch size and thread count expects.

    Args:
        plain: the weight in torch's own layout.
        geometry: padding, stride, dilation and groups of the convolution.
        shape: (channels, height, width) of one input.

    Returns:
        None if the expected layouts differ.
    """
    layouts = set()
    packed = plain
    with _disable_current_modes():
        for num_threads in _THREAD_COUNTS:
            with _torch_threads(num_threads):
                for batch_size in _BATCH_SIZES:
                    packed = torch.ops.mkldnn._reorder_convolution_weight(
                        plain, *geometry, [batch_size, *shape]
                    )
                    layouts.add(layout_of(packed))
                    if len(layouts) > 1:
                        return None
    return packed


def _num_storage_bytes(tensor: Tensor) -> int:
    """Return the size of the storage in which a tensor lies; other tensors may lie there too."""
    if tensor.is_mkldnn:
        return int(torch.ops.mkldnn._nbytes(tensor))
    return tensor.untyped_storage().nbytes()


def _offset_in_storage_bytes(tensor: Tensor) -> int:
    """Return the number of bytes from the start of a tensor's storage to its first element."""
    return 0 if tensor.is_mkldnn else int(tensor.storage_offset()) * tensor.element_size()


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    """Set the number of threads that torch uses, within a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
