"""Changes JSON so that it stays valid JSON.

Random changes of bytes would nearly always make it invalid. Then only the JSON parser would be
fuzzed, and not the code that reads its result.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fuzzing.encoding import decode_request, encode_request
from torchserve_ensemble.handlers.requests.raw_request import Part, RawRequest

Mutate = Callable[[bytes, int], bytes]
"""libFuzzer's own change of some bytes; takes the bytes and their maximum length."""

Mutator = Callable[[bytes, int, int], bytes]
"""Changes an input; takes the input, its maximum length and a seed of random numbers."""

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, int("9" * 400), 0.5, 1e39,
    1e308, float("nan"), float("inf"), "", "a", "any", "\ud800", "\0", "x" * 300, "label", "base64",
    "BYTES", "FP32", "UINT8", "true", "1,2",
    "mean >= 0.5", [], {}, [[]], [[[0.5]]], {"b64": ""}, {"a": 1},
)  # fmt: skip
_MAX_DEPTH = 60


def change_json(data: bytes, mutate: Mutate, random: random.Random, size: int) -> bytes:
    """Change one value or key of a JSON document; bytes that are no JSON are changed as bytes.

    Args:
        data: the document.
        mutate: libFuzzer's own change.
        random: source of random numbers.
        size: maximum length of the result.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, size)
    changed = _changed(content, random, mutate, 0)
    try:
        return json.dumps(changed).encode()[:size]
    except (ValueError, RecursionError):
        return mutate(data, size)


def _changed(value: Any, random: random.Random, mutate: Mutate, depth: int) -> Any:
    """Walk down the document at random, and change the value at which the walk ends."""
    inner = isinstance(value, dict | list) and value and depth < _MAX_DEPTH
    if not inner or random.random() < 0.15:
        return _other(value, random, mutate)
    if isinstance(value, list):
        position = random.randrange(len(value))
        match random.randrange(8):
            case 0:
                return value[:position] + value[position + 1 :]
            case 1:
                return (
                    value[:position]
                    + [value[position]] * random.choice((2, 3, 20))
                    + value[position:]
                )
        return [
            _changed(each, random, mutate, depth + 1) if i == position else each
            for i, each in enumerate(value)
        ]
    key = random.choice(list(value))
    match random.randrange(8):
        case 0:
            return {k: v for k, v in value.items() if k != key}
        case 1:
            return value | {_text(key, random, mutate): value[key]}
        case 2:
            return value | {random.choice(list(value)): value[key]}
    return value | {key: _changed(value[key], random, mutate, depth + 1)}


def _other(value: Any, random: random.Random, mutate: Mutate) -> Any:
    """Replace a value by a changed one or by another one."""
    match value:
        case str() if random.random() < 0.6:
            return _text(value, random, mutate)
        case bool():
            return not value
        case int() | float() if random.random() < 0.5:
            return value + random.choice((-1, 1, 0.5, 2**16)) if abs(value) < 1e9 else 0
    chosen = random.choice(_VALUES)
    if random.random() < 0.1:
        for _ in range(random.choice((1, 3, 50))):
            chosen = [chosen] if random.random() < 0.5 else {"a": chosen}
    return chosen


def _text(value: str, random: random.Random, mutate: Mutate) -> str:
    """Change a text; if it is JSON itself, as objects in form fields are, it stays JSON."""
    encoded = value.encode("utf-8", "surrogatepass")
    if value[:1] in ("{", "[") and random.random() < 0.7:
        changed = change_json(encoded, mutate, random, len(encoded) + 1000)
    else:
        changed = mutate(encoded, len(encoded) + 32)
    return changed.decode("utf-8", "replace")


def json_mutator(mutate: Mutate, num_bytes_before: int = 0) -> Mutator:
    """Make a mutator of inputs that are JSON after a number of other bytes."""

    def change(data: bytes, size: int, seed: int) -> bytes:
        generator = random.Random(seed)
        if generator.random() < 0.2:
            return mutate(data, size)
        head, body = data[:num_bytes_before], data[num_bytes_before:]
        return head + change_json(body, mutate, generator, size - len(head))

    return change


def request_mutator(mutate: Mutate) -> Mutator:
    """Make a mutator of encoded requests, which changes one part or the list of parts."""

    def change(data: bytes, size: int, seed: int) -> bytes:
        generator = random.Random(seed)
        if generator.random() < 0.3:
            return mutate(data, size)
        request = decode_request(data)
        parts = list(request.parts)
        if not parts:
            return mutate(data, size)
        position = generator.randrange(len(parts))
        match generator.randrange(10):
            case 0:
                del parts[position]
            case 1:
                parts.insert(generator.randrange(len(parts)), parts[position])
            case _:
                part = parts[position]
                value = change_json(bytes(part.value), mutate, generator, size)
                parts[position] = Part(part.name, part.content_type, value)
        return encode_request(RawRequest(parts, request.headers))[:size]

    return change
