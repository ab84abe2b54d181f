"""Archives of the probe ensemble in several versions, for tests of what serves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from probe_ensemble import CODE, LABELS
from safetensors.torch import save_file

from torchserve_ensemble.archiver.build import build_archive


def build_probe(folder: Path, store: Path, version: str, **settings: Any) -> Path:
    """Build an archive of one probe without a self-test, which takes a fraction of a second.

    Args:
        folder: folder for the spec and its files.
        store: folder for the archive.
        version: version of the archive.
        settings: further keys of the spec.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.py").write_text(CODE)
    save_file({"bound": torch.tensor(0.5)}, folder / "a.safetensors")
    spec = {
        "name": "probes",
        "version": version,
        "task": "classification",
        "labels": LABELS["classification"],
        "preprocessing": {"small": {"resize": [2, 2]}},
        "members": [
            {
                "name": "a",
                "architecture": "probe.py:Probe",
                "arguments": {"task": "classification"},
                "weights": "a.safetensors",
            }
        ],
        "runtime": {"engine": "torch"},
        **settings,
    }
    (folder / "ensemble.yaml").write_text(json.dumps(spec))
    return build_archive(folder / "ensemble.yaml", store, check=False)
