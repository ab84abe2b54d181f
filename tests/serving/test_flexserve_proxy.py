"""The configuration for FlexServe's clients: what is written into it can end no value there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.flexserve_proxy import flexserve_configuration

GOOD: dict[str, Any] = {
    "model": "probes",
    "version": "1.0",
    "members": ["a", "b"],
    "address": "http://127.0.0.1:8080",
    "token": "abc-_1",
}


def test_a_line_for_each_member_becomes_one_object() -> None:
    members = [f"{'long' * 24}{index}.pt" for index in range(50)]
    text = flexserve_configuration(**GOOD | {"members": members})
    lines = re.findall(r"set \$models '\$models(.*)';", text)
    assert max(map(len, text.splitlines())) < 4096, "nginx reads no longer value"
    models = json.loads("{" + "".join(lines) + "}")
    assert models == {f"model {index}": name for index, name in enumerate(members)}


def test_the_token_is_left_out_where_there_is_none() -> None:
    assert 'Authorization "Bearer abc-_1"' in flexserve_configuration(**GOOD)
    assert "Authorization" not in flexserve_configuration(**GOOD | {"token": None})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "a;b"),
        ("model", "a/../b"),
        ("version", "1.0;"),
        ("members", ["a", "b';"]),
        ("members", ["$a"]),
        ("address", "http://a:1/;"),
        ("address", "unix:/socket"),
        ("token", 'a"; evil "'),
        ("token", "a\nb"),
        ("listen", "80; evil"),
        ("listen", "a:b"),
    ],
)
def test_nothing_else_gets_into_it(key: str, value: object) -> None:
    with pytest.raises(ServerError, match="cannot be written into a configuration of nginx"):
        flexserve_configuration(**GOOD | {key: value})
