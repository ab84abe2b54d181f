"""The processes of a server: the launcher, Java below it, and the workers below Java.

The launcher is the Python process of TorchServe's own command line. It begins a session, to which
Java and the workers belong. Java and the workers outlive a launcher that is killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ..handlers.archive.trusted_keys import TRUSTED_KEYS_VARIABLE
from .java import JavaRuntime
from .run_folder import CONFIG_FILE, ServerState, console_log, write_private_file
from .tokens import TOKEN_VARIABLE

_LAUNCHER_MODULE = "ts.model_server"
_JAVA_MAIN_CLASS = "org.pytorch.serve.ModelServer"
_WORKER_SCRIPT = "model_service_worker.py"
_WORKER_GUARD = Path(__file__).resolve().parent / "worker_guard"
_LOG_CONFIG = Path(__file__).parent / "log4j2.xml"


def launch(
    run_folder: Path,
    *,
    model_store: str,
    models: Sequence[str],
    java: JavaRuntime,
    temporary: str,
    trusted_keys: Path | None,
) -> psutil.Process:
    """Start TorchServe's launcher in a run folder, with the configuration that lies there.

    Args:
        run_folder: working folder of the server.
        model_store: absolute path of the folder with the archives.
        models: archives to load at the start, ``NAME=FILE`` or ``FILE``.
        java: the Java that runs the frontend.
        temporary: folder in which TorchServe extracts archives.
        trusted_keys: file with public keys; workers load only archives that one of them signed.

    Returns:
        The launcher's process. Java and the workers start later.
    """
    environment = os.environ | {"JAVA_HOME": str(java.home), "TEMP": temporary}
    environment |= {"TMPDIR": temporary, "LOG_LOCATION": "logs", "METRICS_LOCATION": "logs"}
    # Workers import `handlers` from the archive; an inherited path would come first.
    environment.pop("PYTHONPATH", None)
    environment.pop("TS_CONFIG_FILE", None)
    # The code in an archive must not learn a token that was meant for a client.
    environment.pop(TOKEN_VARIABLE, None)
    if trusted_keys is not None:
        environment |= guarded_environment(trusted_keys)
    command = [sys.executable, "-m", _LAUNCHER_MODULE, "--start", "--foreground", "--ncs"]
    command += ["--model-store", model_store, "--ts-config", CONFIG_FILE]
    command += ["--log-config", str(_LOG_CONFIG)]
    if models:
        command += ["--models", *models]
    write_private_file(console_log(run_folder), "")
    with console_log(run_folder).open("wb") as console:
        launcher = subprocess.Popen(
            command,
            cwd=run_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Only this user may read the tokens and the logs that Java writes.
            umask=0o077,
        )
    process = psutil.Process(launcher.pid)
    with contextlib.suppress(psutil.Error):
        # `find_server_process` recognises the launcher by its command line, which the operating
        # system shows only shortly after the start.
        while process.status() != psutil.STATUS_ZOMBIE and not process.cmdline():
            time.sleep(0.001)
    return process


def guarded_environment(trusted_keys: Path) -> dict[str, str]:
    """Environment variables that let the guard of the workers run before any code of an archive.

    TorchServe puts an archive's folder behind the PYTHONPATH that it was started with, but before
    the standard library and the installed packages. So both of these go before it, too: otherwise
    an archive could replace a module that Python imports before the guard runs, such as
    `encodings`.

    Args:
        trusted_keys: file with public keys.
    """
    program = "import os, sys; print(*sys.path, sep=os.pathsep)"
    command = [sys.executable, "-E", "-P", "-c", program]
    search_path = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "PYTHONPATH": f"{_WORKER_GUARD}{os.pathsep}{search_path.rstrip()}",
        TRUSTED_KEYS_VARIABLE: str(trusted_keys.resolve()),
    }


def kill_with_children(launcher: psutil.Process) -> None:
    """Kill a launcher and every process below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        # A suspended launcher cannot start Java between the two kills.
        launcher.suspend()
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()


def terminate(process: psutil.Process) -> None:
    """Ask a process to end (SIGTERM), if it still exists."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()


def find_server_process(run_folder: Path, state: ServerState) -> psutil.Process | None:
    """Find the launcher of a server, or its Java if only Java is left; None if neither lives.

    The state file is not believed. A process counts only if it belongs to this user, works in the
    run folder, and is TorchServe by its command line.
    """
    with contextlib.suppress(psutil.Error):
        launcher = psutil.Process(state.pid)
        same_start = abs(launcher.create_time() - state.created) < 1
        if same_start and works_in(run_folder, launcher, _LAUNCHER_MODULE):
            return launcher
    # model_server.py passes the launcher's TEMP to Java, and no other server has this TEMP.
    return find_java_process(run_folder, f"-Djava.io.tmpdir={state.temporary}")


def find_java_process(run_folder: Path, *arguments: str) -> psutil.Process | None:
    """Find this user's TorchServe Java that works in a folder; None if there is none.

    Args:
        run_folder: working folder of the process.
        arguments: further arguments that its command line must have.
    """
    for process in psutil.process_iter():
        if works_in(run_folder, process, _JAVA_MAIN_CLASS, *arguments):
            return process
    return None


def server_processes(session: int | None) -> list[psutil.Process]:
    """The launcher, Java and the workers of one session, as far as they live.

    Args:
        session: session id of the launcher; None gives no process.
    """
    processes = []
    for process in psutil.process_iter() if session is not None else ():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                os.getsid(process.pid) == session
                and process.uids().real == os.getuid()
                and process.status() != psutil.STATUS_ZOMBIE
                and any(
                    argument in (_LAUNCHER_MODULE, _JAVA_MAIN_CLASS)
                    or argument.endswith(_WORKER_SCRIPT)
                    for argument in process.cmdline()
                )
            ):
                processes.append(process)
    return processes


def works_in(run_folder: Path, process: psutil.Process, *arguments: str) -> bool:
    """Whether a process belongs to this user, works in a folder and has these arguments."""
    try:
        return (
            process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and set(arguments) <= set(process.cmdline())
            and run_folder.samefile(process.cwd())
        )
    except (psutil.Error, OSError):
        return False


def is_java(process: psutil.Process) -> bool:
    """Whether a process is Java, by its name."""
    try:
        return "java" in process.name()
    except psutil.Error:
        return False
