"""Checks archives before TorchServe extracts them.

The worker checks its archive, too, but that may be too late: when a worker's Python starts, it
runs a `sitecustomize.py` of the extracted archive before any other code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..handlers.archive.mar_file import verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.archive.trusted_keys import TrustedKeys
from ..handlers.base.errors import ArchiveError, ServerError
from .settings import missing_archive

logger = logging.getLogger(__name__)

# Endings of the files that TorchServe loads from a model store if load_models is `all`.
_ARCHIVE_SUFFIXES = (".mar", ".model", ".tar.gz")


def check_archive(
    archive: str, model_store: Path, trusted: TrustedKeys | None = None
) -> ArchiveRecord | None:
    """Check an archive that TorchServe is about to extract.

    Args:
        archive: a file name in the model store, or a URL, as TorchServe's management API takes it.
            An archive that TorchServe itself downloads cannot be checked; a warning is logged.
        model_store: folder of the server's archives.
        trusted: keys of which one must have signed the archive; None: any archive will do.

    Returns:
        The archive's record; None if TorchServe itself downloads the archive.

    Raises:
        ArchiveError: the archive is missing, was altered, `ts-ensemble build` did not write it, or
            none of the trusted keys signed it.
        SpecError: the spec in the archive has a mistake.
    """
    url = urlsplit(archive)
    if url.scheme == "file":
        return verify_archive(Path(unquote(url.path)), trusted=trusted)
    if "://" in archive:
        if trusted is not None:
            raise ArchiveError(
                f"{archive}: TorchServe itself downloads it, so its signature cannot be checked "
                f"before; this server loads only archives that a key of {trusted.source} signed: "
                "download it into the model store, and name the file"
            )
        logger.warning(
            "%s is not checked before TorchServe runs its code, since TorchServe itself downloads "
            "it: download it, check it with `ts-ensemble verify`, and register the file",
            archive,
        )
        return None
    if "/" in archive or "\\" in archive:
        # TorchServe would load a folder anywhere on the server, or use only the last part.
        raise ArchiveError(f"{archive}: name a file of the model store {model_store}, not a path")
    if not (model_store / archive).exists():
        raise ArchiveError(missing_archive(archive, model_store))
    return verify_archive(model_store / archive, trusted=trusted)


def check_models(
    models: Sequence[str], properties: Mapping[str, str], trusted: TrustedKeys | None = None
) -> None:
    """Check every archive that TorchServe is about to load at its start.

    Args:
        models: the models named on the command line, ``NAME=FILE`` or ``FILE``.
        properties: the server's settings; `model_store`, `load_models` and `model_snapshot` are
            used.
        trusted: keys of which one must have signed each archive; None: any archive will do.

    Raises:
        ArchiveError: an archive is missing, was altered, `ts-ensemble build` did not write it, or
            none of the trusted keys signed it.
        SpecError: the spec in an archive has a mistake.
        ServerError: the snapshot cannot be read.
    """
    model_store = Path(properties["model_store"])
    # TorchServe restores a snapshot even if the command line names models.
    snapshot = _snapshot_archives(properties.get("model_snapshot", ""))
    for archive in (*snapshot, *(models or _configured_archives(properties, model_store))):
        check_archive(archive.partition("=")[2] or archive, model_store, trusted)


def _configured_archives(properties: Mapping[str, str], model_store: Path) -> Iterator[str]:
    """Yield the archives that the setting load_models names."""
    load_models = properties.get("load_models", "")
    if load_models.strip().lower() != "all":
        yield from (name.strip() for name in load_models.split(",") if name.strip())
        return
    for path in sorted(model_store.iterdir()):
        is_archive = path.is_dir() or path.name.endswith(_ARCHIVE_SUFFIXES)
        if is_archive and not path.name.startswith("."):
            yield path.name


def _snapshot_archives(snapshot: str) -> list[str]:
    """The archives in a snapshot, the JSON that TorchServe writes of its models while it runs.

    Raises:
        ServerError: the snapshot cannot be read.
    """
    if not snapshot:
        return []
    try:
        models = json.loads(snapshot)["models"].values()
        return [str(version["marName"]) for model in models for version in model.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ServerError(
            f"config.properties: model_snapshot is damaged ({error!r}): remove it and name the "
            "archives in load_models"
        ) from None
