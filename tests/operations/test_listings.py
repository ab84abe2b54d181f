"""Folders of archives: what is complete is listed, what is damaged is reported once."""

from __future__ import annotations

from pathlib import Path

from probe_archives import build_probe

from torchserve_ensemble.operations.listings import FolderListing, ListedArchive, newest


def test_a_damaged_archive_is_reported_once_and_a_copy_in_progress_is_waited_for(
    tmp_path: Path,
) -> None:
    whole = build_probe(tmp_path / "spec", tmp_path / "elsewhere", "1.0").read_bytes()
    folder = tmp_path / "store"
    folder.mkdir()
    reports: list[str] = []
    listing = FolderListing(folder, None, reports.append)
    copied = folder / "probes-1.0.mar"
    for part in (whole[:1000], whole[:2000]):
        copied.write_bytes(part)
        assert listing.poll() == []
    assert reports == [], "a file that still changes is not judged"
    (folder / ".hidden.mar").write_bytes(b"")
    (folder / "probes-1.0.applied-12.mar").write_bytes(b"")
    for _ in range(3):
        assert listing.poll() == []
    assert len(reports) == 1
    assert "probes-1.0.mar: it does not end as a model archive does" in reports[0]
    copied.write_bytes(whole)
    (found,) = listing.poll()
    assert (found.name, found.version) == ("probes", "1.0")
    (folder / "moved").write_bytes(whole)
    (folder / "moved").replace(folder / "again.mar")
    assert len(listing.poll()) == 2, "a file that was moved there is complete at once"
    copied.unlink()
    assert len(listing.poll()) == 1


def test_versions_are_compared_as_numbers() -> None:
    archives = [
        ListedArchive("m", version, f"{version}.mar", version) for version in ("1.9", "1.10", "0.1")
    ]
    archives.append(ListedArchive("n", "3", "n.mar", "3"))

    def chosen(latest: int, *versions: str) -> dict[str, list[str]]:
        models = newest(archives, latest, versions)
        return {name: [each.version for each in model] for name, model in models.items()}

    assert chosen(1) == {"m": ["1.10"], "n": ["3"]}
    assert chosen(2) == {"m": ["1.10", "1.9"], "n": ["3"]}
    assert chosen(1, "0.1", "1.9") == {"m": ["1.9", "0.1"]}
