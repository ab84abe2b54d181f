"""Starts TorchServe in a run folder and records it there, without waiting for its answer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ..handlers.archive.trusted_keys import TrustedKeys
from ..handlers.base.errors import ServerError
from .addresses import check_ports
from .archive_check import check_models
from .java import find_java
from .processes import find_java_process, find_server_process, kill_with_children, launch
from .properties_file import write_properties
from .run_folder import (
    STATE_FILE,
    TRUSTED_KEYS_FILE,
    ServerState,
    make_run_folder,
    make_temporary_folder,
    prepare_files,
    read_state,
    remove_files_of_dead_server,
    run_folder_lock,
    write_state,
)
from .settings import ServerSettings, effective, is_on


def launch_server(
    settings: ServerSettings, run_folder: Path, *, check_archives: bool
) -> ServerState:
    """Check everything that a start needs, launch TorchServe, and write the state file.

    Args:
        settings: what to serve, and how.
        run_folder: working folder of the server; made if missing.
        check_archives: check every archive before TorchServe extracts it.

    Returns:
        The state that was written.

    Raises:
        ArchiveError: an archive was altered, `ts-ensemble build` did not write it, or none of the
            trusted keys signed it; or the keys cannot be read.
        SpecError: the spec in an archive has a mistake.
        ServerError: there is no Java, a server already runs in the folder, a port is in use, the
            folder cannot be used, or a setting would keep workers from checking signatures.
        OSError: a file of the run folder cannot be written, or TorchServe cannot be launched.
    """
    written = settings.properties()
    properties = effective(written)
    trusted = None
    if settings.trusted_keys is not None:
        trusted = TrustedKeys.read(settings.trusted_keys)
        _check_settings_for_trusted_keys(properties)
    if check_archives:
        check_models(settings.models, properties, trusted)
    java = find_java()
    make_run_folder(run_folder)
    with run_folder_lock(run_folder, timeout=0):
        _check_none_runs(run_folder)
        check_ports(properties)
        remove_files_of_dead_server(run_folder)
        prepare_files(
            run_folder, write_properties(written), None if trusted is None else trusted.pem
        )
        temporary = make_temporary_folder(run_folder)
        launcher = launch(
            run_folder,
            model_store=properties["model_store"],
            models=settings.models,
            java=java,
            temporary=temporary,
            trusted_keys=None if trusted is None else run_folder / TRUSTED_KEYS_FILE,
        )
        try:
            grpc_host = properties["grpc_inference_address"]
            state = ServerState(
                pid=launcher.pid,
                created=launcher.create_time(),
                inference_address=properties["inference_address"],
                management_address=properties["management_address"],
                metrics_address=properties["metrics_address"],
                grpc_address=f"{grpc_host}:{properties['grpc_inference_port']}",
                temporary=temporary,
                tokens=not is_on(properties, "disable_token_authorization"),
                trusted_keys=trusted is not None,
            )
            write_state(run_folder, state)
        except BaseException:
            # Without its state file no verb would find this server again.
            kill_with_children(launcher)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return state


def _check_settings_for_trusted_keys(properties: Mapping[str, str]) -> None:
    """Check that no setting lets code of an archive run before a worker has checked its signature.

    Raises:
        ServerError: there is such a setting.
    """
    for key, reason in (
        ("blacklist_env_vars", "may hide from the workers which keys are trusted"),
        ("install_py_dep_per_model", "installs what an archive requires before it is checked"),
    ):
        if properties.get(key, "").lower() not in ("", "false"):
            raise ServerError(f"{key} {reason}; remove it, or serve without --trusted-keys")


def _check_none_runs(run_folder: Path) -> None:
    """Check that no server works in a folder, whether the state file names it or not.

    Raises:
        ServerError: a server works there, or the state file is damaged.
    """
    state = read_state(run_folder)
    if state is not None and find_server_process(run_folder, state) is not None:
        raise ServerError(
            f"a server runs in {run_folder} already: {state.inference_address} (pid {state.pid}); "
            "stop it with `ts-ensemble stop`"
        )
    java = find_java_process(run_folder)
    if java is not None:
        raise ServerError(
            f"a TorchServe works in {run_folder} (pid {java.pid}) that {STATE_FILE} does not name; "
            "end that process, or use another --run-folder"
        )
