"""Checks of one config.properties: misspelt keys, who reaches the server, and what it may load."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...handlers.base.errors import ServerError
from ...handlers.base.suggestions import nearest
from ..addresses import is_loopback
from ..properties_file import read_properties
from ..settings import DEFAULTS, KNOWN_KEYS, differences, effective, is_on
from .findings import Finding, Level

_TORCHSERVE_MAX_MESSAGE_BYTES = 6_553_500
"""TorchServe's own default of max_request_size and max_response_size."""

# Nobody means to allow these addresses. They are short, so that no pattern takes long over them.
_UNINTENDED_URLS = ("http://b/c", "https://b/c", "http://b/.mar")
_NEEDS_A_PROXY = "TorchServe never disconnects a slow client, and its HTTP code is old"
_TOKEN_RUNS_CODE = "with its token one can run code on this machine"


def check_configuration(path: Path) -> Iterator[Finding]:
    """Check a config.properties, as a plain ``torchserve --start`` would use it.

    Args:
        path: the config.properties.

    Yields:
        One finding for each trap, and one for the settings that differ from the defaults.
    """
    try:
        written = read_properties(path)
        properties = effective(written)
    except ServerError as error:
        yield Finding(Level.PROBLEM, error.message, "correct the configuration")
        return
    yield from _check_spelling(path, written)
    yield from _check_exposure(path, properties)
    yield from _check_control(path, properties)
    yield from _check_sizes(path, properties)
    yield Finding(Level.OK, f"{path}: {len(properties)} settings read")
    changed = differences(written)
    if changed:
        yield Finding(Level.OK, f"{path}: other than the defaults: {', '.join(changed)}")


def _check_spelling(path: Path, written: Mapping[str, str]) -> Iterator[Finding]:
    """Check that TorchServe knows every key, and that Java reads every value as it is meant."""
    for key in written:
        if key not in KNOWN_KEYS:
            yield Finding(
                Level.WARNING,
                f"{path}: {key} is no setting of TorchServe{nearest(key, KNOWN_KEYS)}",
                "TorchServe silently ignores it: correct or remove it",
            )
    for key, value in written.items():
        if not value.isascii():
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={value}: Java reads the file as Latin-1",
                "write other characters as \\uXXXX",
            )


def _check_exposure(path: Path, properties: Mapping[str, str]) -> Iterator[Finding]:
    """Check who can reach the server, and whether they need a token."""
    needs_token = not is_on(properties, "disable_token_authorization")
    if not needs_token:
        yield Finding(
            Level.WARNING,
            f"{path}: disable_token_authorization: whoever reaches a port may use it, and every "
            "user of this machine reaches loopback",
            "remove disable_token_authorization",
        )
    for key in ("inference_address", "management_address", "metrics_address"):
        if key in properties and not is_loopback(properties[key]) and not needs_token:
            yield Finding(
                Level.PROBLEM if key == "management_address" else Level.WARNING,
                f"{path}: {key}={properties[key]} is open to the network without tokens",
                "bind to 127.0.0.1, or remove disable_token_authorization",
            )
    for key in ("grpc_inference_address", "grpc_management_address"):
        address = properties.get(key, "127.0.0.1")
        if not is_loopback(address) and not needs_token:
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={address} is open to the network without tokens",
                "bind to 127.0.0.1",
            )
    for key, reason in (
        ("inference_address", _NEEDS_A_PROXY),
        ("grpc_inference_address", _NEEDS_A_PROXY),
        ("management_address", _TOKEN_RUNS_CODE),
        ("grpc_management_address", _TOKEN_RUNS_CODE),
        ("metrics_address", "TorchServe asks for no token there"),
    ):
        address = properties.get(key, DEFAULTS[key])
        if not is_loopback(address):
            yield Finding(
                Level.WARNING,
                f"{path}: {key}={address} is not loopback: {reason}",
                "bind to 127.0.0.1, and let others in through a proxy (deploy/nginx.conf)",
            )
    if properties.get("cors_allowed_origin", "").strip() == "*":
        yield Finding(
            Level.WARNING,
            f"{path}: cors_allowed_origin=* lets every web page that a user of this machine opens "
            "read the server's answers",
            "name the one origin that needs it, or remove it",
        )


def _check_control(path: Path, properties: Mapping[str, str]) -> Iterator[Finding]:
    """Check who decides which archives the server loads and which settings it has."""
    needs_token = not is_on(properties, "disable_token_authorization")
    if is_on(properties, "enable_model_api") and not needs_token:
        yield Finding(
            Level.PROBLEM,
            f"{path}: enable_model_api without tokens: whoever reaches the management address "
            "may register an archive, which runs its code",
            "remove disable_token_authorization, or enable_model_api",
        )
    allowed_urls = properties.get("allowed_urls")
    if is_on(properties, "use_env_allowed_urls"):
        allowed_urls = os.environ.get("TS_ALLOWED_URLS", allowed_urls)
    if _allows_any_url(allowed_urls):
        shown = "(not set)" if allowed_urls is None else allowed_urls
        yield Finding(
            Level.WARNING,
            f"{path}: allowed_urls={shown} lets a registration load archives from any address",
            f"allowed_urls={DEFAULTS['allowed_urls']}: archives of the model store alone",
        )
    if is_on(properties, "enable_envvars_config"):
        yield Finding(
            Level.WARNING,
            f"{path}: enable_envvars_config lets every variable TS_... replace a setting, among "
            "them tokens and addresses",
            "remove it; `$$NAME$$` as a value reads one variable for one setting",
        )
    if is_on(properties, "install_py_dep_per_model"):
        yield Finding(
            Level.PROBLEM,
            f"{path}: install_py_dep_per_model lets an archive install packages at load, and what "
            "it installs is not listed in the archive's record: every worker refuses to load",
            "remove it, and install the packages once, into the server's environment",
        )


def _check_sizes(path: Path, properties: Mapping[str, str]) -> Iterator[Finding]:
    """Check the number of workers, and how large a request and an answer may be."""
    if "default_workers_per_model" not in properties:
        yield Finding(
            Level.WARNING,
            f"{path}: default_workers_per_model is not set: a plain `torchserve --start` makes one "
            f"worker for each of {os.cpu_count()} cores, each with a full copy of the ensemble",
            "default_workers_per_model=1",
        )
    for key, consequence in (
        ("max_request_size", "a larger request is refused"),
        ("max_response_size", "a larger answer makes the worker reload"),
    ):
        size = properties.get(key, str(_TORCHSERVE_MAX_MESSAGE_BYTES))
        remedy = f"{key}={DEFAULTS[key]}"
        if not size.isdecimal():
            yield Finding(Level.PROBLEM, f"{path}: {key}={size} is no number of bytes", remedy)
        elif int(size) <= _TORCHSERVE_MAX_MESSAGE_BYTES:
            only_plain = "" if key in properties else " for a plain `torchserve --start`"
            yield Finding(
                Level.WARNING,
                f"{path}: {key} is {size} bytes{only_plain}; {consequence}",
                remedy,
            )


def _allows_any_url(allowed_urls: str | None) -> bool:
    """Whether allowed_urls matches an address that nobody can have meant.

    Args:
        allowed_urls: regular expressions, separated by commas; None is TorchServe's default,
            which allows every address.
    """
    if allowed_urls is None:
        return True
    for pattern in allowed_urls.split(","):
        try:
            if any(re.fullmatch(pattern, url, re.IGNORECASE) for url in _UNINTENDED_URLS):
                return True
        except re.error:
            # Java's regular expressions have constructs that Python's lack.
            continue
    return False
