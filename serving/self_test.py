"""Repeats the self-test of an archive on a running server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..handlers.archive.mar_file import read_file, verify_archive
from ..handlers.archive.self_test import SelfTest, check
from ..handlers.base.archive_layout import SELF_TEST
from ..handlers.base.errors import ArchiveError, ServerError
from .client import InferenceClient
from .management import ManagementClient


@dataclass(frozen=True)
class PassedSelfTest:
    """What a server answered to the probes.

    Attributes:
        archive: digest of the archive that the server answers with.
        num_probes: number of probes that were sent.
        num_left_out: number of probes that are too large for a description.
        largest_difference: largest difference of a member's score from the one at build.
        tolerance: the largest difference that is allowed.
    """

    archive: str | None
    num_probes: int
    num_left_out: int
    largest_difference: float
    tolerance: float


def self_test_of_archive(path: Path) -> SelfTest:
    """Read the self-test of an archive, after every file of the archive was checked.

    Args:
        path: a ``.mar`` file, or the folder that one was extracted to.

    Raises:
        ArchiveError: the archive is damaged, or has no self-test.
    """
    record = verify_archive(path)
    if SELF_TEST not in record.files:
        raise ArchiveError(_without_self_test(str(path)))
    return SelfTest.from_text(read_file(path, SELF_TEST), source=str(path))


def self_test_of_server(management: ManagementClient, name: str, version: str | None) -> SelfTest:
    """Ask a server for the self-test of a model.

    Args:
        management: a client of the server's management API.
        name: name of the model.
        version: version of the model; None: the default one.

    Raises:
        ServerError: there is no such model, or the server does not answer.
        ArchiveError: the model has no self-test.
    """
    (described,) = management.describe(name, version, customized=True)
    content = (described.customized or {}).get("self_test")
    if content is None:
        raise ArchiveError(_without_self_test(name))
    return SelfTest.from_json(content, source=name)


def repeat_self_test(
    client: InferenceClient,
    name: str,
    self_test: SelfTest,
    *,
    version: str | None = None,
    on_probe: Callable[[int], None] = lambda total: None,
) -> PassedSelfTest:
    """Send each probe in a request of its own, and compare the answers with those at build.

    Args:
        client: a client of the server.
        name: name of the model.
        self_test: the probes and the answers at build.
        version: version of the model; None: the default one.
        on_probe: called with the number of probes, after each.

    Raises:
        MemberError: an answer is not the one at build.
        RequestError: the server refuses a probe.
        ServerError: the server does not answer or fails, or the model is no ensemble.
    """
    contents = self_test.contents()
    if not contents:
        raise ServerError(
            f"{name}: its probes are too large for a description; name its archive with --archive"
        )
    answers, archive = {}, None
    try:
        for probe, content in contents.items():
            answer = client.predict(
                name, [(probe, content)], version=version, options=self_test.options
            )
            (answers[probe],) = answer["predictions"]
            archive = answer["model"]["archive"]
            on_probe(len(contents))
        largest_difference = check(self_test, answers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            f"{name} at {client.address} does not answer as an ensemble of this project ({error!r})"
        ) from error
    return PassedSelfTest(
        archive=archive,
        num_probes=len(contents),
        num_left_out=len(self_test.probes) - len(contents),
        largest_difference=largest_difference,
        tolerance=self_test.tolerance,
    )


def _without_self_test(source: str) -> str:
    return (
        f"{source} has no self-test: it was built with --no-check, or no probe could be answered, "
        "which the build reported; build it again"
    )
