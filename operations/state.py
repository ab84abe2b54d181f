"""Asks a server which versions it has, and what they were registered from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..handlers.base.errors import ServerError
from ..serving.management import ManagementClient, ModelVersion
from ..serving.transports import NoConnectionError
from .plan import ActualModel, ActualState, ActualVersion, Contents


def described_versions(
    management: ManagementClient, *, must_answer: bool
) -> dict[str, list[ModelVersion]]:
    """Describe all versions of all models; READY workers are asked for the digest of their archive.

    Args:
        management: a client whose timeout suits a worker that has to answer between two batches.
        must_answer: whether it is an error that READY workers do not answer.

    Raises:
        ServerError: the server or READY workers do not answer.
    """
    return {
        name: [
            _with_description(management, version, must_answer)
            for version in management.versions(name)
        ]
        for name in management.models()
    }


def actual_state(described: dict[str, list[ModelVersion]]) -> ActualState:
    """Return the state of a server that was described."""
    return {
        name: ActualModel(
            {each.version: _actual_version(each) for each in versions}, _default(versions)
        )
        for name, versions in described.items()
    }


def digest_of(version: ModelVersion) -> str | None:
    """Return the digest of a version's archive; None if no worker of this project told it."""
    model = (version.customized or {}).get("model")
    digest = model.get("archive") if isinstance(model, dict) else None
    return digest if isinstance(digest, str) else None


def _default(versions: Iterable[ModelVersion]) -> str:
    return next(each.version for each in versions if each.default)


def _actual_version(version: ModelVersion) -> ActualVersion:
    contents = Contents(
        version.archive, digest_of(version), version.batch_size, version.max_batch_delay_ms
    )
    num_ready = sum(worker.ready for worker in version.workers)
    return ActualVersion(contents, len(version.workers), num_ready)


def _with_description(
    management: ManagementClient, version: ModelVersion, must_answer: bool
) -> ModelVersion:
    """Add what the handler says about itself, which only a READY worker can say."""
    if not any(worker.ready for worker in version.workers):
        return version
    try:
        (described,) = management.describe(version.name, version.version, customized=True)
    except NoConnectionError:
        raise
    except ServerError as error:
        if not must_answer:
            return version
        raise ServerError(
            f"no worker of {version.name} {version.version} told which archive it runs: "
            f"{error.message}"
        ) from error
    return replace(described, default=version.default)
