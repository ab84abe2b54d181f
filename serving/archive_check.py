"""Check archives before TorchServe is told of them.

TorchServe extracts whatever it is given, and the start of a worker's Python alone runs a
`sitecustomize.py` from there: too late for the worker's own check.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..handlers.archive.mar_file import verify_archive
from ..handlers.base.errors import ArchiveError, ServerError
from .settings import missing_archive

logger = logging.getLogger(__name__)

# What TorchServe loads of a model store when it is asked for all.
_ENDINGS = (".mar", ".model", ".tar.gz")


def check_archive(archive: str, model_store: Path) -> None:
    """Check an archive that TorchServe is about to extract.

    Args:
        archive: as TorchServe's management API takes it: a file name in the model store, or an URL.
        model_store: the server's.

    Raises:
        ArchiveError: it is missing, was altered, or `ts-ensemble build` did not write it.
        SpecError: a mistake in its spec.
    """
    url = urlsplit(archive)
    if url.scheme == "file":
        verify_archive(Path(unquote(url.path)))
    elif "://" in archive:
        logger.warning(
            "%s is not checked before TorchServe runs what is in it, since TorchServe itself loads "
            "it: download it, check it with `ts-ensemble verify`, and register the file",
            archive,
        )
    elif "/" in archive or "\\" in archive:
        # TorchServe would take a folder anywhere on the server, or the last part alone.
        raise ArchiveError(f"{archive}: name a file of the model store {model_store}, not a path")
    elif not (model_store / archive).exists():
        raise ArchiveError(missing_archive(archive, model_store))
    else:
        verify_archive(model_store / archive)


def check_models(models: Sequence[str], properties: Mapping[str, str]) -> None:
    """Check every archive that TorchServe is about to load at its start.

    Args:
        models: of the command line, ``NAME=FILE`` or ``FILE``.
        properties: of the server, with its `model_store`, `load_models` and `model_snapshot`.

    Raises:
        ArchiveError: as for `check_archive`.
        SpecError: a mistake in an archive's spec.
        ServerError: the snapshot cannot be read.
    """
    model_store = Path(properties["model_store"])
    # TorchServe restores a snapshot whatever the command line names.
    snapshot = _of_snapshot(properties.get("model_snapshot", ""))
    for archive in (*snapshot, *(models or _configured(properties, model_store))):
        check_archive(archive.partition("=")[2] or archive, model_store)


def _configured(properties: Mapping[str, str], model_store: Path) -> Iterator[str]:
    """The archives that a config.properties names."""
    named = properties.get("load_models", "")
    if named.strip().lower() != "all":
        yield from (name.strip() for name in named.split(",") if name.strip())
        return
    for path in sorted(model_store.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith(_ENDINGS)):
            yield path.name


def _of_snapshot(text: str) -> list[str]:
    """The archives of a configuration that TorchServe itself wrote while it ran."""
    if not text:
        return []
    try:
        models = json.loads(text)["models"].values()
        return [str(version["marName"]) for model in models for version in model.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ServerError(
            f"config.properties: model_snapshot is damaged ({error!r}): remove it and name the "
            "archives in load_models"
        ) from None
