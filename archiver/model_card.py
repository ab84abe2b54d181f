"""Writes the model card of an archive, in Hugging Face's format: YAML, then Markdown.

https://huggingface.co/docs/hub/model-cards describes the format. huggingface_hub is not needed to
write it; the tests read every card with its `ModelCard`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..handlers.base.tasks import Task
from .bill_of_materials import spdx_identifier
from .materials import Materials

_PIPELINE = "image-classification"
"""Hugging Face's name for all tasks whose answer is a choice of labels."""

_MAX_LABELS = 50


def model_card(materials: Materials) -> str:
    """Return the text of the model card; equal materials give equal texts."""
    spec = materials.spec
    header = yaml.safe_dump(_metadata(materials), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        f"# {spec.name} {spec.version}",
        _escaped(spec.description or f"An ensemble of {len(spec.members)} models."),
        *_members(materials),
        *_answers(materials),
        *_quality(materials),
        *_speed(materials),
        *_origin(materials),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(materials: Materials) -> dict[str, Any]:
    """Return the keys of the card's YAML, as huggingface_hub's ModelCardData has them."""
    spec = materials.spec
    content: dict[str, Any] = _licence(materials)
    content["library_name"] = "torchserve-ensemble"
    if spec.task is not Task.REGRESSION:
        content["pipeline_tag"] = _PIPELINE
    content["tags"] = ["ensemble", "torchserve"]
    data_sets = [
        text.rpartition("@")[0] or text
        for member in spec.members
        for text in materials.data_sets_of(member)
    ]
    if data_sets:
        content["datasets"] = list(dict.fromkeys(data_sets))
    results = [
        {
            "task": {"type": content.get("pipeline_tag", "image-regression")},
            "dataset": {"name": data_set, "type": _slug(data_set)},
            "metrics": [
                {"type": _slug(name), "value": value, "name": name}
                for name, value in metrics.items()
            ],
        }
        for data_set, metrics in materials.metrics.items()
    ]
    if results:
        content["model-index"] = [{"name": spec.name, "results": results}]
    return content


def _licence(materials: Materials) -> dict[str, Any]:
    """Return the keys about the licence. Those of Hugging Face are SPDX's, in lower case."""
    licences = {materials.licence_of(member) for member in materials.spec.members}
    licence = licences.pop() if len(licences) == 1 else "a licence for each member"
    if licence is None:
        return {}
    identifier = spdx_identifier(licence)
    if identifier is not None:
        return {"license": identifier.lower()}
    url = materials.spec.provenance.url
    return {"license": "other", "license_name": _slug(licence)} | (
        {} if url is None else {"license_link": url}
    )


def _members(materials: Materials) -> Iterator[str]:
    yield "## Members"
    yield _table(
        ("member", "architecture", "SHA-256 of the weights", "licence", "trained on"),
        (
            (
                member.name,
                member.architecture or "in the weights file",
                materials.digests[member.weights],
                materials.licence_of(member) or "",
                ", ".join(materials.data_sets_of(member)),
            )
            for member in materials.spec.members
        ),
    )


def _answers(materials: Materials) -> Iterator[str]:
    spec = materials.spec
    labels = ", ".join(spec.labels[:_MAX_LABELS])
    if len(spec.labels) > _MAX_LABELS:
        labels += f" and {len(spec.labels) - _MAX_LABELS} more"
    yield "## Answers"
    yield _list({"task": str(spec.task), "labels": labels, "default policy": spec.policies.default})
    if spec.policies.named:
        yield "Named policies:"
        yield _list(spec.policies.named)


def _quality(materials: Materials) -> Iterator[str]:
    provenance = materials.spec.provenance
    if materials.metrics:
        yield "## Quality"
        yield _table(
            ("data set", "metric", "value"),
            (
                (data_set, name, f"{value:g}")
                for data_set, metrics in materials.metrics.items()
                for name, value in metrics.items()
            ),
        )
    if provenance.guarantees:
        yield "Guarantees, with their assumptions:"
        yield _list(provenance.guarantees)


def _speed(materials: Materials) -> Iterator[str]:
    if materials.profile is None:
        return
    metrics = materials.profile["chosen"]["metrics"]
    yield "## Speed"
    yield (
        f"`ts-ensemble profile` measured {metrics['images_per_second']:.1f} images a second with "
        f"{metrics['clients']} clients, p50 {metrics['p50_ms']:.1f} ms and p99 "
        f"{metrics['p99_ms']:.1f} ms."
    )


def _origin(materials: Materials) -> Iterator[str]:
    provenance, revision = materials.spec.provenance, materials.revision
    facts = {
        "owner": provenance.owner,
        "created": provenance.created,
        "published at": provenance.url,
        "training code": provenance.source_revision,
        "tuned on": provenance.tuning_data,
        "built from": None
        if revision is None
        else f"commit {revision.commit}{' with local changes' if revision.dirty else ''}",
        "built with": ", ".join(
            f"{name} {version}" for name, version in materials.packages.items()
        ),
    }
    yield "## Origin"
    yield _list({name: value for name, value in facts.items() if value is not None})


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {_escaped(name)}: {_escaped(text)}" for name, text in items.items())


def _escaped(text: str) -> str:
    """Return a text as one line of Markdown, without the meaning that its characters have there."""
    return re.sub(r"([\\`*\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unnamed"
