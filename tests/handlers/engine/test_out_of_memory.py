"""Tests that a batch which is too large for the device's memory is computed in parts."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from member_files import CPU, batch, net, write_code, write_ensemble
from probe_ensemble import ask, image, probes
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.handlers.engine.member_scores import State
from torchserve_ensemble.handlers.engine.runtime import Runtime
from torchserve_ensemble.handlers.members.executable import Executable
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


def test_lazy_request_that_is_too_large_is_answered_by_all_members(tmp_path: Path) -> None:
    service = probes(tmp_path)
    images = [image(brightness) for brightness in (0.1, 0.4, 0.6, 0.9, 0.3)]
    expected = ask(service, *images, policy="plurality", lazy="true", fields="label")
    runtime = service._runtime
    run_unit = runtime._run_executable
    sizes = []

    def too_large(executable: Executable, inputs: Tensor, *rest: Any) -> None:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("full")
        run_unit(executable, inputs, *rest)

    runtime._run_executable = too_large  # type: ignore[method-assign]
    answer = ask(service, *images, policy="plurality", lazy="true", fields="label")
    labels, expected_labels = (
        [each["label"] for each in content["predictions"]] for content in (answer, expected)
    )
    assert labels == expected_labels
    assert sizes[0] == 5
    assert set(sizes[2:]) <= {1, 2, 3}
