"""Weights of compiled members: laid out for oneDNN's kernels, and where they lie in the library.

Inductor packs the weights of convolutions itself only for a fixed number of samples; else oneDNN
lays every weight out anew at every run, which for a ResNet-18 in float32 is a fifth of the time of
one sample and a twelfth of that of four.
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

# The layout that a kernel wants depends on both; a weight that has to be laid out in another way
# after all takes longer than one that was not packed.
_SAMPLES = (1, 2, 4, 8)
_THREADS = (1, 2)

_ALIGNMENT = 64
"""Bytes, that a weight in a library is filled up to."""


def pack_weights(graph: fx.Graph) -> None:
    """Replace the weights of convolutions whose layout is the same for any number of samples.

    A pass for ``post_grad_custom_pre_pass`` of torch._inductor.config, on a frozen graph for the
    CPU.
    """
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    module = graph.owning_module
    assert module is not None
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not convolution:
            continue
        image, weight, _, *geometry = node.args[:7]
        plain = _constant(module, weight)
        if plain is None or plain.is_mkldnn:
            continue
        shape = image.meta["val"].shape[1:]
        if _one_layout(shape) and not _one_layout(node.meta["val"].shape[1:]):
            continue
        packed = _packed(plain, geometry, [int(size) for size in shape])
        if packed is None:
            continue
        with graph.inserting_before(node):
            place = graph.create_node("get_attr", weight.target)
        place.meta.update(weight.meta)
        node.replace_input_with(weight, place)
        replace_node_with_constant(module, place, packed)


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    if node.op != "get_attr":
        return None
    found: Any = attrgetter(str(node.target))(module)
    return found.detach() if isinstance(found, Tensor) else None


def _one_layout(shape: Sequence[int]) -> bool:
    """Whether channels first and channels last are the same.

    If an image is such, and what a convolution makes of it is not, Inductor expects channels first,
    and oneDNN writes channels last once the weight is packed.
    """
    channels, *sides = shape
    return channels == 1 or all(side == 1 for side in sides)


def _packed(plain: Tensor, geometry: Sequence[object], shape: Sequence[int]) -> Tensor | None:
    """The weight in the layout that all numbers of samples and threads want; None: they differ."""
    layouts = set()
    packed = plain
    with _disable_current_modes():
        for threads in _THREADS:
            with _threads(threads):
                for samples in _SAMPLES:
                    packed = torch.ops.mkldnn._reorder_convolution_weight(
                        plain, *geometry, [samples, *shape]
                    )
                    layouts.add(layout_of(packed))
                    if len(layouts) > 1:
                        return None
    return packed


def constants_of(library: Path) -> list[Constant]:
    """The weights of a library for the CPU, and where they lie in it.

    A library that loads its weights itself copies them, in every worker, to where ``malloc`` puts
    them: 16 bytes from the start of a cache line, so that every load of 64 bytes takes two lines
    (an eighth of the time of a convolution).
    """
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    known_as = runner.get_constant_names_to_original_fqns()
    values = runner.extract_constants_map(False)
    constants, offset = [], 0
    for name, size in weight_sizes(library).items():
        # What Inductor made itself has no name in the program; and one name there may stand for
        # several constants (the scales of quantized activations), which are then alike.
        value = values[known_as[name] or name]
        if not 0 <= size - _bytes(value) < _ALIGNMENT:
            raise MemberError(f"{library.name}: {name} takes {size} bytes, not {_bytes(value)}")
        constants.append(
            Constant(
                name=name,
                dtype=str(value.dtype).removeprefix("torch."),
                shape=tuple(value.shape),
                strides=() if value.is_mkldnn else value.stride(),
                offset=offset + _start(value),
                layout=layout_of(value) if value.is_mkldnn else "",
            )
        )
        offset += size
    return constants


def layout_of(packed: Tensor) -> str:
    """oneDNN's description, in hexadecimal digits, of the layout of a weight that it packed."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist()).hex()


def _bytes(tensor: Tensor) -> int:
    """Of the memory that a tensor may be a part of."""
    if tensor.is_mkldnn:
        return int(torch.ops.mkldnn._nbytes(tensor))
    return tensor.untyped_storage().nbytes()


def _start(tensor: Tensor) -> int:
    """Bytes from there to its first element."""
    return 0 if tensor.is_mkldnn else int(tensor.storage_offset()) * tensor.element_size()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
