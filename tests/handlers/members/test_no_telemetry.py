"""Libraries that run members do not report their use to their makers from a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fresh_python import printed_by
from member_files import net


def test_onnxruntime_is_imported_with_its_telemetry_off(tmp_path: Path) -> None:
    """onnxruntime 1.32 sends an event some ten seconds after its import unless this is set."""
    pytest.importorskip("onnxscript")
    torch.onnx.export(net(), (torch.rand(2, 3, 4, 4),), tmp_path / "w.onnx", verbose=False)
    code = f"""
import os
import sys
import torch
from pathlib import Path
from torchserve_ensemble.handlers.members.self_contained_formats import load_onnx

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
load_onnx(Path({str(tmp_path / "w.onnx")!r}), torch.device("cpu"))
"""
    assert printed_by(code) == ["1"]
