"""Makes requests whose options, policies or sample names are long, deep or odd.

Answers quote many of them, so an answer could become too long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .bundles import entry
from .images import gray
from .wire import Request, form, instances, multipart, raw, tar, v2_images, zipped

_NAMES = ("policy", "stream", "response", "fields", "weights", "frame_order", "deadline_ms")


def _option(name: str, value: str | bytes) -> Request:
    content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return form([gray()], [(name, content)])


def _policy(text: str) -> Request:
    return _option("policy", text)


POLICIES: Mapping[str, str] = {
    "digits": f"mean >= {'9' * 400}",
    "5000-digits": f"mean >= {'9' * 5_000}",
    "long-integer": f"mean >= {'9' * 4_000_000}",
    "hexadecimal": f"mean >= 0x{'f' * 300_000}",
    "exponent": "mean >= 1e999",
    "fraction": f"mean >= 0.{'1' * 1_000_000}",
    "parameter-digits": f"at_least(k={'9' * 400})",
    "parameter-long": f"at_least(k={'9' * 4_000})",
    "parameter-minus": "at_least(k=-9223372036854775809)",
    "parameter-infinite": "at_least(k=1e999)",
    "negative-signs": f"at_least(k={'-' * 50_000}1)",
    "deep-parentheses": "(" * 100_000 + "a" + ")" * 100_000,
    "190-parentheses": "(" * 190 + "a" + ")" * 190,
    "deep-not": "not " * 50_000 + "a",
    "110-not": "not " * 110 + "a",
    "200-parentheses": "(" * 200 + "a" + ")" * 200,
    "60-calls": "any(" * 60 + "a" + ")" * 60,
    "450-signs": f"at_least(k={'-' * 450}1)",
    "100-comparisons": "mean " + ">= 0" * 100,
    "60-and": " and ".join(["a"] * 60),
    "50-lambdas": "lambda:" * 50 + "a",
    "hexadecimal-of-400": f"mean >= 0x{'f' * 400}",
    "negative-of-400": f"mean >= -{'9' * 400}",
    "parameter-fraction": f"at_least(k=0.{'1' * 400})",
    "deep-calls": "any(" * 20_000 + ")" * 20_000,
    "long-and": " and ".join(["a"] * 100_000),
    "long-or-of-calls": " or ".join(["any(a, b)"] * 50_000),
    "many-arguments": f"any({', '.join(['a'] * 300_000)})",
    "many-keywords": f"at_least({', '.join(f'k{i}=1' for i in range(200_000))})",
    "equal-keywords": f"at_least({', '.join(['k=1'] * 10_000)})",
    "chained": "mean " + ">= 0.1 " * 100_000,
    "sums": "+".join(["1"] * 200_000),
    "powers": "mean >= 9**9**9**9",
    "shift": "mean >= 1<<99999999999",
    "product-of-text": "at_least(k='a'*9999999999)",
    "text": f"at_least(k='{'a' * 5_000_000}')",
    "implicit-texts": "at_least(k=" + "'a' " * 300_000 + ")",
    "format-strings": "f'" + "{" * 150 + "a" + "}" * 150 + "'",
    "lambdas": "lambda: " * 3_000 + "a",
    "comprehension": "[" * 90 + "a" + " for a in a]" * 90,
    "name": "p" * 20_000_000,
    "name-similar": "majorit" * 700_000,
    "unicode-name": "ﬁ" * 1_000_000,
    "unicode-names": " and ".join(f"µ{i}" for i in range(20_000)),
    "homoglyph": "\u0430ny",
    "surrogate": "any\ud800",
    "nul": "any\0",
    "newlines": "\n" * 1_000_000 + "any",
    "spaces": " " * 20_000_000,
    "indents": "\n".join(" " * i + "a" for i in range(3_000)),
    "continuations": "\\\n" * 500_000 + "any",
    "comments": "#" * 5_000_000,
    "form-feeds": "\f" * 1_000_000 + "any",
    "attributes": "a" + ".b" * 100_000,
    "subscripts": "a" + "[0]" * 100_000,
    "starred": "any(*a, **b)",
    "walrus": "(a := b)",
    "dunder": "__import__('os').system('true')",
    "bytes-literal": "at_least(k=b'a')",
    "complex-number": "mean >= 9j",
    "escapes": "at_least(k='" + "\\N{DIGIT ONE}" * 100_000 + "')",
    "bad-escapes": "at_least(k='" + "\\d" * 500_000 + "')",
}

VALUES: Mapping[str, tuple[str, str]] = {
    "fields-of-4-mb": ("fields", ",".join(["a"] * 2_000_000)),
    "fields-good-of-4-mb": ("fields", ",".join(["label"] * 700_000)),
    "fields-json": ("fields", "[" + ",".join(['"a"'] * 1_000_000) + "]"),
    "include-of-4-mb": ("include", "," * 4_000_000),
    "members-of-4-mb": ("members", ",".join(["a"] * 2_000_000)),
    "members-unknown": ("members", ",".join(f"m{i}" for i in range(300_000))),
    "member-name": ("members", "m" * 10_000_000),
    "frame-order": ("frame_order", ",".join(["1"] * 3_000_000)),
    "frame-order-wrong": ("frame_order", ",".join(["x"] * 1_000_000)),
    "frame-order-digits": ("frame_order", "9" * 5_000_000),
    "frame-order-nan": ("frame_order", "nan"),
    "frame-order-infinite": ("frame_order", "[1e999]"),
    "weights-infinite": ("weights", '{"a": 1e39}'),
    "weights-digits": ("weights", '{"a": ' + "9" * 400 + "}"),
    "weights-long-integer": ("weights", '{"a": ' + "9" * 3_000_000 + "}"),
    "weights-nan": ("weights", '{"a": NaN}'),
    "weights-tiny": ("weights", '{"a": 1e-46, "b": 1e-46, "c": 1e-46}'),
    "weights-large": ("weights", '{"a": 3e38, "b": 3e38, "c": 3e38}'),
    "weights-zero": ("weights", '{"a": 0, "b": 0, "c": 0}'),
    "weights-names": ("weights", "{" + ",".join(f'"m{i}":1' for i in range(300_000)) + "}"),
    "weights-name": ("weights", '{"' + "m" * 10_000_000 + '": 1}'),
    "weights-deep": ("weights", "[" * 1_000 + "]" * 1_000),
    "weights-deep-100000": ("weights", '{"a":' * 100_000),
    "weights-list": ("weights", "[" + "1," * 2_000_000 + "1]"),
    "weights-surrogate": ("weights", '{"\\ud800": 1}'),
    "thresholds-names": ("thresholds", "{" + ",".join(f'"m{i}":2' for i in range(300_000)) + "}"),
    "thresholds-deep": ("thresholds", '{"a":' + "[" * 1_000 + "]" * 1_000 + "}"),
    "thresholds-nan": ("thresholds", '{"a": NaN}'),
    "policy-parameters-deep": ("policy_parameters", "[" * 1_000 + "]" * 1_000),
    "policy-parameters-deep-value": (
        "policy_parameters",
        '{"k":' + "[" * 900 + "]" * 900 + "}",
    ),
    "policy-parameters-names": (
        "policy_parameters",
        "{" + ",".join(f'"p{i}":1' for i in range(300_000)) + "}",
    ),
    "policy-parameters-name": ("policy_parameters", '{"' + "p" * 10_000_000 + '": 1}'),
    "policy-parameters-value": ("policy_parameters", '{"k": "' + "v" * 10_000_000 + '"}'),
    "policy-parameters-digits": ("policy_parameters", '{"k": ' + "9" * 400 + "}"),
    "policy-parameters-infinite": ("policy_parameters", '{"k": 1e999}'),
    "policy-parameters-list": ("policy_parameters", '{"k": [' + "1," * 1_000_000 + "1]}"),
    "top-k-digits": ("top_k", "9" * 4_000),
    "top-k-long": ("top_k", "9" * 5_000_000),
    "top-k-large": ("top_k", str(2**62)),
    "top-k-beyond": ("top_k", str(2**64)),
    "smooth-window": ("smooth_window", "9" * 400),
    "smooth-alpha": ("smooth_alpha", "1e-320"),
    "deadline-digits": ("deadline_ms", "9" * 400),
    "deadline-huge": ("deadline_ms", "1e308"),
    "deadline-underscores": ("deadline_ms", "1" + "_1" * 1_000_000),
    "stream-long": ("stream", "s" * 10_000_000),
    "stream-control": ("stream", "\x1b[2J\r\nX: y"),
    "response-long": ("response", "r" * 10_000_000),
    "on-error-long": ("on_error", "e" * 10_000_000),
    "frames-long": ("frames", "t" * 10_000_000),
    "lazy-long": ("lazy", "t" * 10_000_000),
}


def _names(names: list[bytes]) -> dict[str, Callable[[], Request]]:
    """Make requests with a list of bad sample names, in all wire forms that name samples."""
    return {
        "tar": lambda: raw(b"".join(entry(name, b"x") for name in names) + bytes(1024)),
        "form": lambda: multipart((name.decode("latin1"), "image/png", b"x") for name in names),
        "form-skipped": lambda: multipart(
            [
                *((name.decode("latin1"), "image/png", b"x") for name in names),
                ("on_error", "", b"skip"),
            ]
        ),
        "zip": lambda: raw(zipped({name.decode("latin1"): b"x" for name in names})),
        "zip-skipped": lambda: multipart(
            [
                ("file", "image/png", zipped({name.decode("latin1"): b"x" for name in names})),
                ("on_error", "", b"skip"),
            ]
        ),
        "zip-good": lambda: raw(zipped({name.decode("latin1"): gray() for name in names})),
    }


def _pax_names(length: int) -> bytes:
    return tar({f"{i}{'n' * length}": b"x" for i in range(256)})


OPTIONS: Mapping[str, Callable[[], Request]] = {
    **{f"policy-{name}": lambda text=text: _policy(text) for name, text in POLICIES.items()},
    **{f"option-{name}": lambda pair=pair: _option(*pair) for name, pair in VALUES.items()},
    **{
        f"option-{name}-not-utf8": lambda name=name: _option(name, b"\xff\xfe" * 10)
        for name in _NAMES
    },
    **{f"option-{name}-nul": lambda name=name: _option(name, b"a\0b") for name in _NAMES},
    **{
        f"json-option-{name}-deep": lambda name=name: instances(
            gray(), parameters={name: _nest(900)}
        )
        for name in _NAMES
    },
    **{
        f"json-option-{name}-list": lambda name=name: instances(
            gray(), parameters={name: ["a"] * 1_000_000}
        )
        for name in _NAMES
    },
    **{
        f"v2-option-{name}-object": lambda name=name: v2_images(
            gray(), parameters={name: {f"k{i}": [i] for i in range(200_000)}}
        )
        for name in _NAMES
    },
    "json-policy-digits": lambda: instances(gray(), parameters={"policy": f"mean >= {'9' * 400}"}),
    "json-weights-infinite": lambda: instances(gray(), parameters={"weights": {"a": 1e39}}),
    "json-weights-digits": lambda: instances(gray(), parameters={"weights": {"a": int("9" * 400)}}),
    "json-top-k-digits": lambda: instances(gray(), parameters={"top_k": int("9" * 400)}),
    "v2-policy-digits": lambda: v2_images(gray(), parameters={"policy": f"mean >= {'9' * 400}"}),
    "v2-weights-infinite": lambda: v2_images(gray(), parameters={"weights": {"a": 1e39}}),
    "fields-unknown-100000": lambda: form(
        [gray()], ((f"unknown{i}", b"x") for i in range(100_000))
    ),
    "fields-unknown-name": lambda: form([gray()], [("n" * 100_000, b"x")]),
    "fields-one-name": lambda: form([gray()], ((("policy"), b"any") for _ in range(100_000))),
    "json-unknown-100000": lambda: instances(
        gray(), parameters={f"unknown{i}": 1 for i in range(100_000)}
    ),
    "json-unknown-similar": lambda: instances(
        gray(), parameters={"policy_parameter" + "s" * i: 1 for i in range(3_000)}
    ),
    "json-unknown-name-of-25-mb": lambda: instances(gray(), parameters={"policy" * 4_000_000: 1}),
    "v2-unknown-100000": lambda: v2_images(
        gray(), parameters={f"unknown{i}": 1 for i in range(100_000)}
    ),
    "headers-option-policy": lambda: raw(gray(), policy="(" * 3_000),
    "headers-option-digits": lambda: raw(gray(), policy=f"mean >= {'9' * 400}"),
    "headers-option-weights": lambda: raw(gray(), weights='{"a":1e39}'),
    "headers-option-deep": lambda: raw(gray(), weights="[" * 3_000),
    "headers-option-accept": lambda: raw(gray(), accept="," * 7_000),
    **{f"names-pax-{how}": make for how, make in {"tar": lambda: raw(_pax_names(4000))}.items()},
    **{f"names-long-{how}": make for how, make in _names([b"n" * 99] * 250).items()},
    **{
        f"names-60000-{how}": make
        for how, make in _names([b"%d" % i + b"n" * 60_000 for i in range(250)]).items()
        if how != "tar"
    },
    **{
        f"names-odd-{how}": make
        for how, make in _names(
            [b"\xff%d\xfe" % i for i in range(20)] + [b"\x1b[2J", b"..", b"/", b"a/../b", b"\x7f"]
        ).items()
    },
}
"""Requests with good images, but with hostile options or names."""

ANSWERABLE = frozenset(
    {
        "option-weights-zero",
        "policy-newlines",
        "policy-continuations",
        "policy-form-feeds",
        "policy-starred",
        "policy-homoglyph",
        "policy-long-and",
        "policy-long-or-of-calls",
        "policy-many-arguments",
        "policy-exponent",
        "policy-digits",
        "policy-fraction",
        "policy-110-not",
        "policy-200-parentheses",
        "policy-60-calls",
        "policy-60-and",
        "policy-100-comparisons",
        "policy-190-parentheses",
        "policy-bytes-literal",
        "policy-unicode-names",
        "option-fields-good-of-4-mb",
        "option-weights-tiny",
        "option-frame-order-digits",
        "option-frame-order-infinite",
        "option-frame-order-nan",
        "option-weights-large",
        "option-smooth-alpha",
        "option-deadline-huge",
        "option-top-k-large",
        "option-top-k-digits",
        "option-top-k-beyond",
        "option-stream-control",
        "option-stream-nul",
        "headers-option-accept",
        "fields-one-name",
        "json-top-k-digits",
        "names-long-zip-good",
        "names-60000-zip-good",
        "names-odd-zip-good",
        "names-long-form-skipped",
        "names-long-zip-skipped",
        "names-odd-form-skipped",
        "names-odd-zip-skipped",
        "names-60000-form-skipped",
        "names-60000-zip-skipped",
    }
)
"""Names of the requests to which a correct answer is as good as a refusal."""


def _nest(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value
