"""Makes requests with odd headers, encodings and form parts around their content."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable, Mapping

from .bundles import gzipped_zeros
from .images import gray, png
from .wire import PREDICT, Request, WorkerPart, form, instances, multipart, raw


def _typed(content_type: str) -> Request:
    return raw(gray(), content_type)


def _with_header(name: str, value: str) -> Request:
    return Request(gray(), ((name, value),), parts=(("body", "", gray()),))


def _form_type(content_type: str, body: bytes) -> Request:
    return Request(body, (("Content-Type", content_type),), parts=(("body", content_type, body),))


def _parts(count: int, content: bytes, content_type: str = "image/png") -> list[WorkerPart]:
    return [("file", content_type, content)] * count


def _named(name: str, filename: str) -> Request:
    body = (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode("utf-8", "surrogateescape")
    return _form_type("multipart/form-data; boundary=b", body + gray() + b"\r\n--b--\r\n")


def _part_headers(headers: bytes) -> Request:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n' + headers
    return _form_type(
        "multipart/form-data; boundary=b", body + b"\r\n\r\n" + gray() + b"\r\n--b--\r\n"
    )


TRANSPORT: Mapping[str, Callable[[], Request]] = {
    "no-host": lambda: raw(gray(), host=False),
    "no-host-bad": lambda: raw(b"x", host=False),
    "no-host-v1": lambda: Request(instances(b"x").body, instances(b"x").headers, host=False),
    "no-content-type": lambda: raw(gray(), ""),
    "no-content-type-bad": lambda: raw(b"x" * 100, ""),
    "no-content-type-json": lambda: raw(b'{"instances": [1]}', ""),
    "no-content-type-empty": lambda: raw(b"", ""),
    "empty-body": lambda: raw(b""),
    "gzip-encoding": lambda: raw(gzip.compress(gray()), Content_Encoding="gzip"),
    "gzip-encoding-json": lambda: raw(
        gzip.compress(instances(gray()).body), "application/json", Content_Encoding="gzip"
    ),
    "gzip-encoding-bomb": lambda: raw(
        gzipped_zeros(1 << 30), "application/json", Content_Encoding="gzip"
    ),
    "gzip-encoding-bomb-image": lambda: raw(
        gzip.compress(png(50_000_000, 1, 1)), Content_Encoding="gzip"
    ),
    "gzip-encoding-of-plain": lambda: raw(gray(), Content_Encoding="gzip"),
    "gzip-encoding-twice": lambda: raw(
        gzip.compress(gzip.compress(gray())), Content_Encoding="gzip, gzip"
    ),
    "gzip-encoding-empty-members": lambda: raw(
        gzip.compress(b"") * 400_000, Content_Encoding="gzip"
    ),
    "gzip-encoding-form": lambda: Request(
        gzip.compress(form([gray()]).body),
        (*form([gray()]).headers, ("Content-Encoding", "gzip")),
        parts=(("body", "", gzip.compress(form([gray()]).body)),),
    ),
    "deflate-encoding": lambda: raw(zlib.compress(gray()), Content_Encoding="deflate"),
    "br-encoding": lambda: raw(gray(), Content_Encoding="br"),
    "identity-encoding": lambda: raw(gray(), Content_Encoding="identity"),
    "unknown-encoding": lambda: raw(gray(), Content_Encoding="x" * 4_000),
    "data-uri": lambda: raw(b"data:image/png;base64," + base64.b64encode(gray())),
    "data-uri-of-25-mb": lambda: raw(b"data:image/png;base64," + b"A" * 25_000_000),
    "data-uri-form": lambda: form([b"data:image/png;base64," + base64.b64encode(gray())]),
    "base64-body": lambda: raw(base64.b64encode(gray())),
    "type-text": lambda: _typed("text/plain"),
    "type-text-large": lambda: raw(b"x" * 25_000_000, "text/plain"),
    "type-json-for-image": lambda: _typed("application/json"),
    "type-urlencoded": lambda: _typed("application/x-www-form-urlencoded"),
    "type-urlencoded-large": lambda: raw(
        b"a=%00&" * 1_000_000, "application/x-www-form-urlencoded"
    ),
    "type-urlencoded-many": lambda: raw(
        b"&".join(b"a%d=1" % i for i in range(500_000)), "application/x-www-form-urlencoded"
    ),
    "type-urlencoded-percent": lambda: raw(b"%" * 1_000_000, "application/x-www-form-urlencoded"),
    "type-urlencoded-surrogates": lambda: raw(
        b"policy=%ED%A0%80&a=%FF", "application/x-www-form-urlencoded"
    ),
    "type-long": lambda: _typed("image/" + "p" * 6_000),
    "type-nonsense": lambda: _typed(";;;=,,/"),
    "type-unicode": lambda: _typed("imägé/png"),
    "accept-unknown": lambda: raw(gray(), Accept="text/html"),
    "accept-long": lambda: raw(gray(), Accept="a/b;q=0.1," * 600),
    "header-long": lambda: raw(gray(), X_Long="x" * 60_000),
    "headers-many": lambda: Request(
        gray(),
        tuple((f"X-{i}", "v") for i in range(300)),
        parts=(("body", "", gray()),),
    ),
    "headers-equal": lambda: Request(
        gray(), tuple(("policy", "any") for _ in range(300)), parts=(("body", "", gray()),)
    ),
    "header-latin": lambda: raw(gray(), X_Latin="é\xff", stream="ü"),
    "header-describe": lambda: raw(gray(), describe="True"),
    "header-explain": lambda: raw(gray(), explain="True"),
    "header-url-path": lambda: raw(gray(), url_path="x" * 5_000),
    "header-body": lambda: _with_header("body", "x"),
    "header-stream": lambda: raw(gray(), ts_stream_next="true"),
    "path-long": lambda: raw(gray(), path=f"{PREDICT}/1.0/" + "a/" * 1_500),
    "path-odd": lambda: raw(gray(), path=f"{PREDICT}/1.0/%ff%00%0d%0a"),
    "path-explanations": lambda: raw(gray(), path="/explanations/probes"),
    "path-invocations": lambda: raw(gray(), path="/invocations?model_name=probes"),
    "query-long": lambda: raw(
        gray(), path="/invocations?model_name=probes&" + "&".join(f"q{i}=1" for i in range(300))
    ),
    "query-policy": lambda: raw(
        gray(), path=f"/invocations?model_name=probes&policy=mean%3E%3D{'9' * 400}"
    ),
    "form-3000-parts": lambda: multipart(_parts(3_000, gray())),
    "form-100000-empty-parts": lambda: multipart(_parts(100_000, b"")),
    "form-100000-text-parts": lambda: multipart([("file", "", b"x")] * 100_000),
    "form-257-parts": lambda: multipart(_parts(257, gray())),
    "form-256-bad-parts": lambda: multipart(_parts(256, b"x")),
    "form-256-parts-of-100-kb": lambda: multipart(_parts(256, b"x" * 100_000)),
    "form-256-json-parts": lambda: multipart(
        _parts(256, b'{"instances": [' + b"0," * 50_000 + b"0]}", "application/json")
    ),
    "form-2000-json-parts": lambda: multipart(
        _parts(2000, b'{"instances": [[]]}', "application/json")
    ),
    "form-json-lists": lambda: multipart(
        _parts(3, b'{"instances": [' + b"[]," * 3_000_000 + b"[]]}", "application/json")
    ),
    "form-v2-parts": lambda: multipart(_parts(300, b'{"inputs": []}', "application/json")),
    "form-no-end": lambda: multipart(_parts(2, gray()), end=False),
    "form-no-boundary": lambda: _form_type("multipart/form-data", form([gray()]).body),
    "form-other-boundary": lambda: _form_type(
        "multipart/form-data; boundary=x", form([gray()]).body
    ),
    "form-empty": lambda: _form_type("multipart/form-data; boundary=b", b"--b--\r\n"),
    "form-boundaries": lambda: _form_type("multipart/form-data; boundary=b", b"--b\r\n" * 500_000),
    "form-boundary-long": lambda: _form_type(
        f"multipart/form-data; boundary={'b' * 3_000}", b"--" + b"b" * 3_000
    ),
    "form-mixed": lambda: _form_type(
        "multipart/mixed; boundary=b", b"--b\r\n\r\n" + gray() + b"\r\n--b--\r\n"
    ),
    "form-filename-long": lambda: _named("file", "f" * 60_000),
    "form-filename-path": lambda: _named("file", "../../etc/passwd\\0"),
    "form-name-empty": lambda: _named("", "a.png"),
    "form-name-body": lambda: _named("body", "a.png"),
    "form-name-not-utf8": lambda: _named("\udcff\udcfe", "a.png"),
    "form-name-option": lambda: _named("policy", "a.png"),
    "form-part-headers": lambda: _part_headers(b"X-Header: 1\r\n" * 100_000),
    "form-part-encoding": lambda: _part_headers(b"Content-Transfer-Encoding: base64"),
    "form-part-type-long": lambda: _part_headers(b"Content-Type: image/" + b"p" * 60_000),
    "form-part-type-not-utf8": lambda: _part_headers(b"Content-Type: image/\xff\xfe"),
    "form-part-charset": lambda: _part_headers(b"Content-Type: text/plain; charset=utf-7"),
    "form-part-charset-unknown": lambda: _part_headers(b"Content-Type: text/plain; charset=x-none"),
    "form-options-alone": lambda: form((), [("policy", b"any")]),
}
"""Requests with odd headers, encodings or form parts."""

_HARMLESS = (
    *("accept-", "br-", "data-uri", "deflate-", "form-", "gzip-", "header", "identity-"),
    *("no-", "path-", "query-", "type-", "unknown-"),
)

ANSWERABLE = frozenset(name for name in TRANSPORT if name.startswith(_HARMLESS)) - {
    "data-uri-of-25-mb",
    "no-host-bad",
    "no-content-type-bad",
    "no-content-type-json",
    "no-content-type-empty",
    "gzip-encoding-bomb",
    "gzip-encoding-empty-members",
    "form-3000-parts",
    "form-100000-empty-parts",
    "form-100000-text-parts",
    "form-257-parts",
    "form-256-bad-parts",
    "form-256-parts-of-100-kb",
    "form-256-json-parts",
    "form-2000-json-parts",
    "form-json-lists",
    "form-v2-parts",
    "form-empty",
    "form-options-alone",
    "type-json-for-image",
    "type-text-large",
}
"""Names of the requests to which a correct answer is as good as a refusal."""

REFUSED_BY_FRONTEND = frozenset(
    {
        "header-long",
        "type-long",
        "path-odd",
        "form-boundary-long",
        "form-name-empty",
        "form-part-charset",
        "form-part-charset-unknown",
        "form-part-encoding",
        "form-part-type-long",
    }
)
"""Names of the requests that TorchServe's frontend may refuse before any worker sees them."""
