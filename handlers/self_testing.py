"""Runs the self-test of an archive in the worker, on the way that every request takes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from .archive.self_test import check
from .requests.raw_request import BODY, Part, RawRequest
from .service import EnsembleService

logger = logging.getLogger(__name__)


def run_self_test(service: EnsembleService) -> None:
    """Answer the probes of the archive as if clients had sent them, and compare the answers.

    The score cache is not used, so that the members do compute the probes.

    Raises:
        MemberError: an answer is not the one at build.
    """
    self_test = service.self_test
    if self_test is None:
        logger.warning("no self-test: the archive was built without one")
        return
    started = time.perf_counter()
    cache, service.cache = service.cache, None
    try:
        answers = answer_probes(service, self_test.contents(), self_test.options)
    finally:
        service.cache = cache
    largest_difference = check(self_test, answers)
    logger.info(
        "self-test passed in %.0f ms: %d probes, largest difference %.1e, tolerance %g",
        1000 * (time.perf_counter() - started),
        len(answers),
        largest_difference,
        self_test.tolerance,
    )


def answer_probes(
    service: EnsembleService, contents: Mapping[str, bytes], options: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Answer each probe as a request of its own, all of them in one batch.

    Args:
        service: the members and policies.
        contents: name of a probe -> the file.
        options: options of each request.

    Returns:
        Name of a probe -> its prediction; an empty one if its request was refused.
    """
    fields = [Part(name, "", value) for name, value in options.items()]
    requests = [RawRequest([Part(BODY, "", content), *fields]) for content in contents.values()]
    predictions: dict[str, dict[str, Any]] = {}
    for name, response in zip(contents, service.answer(requests), strict=True):
        rows = []
        if response.status == HTTPStatus.OK:
            rows = json.loads(response.body)["predictions"]
        else:
            logger.warning("probe %s: %s", name, response.body.decode(errors="replace"))
        predictions[name] = rows[0] if len(rows) == 1 else {}
    return predictions
