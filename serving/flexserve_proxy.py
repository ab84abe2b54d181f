"""Writes a configuration of nginx with which FlexServe's clients only change their base URL.

FlexServe (Verenich et al. 2020) has the routes ``POST /batch``, ``POST /classify`` and
``GET /models``, asks for no token, and answers with labels only. TorchServe has none of these
routes, and a handler cannot add routes to it. So nginx maps them to TorchServe's own, adds the
token and chooses the response format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from ..handlers.base.errors import ServerError

DEFAULT_LISTEN = "127.0.0.1:5050"
"""The address and port that FlexServe's own code listens on."""

# What each value of the configuration may look like: none has a character, such as a quote or a
# semicolon, with which it could end and something else begin.
_LISTEN = re.compile(r"([0-9.]+:|\[[0-9A-Fa-f:]+\]:)?[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_TOKEN = re.compile(r"[A-Za-z0-9_\-.=+/]+")
_ADDRESS = re.compile(r"https?://([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")

_TEMPLATE = """\
# FlexServe's routes for {model} {version}, made by `ts-ensemble proxy {model}`. Put it into
# /etc/nginx/conf.d/, readable by root alone: it holds a token.
#
# Make it again and `nginx -s reload`, which loses no request: when another version shall answer,
# when the server was started anew, and when the token has expired (TorchServe's
# token_expiration_min, an hour by default).
#
# Whoever reaches this address needs no token, as with FlexServe. It has no TLS: before a network
# let it listen on loopback behind a server like deploy/nginx.conf.
server {{
    listen {listen};
    server_tokens off;

    client_header_timeout 10s;
    client_body_timeout 10s;
    client_max_body_size 100m;          # max_request_size
    client_body_buffer_size 256k;
    proxy_request_buffering on;
    proxy_connect_timeout 5s;
    proxy_read_timeout 300s;
    proxy_next_upstream off;
    proxy_http_version 1.1;

    proxy_set_header Connection "";
    # TorchServe answers no REST request without a Host.
    proxy_set_header Host $host;
    proxy_set_header Response $response_format;
{authorization}
    location = /batch {{
        if ($request_method != POST) {{ return 405; }}
        if ($content_type !~* "^multipart/form-data") {{ return 400; }}
        set $args "";
        set $response_format flexserve;
        proxy_pass {address}/predictions/{model}/{version};
    }}

    location = /classify {{
        if ($request_method != POST) {{ return 405; }}
        if ($content_type !~* "^multipart/form-data") {{ return 400; }}
        set $args "";
        set $response_format flexserve-classify;
        proxy_pass {address}/predictions/{model}/{version};
    }}

    location = /models {{
        if ($request_method !~ "^(GET|HEAD)$") {{ return 405; }}
        default_type application/json;
        set $models "";
{models}
        return 200 "{{$models}}\\n";
    }}

    location / {{ return 404; }}
}}
"""


def flexserve_configuration(
    *,
    model: str,
    version: str,
    members: Sequence[str],
    address: str,
    token: str | None,
    listen: str = DEFAULT_LISTEN,
) -> str:
    """Return a server block of nginx that maps FlexServe's routes to one version of an ensemble.

    Args:
        model: name of the ensemble.
        version: version of the ensemble. Requests name it, so that ``GET /models`` always lists the
            members that answer.
        members: names of the members, in the order of the spec.
        address: TorchServe's inference address, ``http://HOST:PORT``.
        token: TorchServe's inference token; None if TorchServe asks for none.
        listen: where nginx listens: a port, or an address and a port.

    Raises:
        ServerError: a value contains characters that could end it within the configuration.
    """
    _check("--listen", listen, _LISTEN)
    _check("the inference address", address.rstrip("/"), _ADDRESS)
    _check("the model's name", model, _NAME)
    for member in members:
        _check("the member's name", member, _NAME)
    _check("the version", version, _VERSION)
    authorization = ""
    if token is not None:
        _check("the token", token, _TOKEN)
        authorization = f'    proxy_set_header Authorization "Bearer {token}";\n'
    if urlsplit(address).scheme == "https":
        authorization += "    proxy_ssl_server_name on;\n"
    # Each member has a line of its own, since nginx allows 4,096 characters in one value.
    models = [
        f"        set $models '$models{', ' if index else ''}"
        f"{json.dumps(f'model {index}')}: {json.dumps(name)}';"
        for index, name in enumerate(members)
    ]
    return _TEMPLATE.format(
        model=model,
        version=version,
        address=address.rstrip("/"),
        listen=listen,
        authorization=authorization,
        models="\n".join(models),
    )


def _check(subject: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise ServerError(
            f"{subject} {value[:100]!r} cannot be written into a configuration of nginx: it must "
            f"match {pattern.pattern}"
        )
