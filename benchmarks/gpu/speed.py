"""Steps: how fast members run: a single image, full batches, and many small members."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.members.fused import FusedMembers
from torchserve_ensemble.handlers.spec import EnsembleSpec

from . import large_members
from .ensembles import inputs, logged, network_of, save_member, write_spec
from .rows import Skipped, Step
from .timing import median_seconds

_MAX_GRAPH_DIFFERENCE = 1e-2
"""Largest difference of a raw output between a CUDA graph and the calls that it was made of."""


def measure_single_image(step: Step) -> None:
    """Compare one member eager with the same member as a CUDA graph, for one image."""
    spec = large_members.write_large(step.folder, [0], on_gpu=step.on_gpu)
    side = large_members.side_of_input(step.on_gpu)
    batch = inputs(1, side).to(step.device)
    plain = large_members.build_large(step.on_gpu).to(step.device)
    with step.row("batch 1: eager float32", measures=True) as row:
        row.values["ms"] = _milliseconds(step, partial(plain, batch))
        row.detail = f"{row.values['ms']} ms"
    runtime, precision = _load(spec, step)
    (member,) = runtime.executables.single
    with step.row("batch 1: our runtime, precision auto", measures=True) as row:
        row.values["member_ms"] = _milliseconds(step, partial(member, batch))
        row.values["runtime_ms"] = _milliseconds(step, partial(runtime.run, list(inputs(1, side))))
        row.detail = (
            f"{row.values['member_ms']} ms for the member alone in {precision}, "
            f"{row.values['runtime_ms']} ms with everything around it, from the input in host "
            "memory to scores there"
        )
    with step.row("batch 1: the same member as a CUDA graph", measures=True) as row:
        if not step.on_gpu:
            raise Skipped("only a GPU has CUDA graphs")
        replay = _as_cuda_graph(member, batch)
        changed = float((replay() - member(batch)).abs().max())
        assert changed <= _MAX_GRAPH_DIFFERENCE, f"the graph's outputs differ by {changed:.1e}"
        row.values["ms"] = _milliseconds(step, replay)
        row.detail = f"{row.values['ms']} ms, largest difference {changed:.1e}"


def _load(spec: EnsembleSpec, step: Step) -> tuple[Runtime, str]:
    """Load an ensemble, and say in which precision its members run."""
    with logged() as messages:
        runtime = Runtime.load(spec, step.folder, step.device)
    reduced = any("runs in bfloat16" in message for message in messages)
    return runtime, "bfloat16" if reduced else "float32"


def _milliseconds(step: Step, call: Callable[[], object]) -> float:
    return round(1000 * median_seconds(step, call), 3)


@torch.inference_mode()
def _as_cuda_graph(run: Callable[[Tensor], Tensor], batch: Tensor) -> Callable[[], Tensor]:
    """Record the kernels of one call, and return a function that launches all of them at once."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(batch)

    def replay() -> Tensor:
        graph.replay()
        return outputs

    return replay


def measure_roofline(step: Step) -> None:
    """Compare full batches in bfloat16 with the fastest matrix product of this device."""
    peak = 0.0
    with step.row("peak of bfloat16 matrix products", measures=True) as row:
        peak = _peak_flops(step)
        row.values["tflops"] = round(peak / 1e12, 3)
        row.detail = f"{row.values['tflops']} TFLOP/s"
    sizes = (64, 256) if step.on_gpu else (2,)
    spec = large_members.write_large(step.folder, [0], on_gpu=step.on_gpu, micro_batch=max(sizes))
    runtime, precision = _load(spec, step)
    (member,) = runtime.executables.single
    flops = _flops_per_sample(step.on_gpu)
    for size in sizes:
        name = f"batch {size}: {large_members.name_of(step.on_gpu)} in {precision}"
        with step.row(name, measures=True) as row:
            batch = inputs(size, large_members.side_of_input(step.on_gpu)).to(step.device)
            seconds = median_seconds(step, partial(member, batch))
            achieved = size * flops / seconds
            row.values |= {
                "images_per_second": round(size / seconds),
                "tflops": round(achieved / 1e12, 3),
                "share_of_peak": round(achieved / peak, 3) if peak else 0.0,
            }
            row.detail = (
                f"{row.values['images_per_second']} images/s, {row.values['tflops']} TFLOP/s, "
                f"{100 * float(row.values['share_of_peak']):.1f} % of the peak"
            )
            pixels = [*(64 * batch.cpu() + 128).clamp(0, 255).to(torch.uint8)]
            whole = median_seconds(step, partial(runtime.run, pixels))
            row.values["runtime_images_per_second"] = round(size / whole)
            row.detail += f"; {size / whole:.0f} images/s from pixels in host memory to scores"


def _peak_flops(step: Step) -> float:
    """Measure floating-point operations per second of a large matrix product in bfloat16."""
    side = 8192 if step.on_gpu else 256
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn((side, side), generator=generator).to(step.device, torch.bfloat16)
        for _ in range(2)
    )
    return 2 * side**3 / median_seconds(step, lambda: first @ second)


def _flops_per_sample(on_gpu: bool) -> int:
    """Count a member's floating-point operations for one sample, two for a multiply-add."""
    side = large_members.side_of_input(on_gpu)
    module = large_members.build_large(on_gpu).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty((1, 3, side, side), device="meta"))
    return int(counter.get_total_flops())


def measure_small_members(step: Step) -> None:
    """Compare many small members fused with the same members one by one."""
    count = 200 if step.on_gpu else 4
    modules = [network_of(seed, 4) for seed in range(count)]
    members = [save_member(step.folder, f"m{i}", each) for i, each in enumerate(modules)]
    runtime = Runtime.load(write_spec(step.folder, members), step.folder, step.device)
    joint = runtime.executables.joint
    for size in (1, 32, 256) if step.on_gpu else (1, 2):
        with step.row(f"{count} small members, batch {size}", measures=True) as row:
            assert [type(each) for each in joint] == [FusedMembers], "the members are not fused"
            batch = inputs(size).to(step.device)
            row.values["fused_ms"] = _milliseconds(step, partial(joint[0], batch))
            row.values["one_by_one_ms"] = _milliseconds(step, partial(_one_by_one, runtime, batch))
            ratio = float(row.values["one_by_one_ms"]) / float(row.values["fused_ms"])
            row.detail = (
                f"{row.values['fused_ms']} ms fused, {row.values['one_by_one_ms']} ms one by one "
                f"({ratio:.1f} times)"
            )


def _one_by_one(runtime: Runtime, batch: Tensor) -> None:
    for single in runtime.executables.single:
        single(batch)
