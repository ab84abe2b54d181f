"""Who can reach an address, and whether a server can listen on it."""

from __future__ import annotations

import socket

import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.addresses import check_ports, free_ports, is_loopback
from torchserve_ensemble.serving.settings import DEFAULTS, throw_away


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.9.9.9:80", True),
        ("https://localhost:1", True),
        ("http://[::1]:80", True),
        ("http://0.0.0.0:8080", False),
        ("http://10.0.0.1:8080", False),
        ("http://127.0.0.1.example.org:80", False),
        ("", False),
        ("::1", True),
        ("0.0.0.0", False),
        ("unix:/tmp/a.sock", True),
        ("http://[::1", False),
    ],
)
def test_loopback_addresses_are_recognised(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as candidate:
            candidate.bind(("127.0.0.1", port))


def test_an_address_of_another_machine_is_reported() -> None:
    properties = DEFAULTS | throw_away() | {"metrics_address": "http://192.0.2.1:8082"}
    with pytest.raises(ServerError, match=r"metrics_address: cannot listen on 192.0.2.1:8082"):
        check_ports(properties)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("grpc_inference_port", "abc"),
        ("grpc_inference_port", "99999"),
        ("inference_address", "http://127.0.0.1:99999"),
    ],
)
def test_invalid_ports_are_reported_with_their_setting(setting: str, value: str) -> None:
    with pytest.raises(ServerError, match=setting):
        check_ports(DEFAULTS | throw_away() | {setting: value})
