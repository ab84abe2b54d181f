"""Stores for the registry's tests: memory, a folder, and a real server of the S3 protocol."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from torchserve_ensemble.registry.registry import Registry


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a server of the S3 protocol on a free port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it starts, use that server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)


@pytest.fixture(params=["memory", "folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty registry."""
    return make_url(request, request.param, tmp_path)


@pytest.fixture(params=["folder", "s3"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty registry that several processes can use."""
    return make_url(request, request.param, tmp_path)


@pytest.fixture
def registry(url: str) -> Registry:
    return Registry.open(url)


def make_url(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    if kind == "memory":
        return f"memory://{uuid.uuid4().hex}/models"
    if kind == "folder":
        return str(folder / "registry")
    request.getfixturevalue("s3_environment")
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/models"
