"""malloc keeps the memory of freed large tensors, unless the environment sets it otherwise."""

from __future__ import annotations

import platform

import pytest
from fresh_python import printed_by

from torchserve_ensemble.handlers.base.memory import keep_activations

# Prints how many pages the system gave to the process for sixty tensors of 40 MB, one after the
# other. malloc needs a few new pages until it has a gap for such a tensor with its alignment.
CODE = """
import resource, torch
from torchserve_ensemble.handlers.base.memory import keep_activations
if {keep}:
    assert keep_activations()
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_the_system_gives_the_memory_of_large_tensors_once() -> None:
    faults = {}
    for keep in (True, False):
        (printed,) = printed_by(CODE.format(keep=keep))
        faults[keep] = int(printed)
    assert faults[True] < faults[False] / 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "4000000"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000"),
    ],
)
def test_the_environment_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_activations()
