"""The format of deployment.yaml: which versions of which models a server is to have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..handlers.base.errors import SpecError
from ..handlers.spec.strict_yaml import MAX_CHARACTERS, Problem, parse_strictly
from ..handlers.spec.value_types import UNKNOWN_KEYS_ARE_ERRORS, Name, Version


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class VersionSettings:
    """One version of a model that the server is to have."""

    archive: Annotated[
        str,
        Field(
            min_length=1,
            description="File name of an archive in the server's model store; a path with a '/', "
            "which starts at the folder of this file; or registry://NAME:TAG",
        ),
    ]
    workers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of workers; left out: the archive's own number at first, which "
            "`scale` and `autoscale` may change",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, description="The largest number of requests in one batch; left out: as built"),
    ] = None
    max_batch_delay_ms: Annotated[
        int | None,
        Field(
            ge=1,
            description="How long TorchServe waits for further requests to fill a batch, in "
            "milliseconds; left out: as built",
        ),
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        Field(description="What computes the members; left out: as built"),
    ] = None

    def changes(self) -> dict[str, Any]:
        """Return the keys of the archive's spec that TorchServe cannot replace at registration."""
        return {} if self.device is None else {"runtime": {"device": self.device}}


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class ModelSettings:
    """The versions of one model. The server keeps no others."""

    versions: Annotated[
        tuple[VersionSettings, ...], Field(min_length=1, description="The versions to keep")
    ]
    default: Annotated[
        Version | None,
        Field(description="Version that answers requests which name none; left out: the first one"),
    ] = None


@dataclass(frozen=True, kw_only=True, config=UNKNOWN_KEYS_ARE_ERRORS)
class Deployment:
    """What a server is to serve."""

    models: Annotated[
        Mapping[Name, ModelSettings], Field(description="Name of each model -> its versions")
    ] = field(default_factory=dict)
    remove_other_models: Annotated[
        bool, Field(description="Whether models that are not listed are unregistered")
    ] = False


_ADAPTER = TypeAdapter(Deployment)


def load_deployment(path: Path) -> Deployment:
    """Read and check deployment.yaml.

    Raises:
        SpecError: the message has one line for each mistake, with the file, the line and the key.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; name the YAML file of the deployment") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    return parse_strictly(text, _ADAPTER, Deployment, source=str(path), check=_problems)


def deployment_schema() -> dict[str, Any]:
    """Return the JSON Schema of deployment.yaml, with which editors complete and check it."""
    schema = _ADAPTER.json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "torchserve-ensemble deployment"
    return schema


def _problems(deployment: Deployment) -> Iterator[Problem]:
    """Find mistakes that concern several values together."""
    for name, model in deployment.models.items():
        archives: set[str] = set()
        for index, version in enumerate(model.versions):
            if version.archive in archives:
                yield Problem(
                    ("models", name, "versions", index, "archive"),
                    f"{version.archive} is listed twice; a server has each version once",
                )
            archives.add(version.archive)
