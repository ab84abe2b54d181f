"""Makes hostile requests ("bombs"), which would stop a worker that does not bound its work.

Each bomb is a file, a bundle, a document, an option or a header that causes far more work, or needs
far more memory, than its size suggests. Some of them are sent in every wire form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from . import bundles, documents, options, transport
from .images import FRAMES, SINGLE, many_profiles, png
from .wire import FORMS, Bomb, Request, call, form, multipart, raw

__all__ = ["BOMBS", "FORMS", "Bomb", "Request"]

_EVERYWHERE = (
    "png-65000x1",
    "png-50000000x1",
    "jpeg-scans-with-data",
    "tiff-tile-of-40000",
    "png-16-bit-gray",
    "gif-comment",
)
"""Names of the images that are sent in every wire form."""

_MAX_REQUEST_BYTES = 25_000_000

_CROWDS: dict[str, Callable[[], list[bytes]]] = {
    "256-pngs-of-50-megapixels": lambda: [png(7071, 7071, 1)] * 256,
    "40-pngs-of-50-megapixels": lambda: [png(7071, 7071, 1)] * 40,
    "256-pngs-of-1-megapixel": lambda: [png(1000, 1000, 16, 6)] * 256,
    "256-pngs-of-20000x1": lambda: [png(20_000, 1)] * 256,
    "20-large-profiles": lambda: many_profiles(20),
}
"""Images that are harmless one by one, and are sent together in every wire form."""

_BUNDLES_EVERYWHERE = (
    "tar-pax-digits",
    "tar.gz-pax-digits",
    "tar.bz2-hidden-480-mib",
    "zip-overlapping",
    "npy-1x1x33-million",
    "safetensors-100000-tensors",
)
"""Names of the bundles that are also sent in forms and over gRPC; JSON cannot hold bundles."""


def _make_bombs() -> Iterator[Bomb]:
    for name, make in SINGLE.items():
        forms: Iterable[str] = ("body",)
        if name in _EVERYWHERE:
            forms, make = FORMS, cache(make)
        for kind in forms:
            yield Bomb(
                f"{name}:{kind}", lambda make=make, kind=kind: FORMS[kind](make()), answerable=True
            )
    for name, several in _CROWDS.items():
        several = cache(several)
        for kind in FORMS:
            yield Bomb(
                f"{name}:{kind}",
                lambda make=several, kind=kind: FORMS[kind](*make()),
                answerable=True,
            )
    for name, make in FRAMES.items():
        yield Bomb(
            f"frames:{name}",
            lambda make=make: raw(make(), frames="true"),
            answerable=True,
        )
    for name, make in bundles.BUNDLES.items():
        may_answer = name in bundles.ANSWERABLE or name.startswith(("npy-", "safetensors-"))
        yield Bomb(f"{name}:body", lambda make=make: raw(make()), answerable=may_answer)
        if name in _BUNDLES_EVERYWHERE:
            yield Bomb(f"{name}:multipart", lambda make=make: form([make()]))
            if not name.startswith("npy"):
                yield Bomb(f"{name}:multipart-many", lambda make=make: _many(make()))
            yield Bomb(f"{name}:grpc", lambda make=make: call(file=make()))
    yield Bomb("40-zips-of-50-megabytes:multipart", _forty_zips)
    yield Bomb("256-gz-of-2-megabytes:multipart", _many_gz)
    groups = (
        (documents.JSON, documents.ANSWERABLE),
        (documents.INFER, documents.ANSWERABLE),
        (options.OPTIONS, options.ANSWERABLE),
        (transport.TRANSPORT, transport.ANSWERABLE),
    )
    for group, answerable in groups:
        for name, build in group.items():
            yield Bomb(name, build, name in answerable, name in transport.REFUSED_BY_FRONTEND)


def _many(bundle: bytes) -> Request:
    """Make a form that has the same bundle up to 40 times."""
    return form([bundle] * min(40, _MAX_REQUEST_BYTES // len(bundle)))


def _forty_zips() -> Request:
    """Make a form of zips that are each within the limit of unpacked bytes, but not together."""
    return form([bundles.zip_of_zeros(8, 60 << 20)] * 40)


def _many_gz() -> Request:
    """Make a form that has the same compressed tar file 40 times."""
    return multipart([("file", "application/gzip", bundles.BUNDLES["tar.gz-hidden-500-mb"]())] * 40)


BOMBS: tuple[Bomb, ...] = tuple(_make_bombs())
"""All bombs; no two have the same name."""
