"""Writes an archive into the folders that KServe's TorchServe runtime expects in a storageUri."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

from ..archiver.packing import blocks_of
from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.base.archive_layout import MODEL_CONFIG
from ..serving.properties_file import write_properties
from ..serving.settings import DEFAULTS
from .address import Address
from .manifest import Manifest
from .pulling import pull
from .registry import Registry
from .store import Store

CONFIG = "config/config.properties"
MODEL_STORE = "model-store"

# KServe copies the storageUri there.
_MOUNTED = "/mnt/models"

# KServe's wrapper listens on the pod's port 8080 and asks TorchServe at this address. It sends no
# token, and TorchServe is reached by nothing outside the pod but the scraper of its metrics.
_SETTINGS = {
    "inference_address": "http://127.0.0.1:8085",
    "management_address": "http://127.0.0.1:8085",
    "metrics_address": "http://0.0.0.0:8082",
    "disable_token_authorization": "true",
    "model_store": f"{_MOUNTED}/{MODEL_STORE}",
}


def export(
    registry: Registry,
    address: Address,
    target: str,
    *,
    verify: Callable[[Path], ArchiveRecord] = verify_archive,
) -> Manifest:
    """Write an archive, and TorchServe's settings for it, below a folder or URL.

    Args:
        registry: the registry.
        address: the archive.
        target: folder or URL that becomes the storageUri.
        verify: checks the archive as `serve` does.

    Returns:
        The manifest of the archive.

    Raises:
        RegistryError: there is no such archive, it is damaged, or the target cannot be written.
        ArchiveError: the archive that was pushed is not one that this project built.
    """
    store = Store.open(target)
    with tempfile.TemporaryDirectory() as folder:
        pulled = pull(registry, address, Path(folder), verify=verify)
        with zipfile.ZipFile(pulled.path) as archive:
            model = yaml.safe_load(archive.read(MODEL_CONFIG))
        store.write(f"{MODEL_STORE}/{pulled.path.name}", blocks_of(pulled.path))
    store.write(CONFIG, [_config(pulled.manifest, model).encode()])
    return pulled.manifest


def _config(manifest: Manifest, model: dict[str, int]) -> str:
    """Return the text of a config.properties that serves one archive in a pod of KServe.

    Args:
        manifest: describes the archive.
        model: TorchServe's settings of the model, as the archive has them.
    """
    version = {"defaultVersion": True, "marName": manifest.file_name, **model}
    snapshot = {
        "name": "startup.cfg",
        "modelCount": 1,
        "models": {manifest.name: {manifest.version: version}},
    }
    # KServe's wrapper reads the names of the models from the snapshot.
    return write_properties(DEFAULTS | _SETTINGS | {"model_snapshot": json.dumps(snapshot)})
