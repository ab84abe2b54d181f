"""Python runs this file when it starts in a worker of a server with trusted keys.

`serve --trusted-keys` puts this folder on PYTHONPATH before the archive's folder, and the folders
of the server's own Python in between (`serving.processes`). So this file runs before any code of an
archive, and an archive cannot replace it. It ends the worker unless a trusted key signed the
archive and every file is as it was signed, however the archive was registered.

It replaces a `sitecustomize.py` of the machine in these processes.
"""

import array
import fcntl
import os
import sys
import termios
import time
from pathlib import Path

_MANIFEST = "MAR-INF/MANIFEST.json"
_WORKER_SCRIPT = "model_service_worker.py"
_MAX_SECONDS_TO_READ = 5


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


def _report(error: BaseException) -> None:
    """Print why the worker ends, in one line, and wait until TorchServe has read it.

    TorchServe has a thread for each output of a worker. The first one that reaches an end closes
    both, and what the other one has not read by then is lost.
    """
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    deadline = time.monotonic() + _MAX_SECONDS_TO_READ
    num_unread = array.array("i", [0])
    while time.monotonic() < deadline:
        fcntl.ioctl(sys.stdout.fileno(), termios.FIONREAD, num_unread)
        if num_unread[0] == 0:
            return
        time.sleep(0.01)


try:
    _check_archive()
except BaseException as error:
    try:
        _report(error)
    finally:
        # Python would report an error that is raised here, and go on.
        os._exit(1)
