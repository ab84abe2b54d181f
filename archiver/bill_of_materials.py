"""Writes the bill of materials of an archive, a CycloneDX ML-BOM that other tools read.

It lists the members with the SHA-256 of their weights, the data sets that they were trained on,
licences, the other files of the spec, and the Python packages of the build. Equal contents give
equal bytes: the serial number follows from the contents, and there is no time stamp unless
``SOURCE_DATE_EPOCH`` sets one (https://reproducible-builds.org/specs/source-date-epoch/).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalContact
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from ..handlers.archive.record import sha256_of_bytes
from ..handlers.base.errors import ArchiveError
from ..handlers.spec import EnsembleSpec, Member
from .materials import Materials
from .source_revision import SourceRevision

SCHEMA = SchemaVersion.V1_6
"""Version of CycloneDX's format that is written."""

PROPERTY = "torchserve-ensemble:"
"""Beginning of the names of this project's own properties."""

_TOOL = "torchserve-ensemble"

_URL = re.compile(
    r"https?://([\w\-.~:/?@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+(#[\w\-.~:/?@!$&'()*+,;=]*)?", re.ASCII
)
"""Addresses that the format takes for links; every `url` of a spec is a property, too."""

_NAMESPACE = uuid.UUID("6d9d2f5c-3f6a-5d53-9a4e-2f9b1c7e8a10")
"""Namespace of the serial numbers: a constant that was chosen once, at random."""


def bill_of_materials(materials: Materials) -> str:
    """Return the bill of materials as JSON.

    Raises:
        ArchiveError: ``SOURCE_DATE_EPOCH`` is no number of seconds.
    """
    spec = materials.spec
    data_sets = {
        text: _data_set(text) for member in spec.members for text in materials.data_sets_of(member)
    }
    members = {member.name: _member(member, materials) for member in spec.members}
    packages = [_package(name, version) for name, version in materials.packages.items()]
    files = list(_other_files(materials))
    ensemble = _ensemble(materials)
    tool = Component(name=_TOOL, version=materials.packages[_TOOL], type=ComponentType.APPLICATION)
    metadata = BomMetaData(
        component=ensemble,
        tools=ToolRepository(components=[tool]),
        properties=_revision(materials.revision),
    )
    # The library puts the present time here, which would make each build another one.
    metadata.timestamp = _timestamp()  # type: ignore[assignment]
    bom = Bom(
        metadata=metadata,
        components=[*members.values(), *data_sets.values(), *files, *packages],
        serial_number=uuid.UUID(int=0),
    )
    bom.register_dependency(ensemble, [*members.values(), *files, *packages])
    for member in spec.members:
        trained_on = [data_sets[text] for text in materials.data_sets_of(member)]
        bom.register_dependency(members[member.name], trained_on)
    # The serial number follows from the text without it.
    bom.serial_number = uuid.uuid5(_NAMESPACE, sha256_of_bytes(_text(bom).encode()))
    return _text(bom)


def unknown_licences(spec: EnsembleSpec) -> Iterator[str]:
    """Yield each licence of a spec that is neither an SPDX identifier nor an SPDX expression."""
    licences = [spec.provenance.licence, *(each.provenance.licence for each in spec.members)]
    for licence in dict.fromkeys(licences):
        if licence is not None:
            parsed = _licence(licence)
            if isinstance(parsed, DisjunctiveLicense) and parsed.id is None:
                yield licence


def spdx_identifier(licence: str) -> str | None:
    """Return a licence's SPDX identifier; None if it is an expression or no SPDX licence."""
    parsed = _licence(licence)
    return parsed.id if isinstance(parsed, DisjunctiveLicense) else None


def _ensemble(materials: Materials) -> Component:
    spec = materials.spec
    provenance = spec.provenance
    facts = {
        "task": str(spec.task),
        "labels": ", ".join(spec.labels),
        "default-policy": spec.policies.default,
        "created": provenance.created,
        "url": provenance.url,
        "training-revision": provenance.source_revision,
        "tuning-data": provenance.tuning_data,
    }
    facts |= {
        f"metric:{data_set}:{metric}": f"{value:g}"
        for data_set, metrics in materials.metrics.items()
        for metric, value in metrics.items()
    }
    facts |= {f"guarantee:{name}": text for name, text in provenance.guarantees.items()}
    return Component(
        name=spec.name,
        version=spec.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="ensemble",
        description=spec.description,
        authors=[OrganizationalContact(name=provenance.owner)] if provenance.owner else [],
        licenses=_licences(provenance.licence),
        external_references=_website(provenance.url),
        properties=_properties(facts),
    )


def _member(member: Member, materials: Materials) -> Component:
    facts = {
        "architecture": member.architecture,
        "format": str(member.weights_format),
        "weights": member.weights,
        "voting-weight": f"{member.voting_weight:g}",
        "temperature": f"{member.temperature:g}",
        "url": member.provenance.url,
    }
    return Component(
        name=member.name,
        version=materials.spec.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"member:{member.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=materials.digests[member.weights])],
        licenses=_licences(materials.licence_of(member)),
        external_references=_website(member.provenance.url),
        properties=_properties(facts),
    )


def _data_set(text: str) -> Component:
    name, _, version = text.rpartition("@") if "@" in text else (text, "", "")
    return Component(
        name=name, version=version or None, type=ComponentType.DATA, bom_ref=f"data:{text}"
    )


def _other_files(materials: Materials) -> Iterator[Component]:
    """Yield the files of the spec that are not weights: code, fitted policies, examples."""
    weights = {member.weights for member in materials.spec.members}
    for path, digest in materials.digests.items():
        if path not in weights:
            hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
            yield Component(
                name=path, type=ComponentType.FILE, bom_ref=f"file:{path}", hashes=hashes
            )


def _package(name: str, version: str) -> Component:
    url = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, bom_ref=str(url), purl=url
    )


def _revision(revision: SourceRevision | None) -> Iterable[Property]:
    if revision is None:
        return ()
    return _properties({"source-commit": revision.commit, "source-dirty": str(revision.dirty)})


def _properties(facts: Mapping[str, str | None]) -> list[Property]:
    return [
        Property(name=f"{PROPERTY}{name}", value=value)
        for name, value in facts.items()
        if value is not None
    ]


def _website(url: str | None) -> list[ExternalReference]:
    if url is None or not _URL.fullmatch(url):
        return []
    return [ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(url))]


def _licences(licence: str | None) -> list[License]:
    return [] if licence is None else [_licence(licence)]


def _licence(licence: str) -> License:
    """Read a licence: an SPDX identifier, an SPDX expression, or else a name."""
    return LicenseFactory().make_from_string(licence)


def _timestamp() -> datetime | None:
    """Return the time that ``SOURCE_DATE_EPOCH`` sets; None if it is unset."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        raise ArchiveError(
            f"SOURCE_DATE_EPOCH={text[:100]!r} is no number of seconds since 1970; unset it"
        ) from None


def _text(bom: Bom) -> str:
    return make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2) + "\n"
