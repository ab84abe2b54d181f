"""Reads what an archive says about itself. Neither torch nor any code of the archive runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..handlers.archive.mar_file import read_file, spec_of, verify_archive
from ..handlers.archive.record import ArchiveRecord
from ..handlers.base.archive_layout import BOM, COMPILED, ENSEMBLE, MODEL_CARD, SELF_TEST
from ..handlers.base.errors import ArchiveError
from ..handlers.spec import EnsembleSpec
from .materials import Materials

_COMPILED_RECORD = f"{COMPILED}/compiled.json"
# The beginning of the names that `bill_of_materials` gives to properties. Importing that module
# would import all of CycloneDX's.
_SOURCE = "torchserve-ensemble:source-"


def inspect_archive(path: Path) -> dict[str, Any]:
    """Check every file of an archive, and return what it says about itself.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.

    Returns:
        A JSON object; docs/provenance.md describes its keys.

    Raises:
        ArchiveError: the archive was altered, is damaged or was not built by this project.
        SpecError: the archive's spec has a mistake.
    """
    record = verify_archive(path)
    spec = spec_of(path)
    try:
        return _facts(path, record, spec)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # The record lists the files as they are, but no build writes such contents.
        raise ArchiveError(
            f"{path}: a file that describes the archive is damaged ({error!r}); build it again"
        ) from None


def text_of_file(path: Path, name: str) -> str:
    """Check every file of an archive, and return one of them as text.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.
        name: path of the file in the archive.

    Raises:
        ArchiveError, SpecError: as for `inspect_archive`.
    """
    verify_archive(path)
    return read_file(path, name).decode("utf-8", errors="replace")


def _facts(path: Path, record: ArchiveRecord, spec: EnsembleSpec) -> dict[str, Any]:
    bom = json.loads(read_file(path, BOM))
    materials = Materials(spec, digests={}, packages={}, revision=None)
    return {
        "digest": record.digest,
        "name": spec.name,
        "version": spec.version,
        "description": spec.description,
        "task": str(spec.task),
        "labels": list(spec.labels),
        "members": list(_members(path, record, materials)),
        "policies": {"default": spec.policies.default, "named": dict(spec.policies.named)},
        "provenance": asdict(spec.provenance) | {"metrics": materials.metrics},
        "source": _source(bom),
        "built_with": dict(record.built_with),
        "self_test": _self_test(path, record),
        "bill_of_materials": {"file": BOM, "serial_number": bom["serialNumber"]},
        "model_card": {"file": MODEL_CARD},
        "num_files": len(record.files) + 1,
    }


def _members(path: Path, record: ArchiveRecord, materials: Materials) -> Iterator[dict[str, Any]]:
    compiled = _compiled(path, record)
    for member in materials.spec.members:
        yield {
            "name": member.name,
            "architecture": member.architecture,
            "format": str(member.weights_format),
            "weights": member.weights,
            "sha256": record.files[f"{ENSEMBLE}/{member.weights}"],
            "voting_weight": member.voting_weight,
            "temperature": member.temperature,
            "licence": materials.licence_of(member),
            "data_sets": list(materials.data_sets_of(member)),
            "url": member.provenance.url,
            "compiled": compiled.get(member.name),
        }


def _compiled(path: Path, record: ArchiveRecord) -> dict[str, dict[str, Any]]:
    """Return for each member that another engine than torch runs how it runs it."""
    if _COMPILED_RECORD not in record.files:
        return {}
    executables = json.loads(read_file(path, _COMPILED_RECORD))["executables"]
    keys = ("engine", "precision", "difference")
    # Executables of several members come first; those of a single member replace them here.
    return {
        str(name): {key: executable[key] for key in keys}
        for executable in executables
        for name in executable["members"]
    }


def _source(bom: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the revision of the sources; None if they were in no git work tree."""
    properties = bom["metadata"].get("properties", ())
    facts = {
        each["name"].removeprefix(_SOURCE): each["value"]
        for each in properties
        if each["name"].startswith(_SOURCE)
    }
    return {"commit": facts["commit"], "dirty": facts["dirty"] == "True"} if facts else None


def _self_test(path: Path, record: ArchiveRecord) -> dict[str, Any] | None:
    if SELF_TEST not in record.files:
        return None
    content = json.loads(read_file(path, SELF_TEST))
    return {
        "probes": [str(probe["name"]) for probe in content["probes"]],
        "tolerance": float(content["tolerance"]),
    }
