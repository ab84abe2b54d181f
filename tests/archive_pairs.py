"""Builds pairs of archives that differ in one place, of probes that answer by brightness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive

Edit = Callable[[dict[str, Any], Path], None]
"""Changes the content of a spec, and the files in its folder."""


def build(folder: Path, edit: Edit | None = None, **options: Any) -> Path:
    """Build an archive of three probes, ``a``, ``b`` and ``c``.

    Args:
        folder: new folder for the spec and the archive.
        edit: changes the spec and its files before the build.
        options: options of `probes`.
    """
    folder.mkdir()
    probes(folder, **options)
    spec = folder / "ensemble.yaml"
    if edit is not None:
        content = json.loads(spec.read_text())
        edit(content, folder)
        spec.write_text(json.dumps(content))
    return build_archive(spec, folder / "store", check=False)
