"""One suite for all stores: what is pushed comes back byte for byte, and tags have a history."""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from small_archives import SHARED_BYTES, small_archive, unchecked

from torchserve_ensemble.handlers.base.errors import RegistryError
from torchserve_ensemble.registry.address import parse_address
from torchserve_ensemble.registry.collecting import collect
from torchserve_ensemble.registry.manifest import Blob, Manifest
from torchserve_ensemble.registry.pulling import pull
from torchserve_ensemble.registry.pushing import Pushed, push
from torchserve_ensemble.registry.registry import Registry
from torchserve_ensemble.registry.tags import history
from torchserve_ensemble.registry.uploads import collection_in_progress, upload_in_progress

NOW = timedelta(0)


def sent(registry: Registry, archive: Path, address: str | None = None) -> Pushed:
    return push(
        registry,
        archive,
        None if address is None else parse_address(address),
        verify=unchecked,
    )


def fetched(registry: Registry, address: str, folder: Path) -> bytes:
    path = pull(registry, parse_address(address), folder, verify=unchecked).path
    content = path.read_bytes()
    path.unlink()
    return content


def refusal(registry: Registry, address: str, folder: Path) -> str:
    with pytest.raises(RegistryError) as caught:
        pull(registry, parse_address(address), folder, verify=unchecked)
    assert registry.store.url in caught.value.message
    return caught.value.message


def size(blobs: tuple[Blob, ...]) -> int:
    return sum(blob.num_bytes for blob in blobs)


def blob_of(manifest: Manifest) -> Blob:
    return manifest.files["ensemble/own.safetensors"]


def test_an_archive_comes_back_byte_for_byte(registry: Registry, tmp_path: Path) -> None:
    plain = small_archive(tmp_path / "plain")
    signed = small_archive(tmp_path / "signed", signature=b"a signature")
    assert plain.read_bytes() != signed.read_bytes()
    sent(registry, plain)
    sent(registry, signed, "trees:signed")
    assert fetched(registry, "trees:1.0", tmp_path / "out") == plain.read_bytes()
    assert fetched(registry, "registry://trees:signed", tmp_path / "out") == signed.read_bytes()
    assert list((tmp_path / "out").iterdir()) == []


def test_what_versions_share_is_sent_once(registry: Registry, tmp_path: Path) -> None:
    first = sent(registry, small_archive(tmp_path, "1.0", weights=b"1" * 1000))
    assert size(first.sent) > len(SHARED_BYTES)
    assert first.skipped == ()
    second = sent(registry, small_archive(tmp_path, "1.1", weights=b"2" * 1000))
    assert 1000 < size(second.sent) < 4000
    assert size(second.skipped) == len(SHARED_BYTES)
    again = sent(registry, small_archive(tmp_path, "1.1", weights=b"2" * 1000))
    assert again.sent == ()


def test_a_tag_has_a_history_and_goes_back_by_digest(registry: Registry, tmp_path: Path) -> None:
    first, second = (
        sent(registry, small_archive(tmp_path, version), "trees:production").manifest
        for version in ("1.0", "2.0")
    )
    registry.tag(parse_address(f"trees@sha256:{first.digest}"), "production")
    registry.tag(parse_address(f"trees@sha256:{first.sha256}"), "production")
    entries = history(registry.store, "trees", "production")
    assert [entry.digest for entry in entries] == [first.digest, second.digest, first.digest]
    assert all("@" in entry.who and entry.when > 1e9 for entry in entries)
    registry.remove_tag(parse_address("trees:production"))
    message = refusal(registry, "trees:production", tmp_path / "out")
    assert "has no trees:production" in message
    assert registry.tags() == []
    assert history(registry.store, "trees", "production")[-1].digest is None


def test_the_tag_of_a_version_does_not_move(registry: Registry, tmp_path: Path) -> None:
    first = small_archive(tmp_path / "a")
    sent(registry, first)
    other = small_archive(tmp_path / "b", weights=b"other")
    with pytest.raises(RegistryError, match="raise the version in the spec"):
        sent(registry, other)
    sent(registry, other, "trees:dev")
    # A tag whose name begins with another's must not be mixed up with it.
    sent(registry, small_archive(tmp_path, "1.0.1"))
    assert [(tag.tag, tag.manifest.version) for tag in registry.tags("trees")] == [
        ("1.0", "1.0"),
        ("1.0.1", "1.0.1"),
        ("dev", "1.0"),
    ]
    assert fetched(registry, "trees:1.0", tmp_path / "out") == first.read_bytes()


def test_unknown_addresses_list_what_there_is(registry: Registry, tmp_path: Path) -> None:
    assert "no archive at all" in refusal(registry, "trees:1.0", tmp_path)
    sent(registry, small_archive(tmp_path))
    assert "it has trees:1.0" in refusal(registry, "trees:2.0", tmp_path)
    assert "it has trees:1.0" in refusal(registry, f"trees@sha256:{'0' * 64}", tmp_path)
    assert "it has the models trees" in refusal(registry, "bushes:1.0", tmp_path)
    with pytest.raises(RegistryError, match="name a tag or a digest"):
        registry.find(parse_address("trees"))


def test_a_damaged_blob_is_refused_and_sent_again(registry: Registry, tmp_path: Path) -> None:
    archive = small_archive(tmp_path)
    blob = blob_of(sent(registry, archive).manifest)
    registry.store.write(blob.key, [b"we"])
    assert blob.key in refusal(registry, "trees:1.0", tmp_path / "out")
    assert sent(registry, archive).sent == (blob,)
    registry.store.write(blob.key, [b"WEIGHTS"])
    message = refusal(registry, "trees:1.0", tmp_path / "out")
    assert "is damaged" in message
    assert "--check-blobs" in message
    assert sent(registry, archive).sent == ()
    assert push(registry, archive, check_blobs=True, verify=unchecked).sent == (blob,)
    assert fetched(registry, "trees:1.0", tmp_path / "out") == archive.read_bytes()
    registry.store.delete(blob.key)
    assert "is missing" in refusal(registry, "trees:1.0", tmp_path / "out")


def test_a_damaged_manifest_is_refused(registry: Registry, tmp_path: Path) -> None:
    first, second = (
        sent(registry, small_archive(tmp_path, version)).manifest for version in ("1.0", "2.0")
    )
    registry.store.write(first.key, [second.to_json()])
    assert "describes another archive" in refusal(registry, "trees:1.0", tmp_path / "out")
    registry.store.write(first.key, [b"{"])
    assert "is damaged" in refusal(registry, "trees:1.0", tmp_path / "out")
    with pytest.raises(RegistryError, match="is damaged"):
        collect(registry, NOW)


def test_a_file_that_is_there_is_neither_fetched_nor_replaced(
    registry: Registry, tmp_path: Path
) -> None:
    archive = small_archive(tmp_path)
    sent(registry, archive)
    address = parse_address("trees:1.0")
    assert pull(registry, address, tmp_path, verify=unchecked).fetched_bytes == 0
    archive.write_bytes(b"another one")
    with pytest.raises(RegistryError, match="is there already, and is another archive"):
        pull(registry, address, tmp_path, verify=unchecked)
    assert archive.read_bytes() == b"another one"


def test_gc_removes_what_no_tag_needs(registry: Registry, tmp_path: Path) -> None:
    archive = small_archive(tmp_path, "2.0", weights=b"2")
    sent(registry, small_archive(tmp_path, "1.0", weights=b"1"), "trees:dev")
    sent(registry, archive, "trees:dev")
    sent(registry, archive, "trees:production")
    assert collect(registry, timedelta(days=1)).manifests == ()
    assert collect(registry, NOW, dry_run=True).num_bytes > 1
    removed = collect(registry, NOW)
    assert len(removed.manifests) == 1
    assert 1 < removed.num_bytes < len(SHARED_BYTES)
    assert collect(registry, NOW).blobs == ()
    assert fetched(registry, "trees:production", tmp_path / "out") == archive.read_bytes()
    assert len(history(registry.store, "trees", "dev")) == 2
    for tag in ("dev", "production"):
        registry.remove_tag(parse_address(f"trees:{tag}"))
    collect(registry, NOW)
    assert registry.store.keys("blobs") == registry.store.keys("uploads") == []


def test_gc_during_a_push_takes_nothing_from_it(registry: Registry, tmp_path: Path) -> None:
    """Its blobs have arrived, or were there already and no tag needs them any longer."""
    sent(registry, small_archive(tmp_path, "1.0", weights=b"1"), "trees:dev")
    registry.remove_tag(parse_address("trees:dev"))
    archive = small_archive(tmp_path, "2.0", weights=b"2")
    collections = []
    first_block = threading.Lock()

    def on_bytes(num_bytes: int, total: int) -> None:
        if first_block.acquire(blocking=False):
            collections.append(collect(registry, NOW))

    pushed = push(registry, archive, on_bytes=on_bytes, verify=unchecked)
    assert size(pushed.skipped) == len(SHARED_BYTES)
    assert len(collections[0].manifests) == 1
    assert fetched(registry, "trees:2.0", tmp_path / "out") == archive.read_bytes()


def test_a_push_waits_for_the_end_of_gc(registry: Registry, tmp_path: Path) -> None:
    pushing = threading.Thread(target=sent, args=(registry, small_archive(tmp_path)))
    with collection_in_progress(registry.store):
        pushing.start()
        while not registry.store.keys("uploads"):
            pass
        assert registry.store.keys("blobs") == []
    pushing.join(timeout=30)
    assert registry.find(parse_address("trees:1.0")).version == "1.0"


def test_a_failed_push_leaves_no_note(registry: Registry, tmp_path: Path) -> None:
    manifest = sent(registry, small_archive(tmp_path)).manifest
    with contextlib.suppress(KeyError), upload_in_progress(registry.store, manifest):
        assert len(registry.store.keys("uploads")) == 1
        raise KeyError
    assert registry.store.keys("uploads") == []
