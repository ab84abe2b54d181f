"""torchvision is imported without torch's compiler; each test uses a new process."""

from __future__ import annotations

from fresh_python import printed_by


def test_a_worker_does_not_import_torchs_compiler() -> None:
    code = """
import sys
import torchserve_ensemble.handlers.entry, torchserve_ensemble.handlers.service
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    assert printed_by(code) == ["[]"]


def test_the_compiler_is_imported_when_it_is_used() -> None:
    code = """
import torch
from torchserve_ensemble.handlers.base.torchvision_imports import functional
from torchvision.ops import roi_align
torch.use_deterministic_algorithms(True)
pooled = roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], output_size=2)
compiled = torch.compile(lambda x: functional.hflip(x) + 1, backend="eager")
print(pooled.sum().item(), compiled(torch.arange(2.0).view(1, 1, 2)).tolist())
"""
    assert printed_by(code) == ["4.0 [[[2.0, 1.0]]]"]


def test_a_compiler_that_was_imported_before_is_not_replaced() -> None:
    code = """
import torch._dynamo
before = torch._dynamo.utils
import torchserve_ensemble.handlers.base.torchvision_imports
print(torch._dynamo.utils is before, torch.compiler.disable is not None)
"""
    assert printed_by(code) == ["True True"]
