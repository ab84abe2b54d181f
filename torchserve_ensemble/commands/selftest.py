"""The verb ``selftest``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.run_folder import DEFAULT_RUN_FOLDER
from .options import add_inference_options, open_inference
from .printing import progress_bar

if TYPE_CHECKING:
    from ..handlers.archive.self_test import SelfTest

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``selftest``."""
    selftest = subparsers.add_parser(
        "selftest",
        help="compare a running server's answers with those of the saved members at build",
        description="Send the probes of an archive to POST /predictions/NAME[/VERSION], and "
        "compare every member's scores and the default policy's decisions with those at build, as "
        "each worker does before it is ready. The server itself tells the probes; without its "
        "management API they come from --archive. The exit status is 1 if an answer differs.",
    )
    selftest.add_argument("name", metavar="NAME", help="name of the model")
    selftest.add_argument(
        "--archive", type=Path, help="take the probes from this archive, which is verified first"
    )
    selftest.add_argument(
        "--management",
        metavar="ADDRESS",
        help="management address of a server that `serve` did not start; its token is taken from "
        "--token-file",
    )
    selftest.add_argument(
        "--model-version", metavar="VERSION", help="version of the model (default: its default)"
    )
    add_inference_options(selftest)
    selftest.add_argument("--json", action="store_true", help="print the result as JSON")
    selftest.set_defaults(run=_selftest)


def _selftest(arguments: argparse.Namespace) -> int:
    from ..serving.self_test import repeat_self_test

    self_test = _self_test(arguments)
    with open_inference(arguments) as client, progress_bar("sending probes") as on_probe:
        passed = repeat_self_test(
            client,
            arguments.name,
            self_test,
            version=arguments.model_version,
            on_probe=on_probe,
        )
    if arguments.json:
        print(json.dumps(asdict(passed), indent=2))
        return 0
    left_out = f" ({passed.num_left_out} more need --archive)" if passed.num_left_out else ""
    print(
        f"{arguments.name}: {passed.num_probes} probes{left_out} are answered as at build; the "
        f"largest difference of a score is {passed.largest_difference:.1e}, and "
        f"{passed.tolerance:g} is allowed"
    )
    print(passed.archive)
    return 0


def _self_test(arguments: argparse.Namespace) -> SelfTest:
    """Read the self-test from the archive that is named, or ask the server for it."""
    from ..handlers.base.errors import ServerError
    from ..serving.finding import management_client
    from ..serving.self_test import self_test_of_archive, self_test_of_server

    if arguments.archive is not None:
        return self_test_of_archive(arguments.archive)
    if arguments.address is not None and arguments.management is None:
        raise ServerError(
            "name the archive with --archive, or the server's management API with --management: "
            "only these two tell the probes"
        )
    with management_client(
        run_folder=arguments.run_folder or DEFAULT_RUN_FOLDER,
        address=arguments.management,
        # The token of --token is for predictions.
        token=None,
        token_file=arguments.token_file,
        timeout=arguments.answer_timeout,
    ) as management:
        return self_test_of_server(management, arguments.name, arguments.model_version)
