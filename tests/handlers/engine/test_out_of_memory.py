"""Tests that a batch which is too large for the device's memory is computed in parts."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from member_files import CPU, batch, net, write_code, write_ensemble
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.handlers.engine.member_scores import State
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.spec import load_spec


def test_memory_of_a_failed_batch_is_free_before_its_halves_run(tmp_path: Path) -> None:
    write_code(tmp_path)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    members = [{"name": "a", "architecture": "net.py:Net", "weights": "w.safetensors"}]
    runtime = Runtime.load(load_spec(write_ensemble(tmp_path, members)), tmp_path, CPU)
    (single,) = runtime.executables.single
    activations: list[weakref.ref[Tensor]] = []
    sizes = []

    class TooLarge:
        """Takes two samples at most, as if a device had no memory for more."""

        members, concurrent, uses_all_threads, max_batch_size = (0,), False, False, 100

        def pays_for(self, num_samples: int) -> bool:
            return True

        def __call__(self, inputs: Tensor) -> Tensor:
            assert all(each() is None for each in activations)
            sizes.append(len(inputs))
            activation = inputs.clone()
            activations.append(weakref.ref(activation))
            if len(inputs) > 2:
                raise torch.OutOfMemoryError("full")
            return single(activation)

    expected = runtime.run(list(batch(5)))
    too_large = TooLarge()
    runtime._executables = type(runtime.executables)([too_large])
    runtime._seconds_per_sample = {too_large: 0.001}
    result = runtime.run(list(batch(5)))
    assert sizes == [5, 2, 3, 1, 2]
    assert bool((result.states == State.ANSWERED).all())
    assert torch.allclose(result.scores, expected.scores, atol=1e-5)
