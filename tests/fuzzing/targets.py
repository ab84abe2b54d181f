"""The targets of fuzzing: functions that must take any bytes, and seeds for each of them.

A target may raise only the errors that the function documents. The limits on requests are small, so
that the time of a run goes into many inputs and not into many pixels. ``tests/bombs`` tests the
default limits on a real server.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import bombs
import numpy as np
from bombs import bundles, documents, images, options
from image_files import encoded
from PIL import Image
from probe_ensemble import probes
from safetensors.numpy import save

from fuzzing.encoding import decode_request, encode_request
from fuzzing.mutation import Mutate, Mutator, json_mutator, request_mutator
from torchserve_ensemble.handlers.answers.encoding import Response
from torchserve_ensemble.handlers.archive.record import ArchiveRecord
from torchserve_ensemble.handlers.archive.signature import read_signature, to_text
from torchserve_ensemble.handlers.base.errors import (
    ArchiveError,
    RequestError,
    ServerError,
    SpecError,
)
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.inputs.images import decode_image
from torchserve_ensemble.handlers.policies import Catalogue, parse_policy
from torchserve_ensemble.handlers.requests.budget import RequestBudget
from torchserve_ensemble.handlers.requests.open_inference import parse_infer_request
from torchserve_ensemble.handlers.requests.options import OPTION_NAMES, parse_options
from torchserve_ensemble.handlers.requests.parsing import parse_request
from torchserve_ensemble.handlers.requests.raw_request import BODY, Part, RawRequest, lower_case
from torchserve_ensemble.handlers.service import EnsembleService
from torchserve_ensemble.handlers.spec import Limits, parse_spec
from torchserve_ensemble.serving.properties_file import read_properties

MAX_INPUT_BYTES = 16_384
"""Longer seeds are left out, because a fuzzer learns more from many short inputs."""

MAX_CPU_SECONDS = 2.0
"""An input that takes longer is a finding."""

_MAX_REFUSAL_BYTES = 100_000
_MAX_ANSWER_BYTES = 2_000_000
_LIMITS = {
    "max_samples": 16,
    "max_request_bytes": 1_000_000,
    "max_unpacked_bytes": 4_000_000,
    "max_pixels": 250_000,
}
LIMITS = Limits(**_LIMITS)


class Finding(Exception):
    """The target did not treat an input as it promises."""


@dataclass(frozen=True)
class Target:
    """A function to fuzz.

    Attributes:
        run: the function. It must take any bytes; an exception is a finding.
        seeds: inputs from which the fuzzer starts.
        mutator: makes a mutator that keeps the structure of inputs, from libFuzzer's own change.
        words: words of which inputs are made.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    mutator: Callable[[Mutate], Mutator] | None = None
    words: Iterable[str] = ()

    def check(self, data: bytes) -> None:
        """Run the function on an input, and raise `Finding` if it takes too long."""
        start = time.process_time()
        self.run(data)
        spent = time.process_time() - start
        if spent > MAX_CPU_SECONDS:
            raise Finding(f"one input took {spent:.1f} s")

    def corpus(self) -> Iterator[bytes]:
        """Select the seeds that are short enough."""
        return (seed for seed in self.seeds() if len(seed) <= MAX_INPUT_BYTES)


def _request(data: bytes) -> None:
    with suppress(RequestError):
        parse_request(decode_request(data), LIMITS)


def _bundle(data: bytes) -> None:
    """Parse a body twice: as it is, and with every frame as a sample."""
    for headers in ({}, {"frames": "true"}):
        with suppress(RequestError):
            parse_request(RawRequest([Part(BODY, "", data)], headers), LIMITS)


def _tar(data: bytes) -> None:
    _bundle(_with_checksums(data))


def _with_checksums(data: bytes) -> bytes:
    """Correct the checksum of each block of a tar file that looks like a header."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            total = sum(blocks[start : start + 512])
            blocks[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(blocks)


def _image(data: bytes) -> None:
    with suppress(RequestError):
        pixels = decode_image(data, max_pixels=LIMITS.max_pixels, name="image")
        if pixels.dim() != 3 or pixels.shape[0] != 3 or pixels[0].numel() > LIMITS.max_pixels:
            raise Finding(f"pixels of shape {tuple(pixels.shape)}")


def _png(data: bytes) -> None:
    _image(_with_sums(data))


def _with_sums(data: bytes) -> bytes:
    """Correct the checksum of each chunk of a PNG file."""
    repaired, start = bytearray(data), 8
    while start + 12 <= len(repaired):
        (length,) = struct.unpack_from(">I", repaired, start)
        end = start + 8 + length
        if end + 4 > len(repaired):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(repaired[start + 4 : end]))
        start = end + 4
    return bytes(repaired)


def _infer(data: bytes) -> None:
    """Parse an Open Inference request whose first two bytes are the length of its JSON.

    If that is more than there is, the request has no binary data.
    """
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    with suppress(RequestError):
        parse_infer_request(body, length if length <= len(body) else None, RequestBudget(LIMITS))


def _options(data: bytes) -> None:
    """Parse options as JSON has them, and again with every value as text, as forms have them."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    with suppress(RequestError):
        parse_options(content)
    with suppress(RequestError):
        parse_options({name: v if isinstance(v, str) else str(v) for name, v in content.items()})


_CATALOGUES = [
    Catalogue(task, ("a", "b", "high-recall"), named={"safe": "any", "late": "mean >= 0.9"})
    for task in Task
]


def _decoded(data: bytes) -> str:
    """Decode a text; it may contain lone surrogates, because JSON can express them."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin1")


def _policy(data: bytes) -> None:
    """Parse a policy. The first byte chooses the task; parameters in JSON follow after a NUL."""
    text, _, parameters_json = _decoded(data[1:]).partition("\0")
    parameters: dict[str, object] = {}
    with suppress(ValueError, RecursionError):
        content = json.loads(parameters_json)
        parameters = content if isinstance(content, dict) else {}
    with suppress(RequestError):
        parse_policy(text, parameters, _CATALOGUES[(data[0] if data else 0) % len(_CATALOGUES)])


def _spec(data: bytes) -> None:
    with suppress(SpecError):
        parse_spec(data.decode("utf-8", "replace"))


def _record(data: bytes) -> None:
    with suppress(ArchiveError):
        ArchiveRecord.from_json(data.decode("utf-8", "replace"), source="fuzz")


def _signature(data: bytes) -> None:
    """Read a signature twice: as it is, and as one that signs the data as its statement."""
    for content in (data, _bundle_with(data)):
        with suppress(ArchiveError):
            read_signature(content, b"", source="fuzz")


def _bundle_with(statement: bytes) -> bytes:
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "AA==", "keyid": ""}],
    }
    return to_text(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "0" * 64}, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _properties(data: bytes) -> None:
    path = _scratch() / "config.properties"
    path.write_bytes(data)
    with suppress(ServerError):
        read_properties(path)


@cache
def _service() -> EnsembleService:
    return probes(_scratch(), task="presence", limits=_LIMITS)


_GOOD = RawRequest([Part("file", "image/png", images.png(4, 4))])


@cache
def _alone() -> bytes:
    """The answer to the good request if it is alone in its batch."""
    (answer,) = _service().answer([_GOOD])
    if answer.status != 200:
        raise Finding(f"a good request was answered {answer.body!r}")
    return answer.body


def _answers(data: bytes) -> None:
    """Answer a request in a batch between two good ones, whose answers must not change."""
    before, answer, after = _service().answer([_GOOD, decode_request(data), _GOOD])
    for neighbour in (before, after):
        if neighbour.status != 200 or not _alike(json.loads(neighbour.body), json.loads(_alone())):
            raise Finding(f"a neighbour was answered {neighbour.body[:500]!r}")
    _check_answer(answer)


def _alike(one: object, other: object) -> bool:
    """Whether two JSON values are equal but for rounding.

    In batches of different sizes float32 kernels add numbers in a different order.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-5)
    return one == other


def _check_answer(answer: Response) -> None:
    # 504 is no finding: it says that the client's own deadline was over.
    if answer.status >= 500 and answer.status != 504:
        raise Finding(f"status {answer.status}: {answer.body[:500]!r}")
    max_bytes = _MAX_ANSWER_BYTES if answer.status == 200 else _MAX_REFUSAL_BYTES
    if len(answer.body) > max_bytes:
        raise Finding(f"status {answer.status}: an answer of {len(answer.body)} bytes")
    if answer.content_type == "application/json":
        json.loads(answer.body)


def _raw(attack: bombs.Request) -> RawRequest:
    return RawRequest([Part(*part) for part in attack.parts], lower_case(attack.headers))


@cache
def _requests() -> tuple[bytes, ...]:
    """Good requests in every wire form, and the small bombs; they are made once, being slow."""
    return tuple(_every_request())


def _every_request() -> Iterator[bytes]:
    good = images.png(4, 4)
    for make in bombs.FORMS.values():
        yield encode_request(_raw(make(good)))
        yield encode_request(_raw(make(good, good)))
    for kind in _FORMATS:
        yield encode_request(_raw(bombs.FORMS["body"](_example(kind))))
    for bomb in bombs.BOMBS:
        if bomb.name in _SLOW_TO_MAKE:
            continue
        attack = bomb.make()
        if sum(len(value) for _, _, value in attack.parts) <= MAX_INPUT_BYTES:
            yield encode_request(_raw(attack))


_SLOW_TO_MAKE = frozenset({"avif-50-megapixels:body"})


def _bundles() -> Iterator[bytes]:
    good = images.png(4, 4)
    yield bundles.npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 2, 3)}", bytes(12))
    yield save({"input": np.zeros((1, 2, 2, 3), np.uint8)})
    yield bombs.wire.zipped({"a.png": good, "b.png": good})
    yield bombs.wire.tar({"a.png": good, "b.png": good})
    for make in (*bundles.BUNDLES.values(), *images.FRAMES.values()):
        yield make()


def _tars() -> Iterator[bytes]:
    return (make() for name, make in bundles.BUNDLES.items() if name.startswith("tar-"))


_FORMATS = {
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "tiff": "TIFF",
    "bmp": "BMP",
    "ppm": "PPM",
    "jpeg2000": "JPEG2000",
    "avif": "AVIF",
}
_STARTS = {"jpeg2000": "j2k-", "jpeg": "jpeg-", "tiff": ("tiff-", "icc-")}


def _example(kind: str, mode: str = "RGB") -> bytes:
    return encoded(Image.linear_gradient("L").resize((24, 24)).convert(mode), _FORMATS[kind])


def _image_files(kind: str) -> Iterator[bytes]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
        with suppress(OSError, ValueError):
            yield _example(kind, mode)
    for name, make in images.SINGLE.items():
        if name.startswith(_STARTS.get(kind, f"{kind}-")) and name != "avif-50-megapixels":
            yield make()


def _is_short_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6


def _infers() -> Iterator[bytes]:
    attacks = [make() for make in documents.INFER.values()]
    attacks += [bombs.FORMS[kind](images.png(4, 4)) for kind in ("v2-json", "v2-binary")]
    for attack in attacks:
        lengths = [v for n, v in attack.headers if n == bombs.wire.HEADER_LENGTH]
        length = int(lengths[0]) if lengths and _is_short_number(lengths[0]) else 0
        yield min(length or 65535, 65535).to_bytes(2, "little") + attack.body


def _option_texts() -> Iterator[bytes]:
    good = {
        "policy": "any",
        "policy_parameters": {"k": 2},
        "members": "a,b",
        "weights": {"a": 2},
        "thresholds": '{"a": 0.5}',
        "deadline_ms": 5,
        "lazy": "true",
        "on_error": "skip",
        "top_k": 2,
        "fields": "label,score",
        "include": ["uncertainty"],
        "response": "lines",
        "frames": True,
        "stream": "camera",
        "frame_order": "1,2.5",
        "smooth": "majority",
        "smooth_window": 3,
        "smooth_alpha": 0.5,
    }
    yield json.dumps(good).encode()
    for name, value in good.items():
        yield json.dumps({name: value}).encode()
    for name, text in options.VALUES.values():
        if len(text) < MAX_INPUT_BYTES:
            yield json.dumps({name: text}).encode()


def _policies() -> Iterator[bytes]:
    good = (
        "any",
        "at_least(k=2)",
        "any(a, b) and mean >= 0.7",
        "not (a or member('high-recall')) and max < 0.5",
        "weighted_mean",
        "cascade(low=0.1, high=0.9)",
        "safe",
        'at_least\0{"k": 2}',
    )
    for number, text in enumerate((*good, *options.POLICIES.values())):
        if len(text) < MAX_INPUT_BYTES:
            yield bytes([number]) + text.encode("utf-8", "surrogatepass")


def _specs() -> Iterator[bytes]:
    _service()
    yield (_scratch() / "ensemble.yaml").read_bytes()
    root = Path(__file__).parents[2]
    yield from (path.read_bytes() for path in sorted(root.glob("examples/*/*.yaml")))
    yield b"a: &a [*a]\n"
    yield b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"
    yield b"? {a: b}\n: !!python/object:os.system x\n"


def _records() -> Iterator[bytes]:
    yield ArchiveRecord({"a": "0" * 64}, {"torch": "2"}).to_json().encode()
    yield b'{"digest": 1, "built_with": [], "files": {}}'


def _signatures() -> Iterator[bytes]:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "probes-1.0", "digest": {"sha256": "0" * 64}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"resources": [{"digest": "0" * 64, "name": ".", "algorithm": "sha256"}]},
    }
    yield to_text(statement)
    yield _bundle_with(to_text(statement))


def _settings() -> Iterator[bytes]:
    yield (Path(__file__).parents[2] / "config.properties").read_bytes()
    yield b"\xef\xbb\xbfa=b\r\n#c\r\n=\n"


_POLICY_WORDS = (
    *("and", "or", "not", "member", "mean", "max", "min", "any", "all", "at_least", "majority"),
    *(
        "weighted_mean",
        "cascade",
        "stacking",
        "k=2",
        ">= 0.5",
        "< 1",
        "(",
        ")",
        ", ",
        "high-recall",
    ),
)
_SPEC_WORDS = (
    "&a ",
    "*a",
    "<<: *a",
    "!!python/object:",
    "? ",
    "|",
    ">-",
    "name: ",
    "members: ",
    "- ",
)

TARGETS: Mapping[str, Target] = {
    "service": Target(_answers, _requests, request_mutator, OPTION_NAMES),
    "request": Target(_request, _requests, request_mutator, OPTION_NAMES),
    "bundle": Target(_bundle, _bundles),
    "tar": Target(_tar, _tars),
    "infer": Target(_infer, _infers, partial(json_mutator, num_bytes_before=2)),
    "options": Target(_options, _option_texts, json_mutator),
    "policy": Target(_policy, _policies, words=_POLICY_WORDS),
    "spec": Target(_spec, _specs, words=_SPEC_WORDS),
    "record": Target(_record, _records, json_mutator),
    "signature": Target(_signature, _signatures, json_mutator),
    "properties": Target(_properties, _settings),
    **{
        kind: Target(_png if kind == "png" else _image, partial(_image_files, kind))
        for kind in _FORMATS
    },
}
"""All targets, by name."""
