"""Python runs this file when it starts in a worker of a server with trusted keys.

`serve --trusted-keys` puts this folder on PYTHONPATH before the archive's folder, and the folders
of the server's own Python in between (`serving.processes`). So this file runs before any code of an
archive, and an archive cannot replace it. It ends the worker unless a trusted key signed the
archive and every file is as it was signed, however the archive was registered.

It replaces a `sitecustomize.py` of the machine in these processes.
"""

import os
import sys
from pathlib import Path

_MANIFEST = "MAR-INF/MANIFEST.json"
_WORKER_SCRIPT = "model_service_worker.py"


def _check_archive() -> None:
    """Check the archive on PYTHONPATH; do nothing in processes that load no archive."""
    search_path = os.environ["PYTHONPATH"].split(os.pathsep)
    folders = [path for path in search_path if Path(path, _MANIFEST).exists()]
    is_worker = any(Path(each).name == _WORKER_SCRIPT for each in sys.orig_argv)
    if not folders and not is_worker:
        return  # TorchServe's launcher, or what measures the machine.
    # The entry's byte code would lie beside the signed files, and nothing could vouch for it.
    sys.dont_write_bytecode = True
    original = list(sys.path)
    try:
        sys.path[:] = [path for path in original if path not in folders]
        from torchserve_ensemble.handlers.archive.trusted_keys import keys_of_environment
        from torchserve_ensemble.handlers.archive.verification import verify_folder
        from torchserve_ensemble.handlers.base.errors import ArchiveError

        trusted = keys_of_environment()
        if trusted is None or not folders:
            raise ArchiveError("no trusted keys, or no archive, can be found in this worker")
        for folder in folders:
            verify_folder(Path(folder), trusted=trusted)
    finally:
        sys.path[:] = original
    # Processes that this worker starts run code that has been checked.
    own_folder = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in search_path if path != own_folder)


try:
    _check_archive()
except BaseException as error:
    try:
        # TorchServe stops reading when a worker ends, and is sure to log only the first line.
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    finally:
        # Python would report an error that is raised here, and go on.
        os._exit(1)
