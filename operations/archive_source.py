"""Where an archive comes from, and how it gets into the model store of a server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..archiver.variants import changed_files, write_variant
from ..handlers.base.errors import ArchiveError


@dataclass(frozen=True)
class ArchiveSource:
    """An archive, and the settings that replace those in it.

    Attributes:
        path: the archive, which was verified.
        version: the version that it was built as.
        changes: keys of its spec -> new values, as `changed_files` takes them.
    """

    path: Path
    version: str
    changes: Mapping[str, Any]

    def place(self, model_store: Path, file_name: str, version: str) -> None:
        """Put the archive, with its changes, into a model store; the file appears complete.

        Args:
            model_store: folder of the server's archives.
            file_name: name of the file in it.
            version: the version that the file gets.

        Raises:
            ArchiveError: the file cannot be written.
        """
        target = model_store / file_name
        changes = dict(self.changes)
        if version != self.version:
            changes["version"] = version
        try:
            if changes:
                write_variant(self.path, changed_files(self.path, changes), target)
            elif not target.exists():
                # TorchServe ignores names in a model store that begin with a dot.
                with tempfile.TemporaryDirectory(prefix=".copy-", dir=model_store) as work:
                    copy = Path(work) / file_name
                    shutil.copyfile(self.path, copy)
                    copy.replace(target)
        except OSError as error:
            raise ArchiveError(f"{target}: cannot be written: {error}") from error
