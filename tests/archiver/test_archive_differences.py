"""What differs between two archives is found, and what makes no difference is not."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from archive_pairs import Edit, build
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from torchserve_ensemble.archiver.archive_differences import ArchiveDifferences, compare_archives
from torchserve_ensemble.archiver.difference_sections import archive_sections
from torchserve_ensemble.archiver.tensor_differences import tensor_changes
from torchserve_ensemble.handlers.archive.mar_file import zip_entry
from torchserve_ensemble.handlers.archive.record import ArchiveRecord, sha256_of_bytes
from torchserve_ensemble.handlers.base.archive_layout import RECORD
from torchserve_ensemble.handlers.base.errors import ArchiveError, MemberError
from torchserve_ensemble.handlers.spec import WeightsFormat

SAFETENSORS = WeightsFormat.SAFETENSORS


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("archives") / "first", task="presence")


def compared(first: Path, folder: Path, edit: Edit) -> tuple[ArchiveDifferences, str]:
    """Compare with an archive after an edit; return the differences and their lines."""
    differences = compare_archives(first, build(folder / "second", edit, task="presence"))
    json.dumps(differences.to_json(), allow_nan=False)
    sections = archive_sections(differences)
    lines = [f"{each.title}: {line}" for each in sections for line in each.lines]
    return differences, "\n".join(lines)


def defaults_written_out(spec: dict[str, Any], folder: Path) -> None:
    spec["threshold"] = 0.5
    spec["policies"] = {"default": "mean", "lazy": False}
    spec["failures"] = {"on_failure": "fail"}
    for member in spec["members"]:
        member |= {
            "temperature": 1.0,
            "format": "safetensors",
            "output": "logits",
            "threshold": {"bright": 0.5},
            "preprocessing": {"resize": 2, "crop": [2, 2], "mean": [0.0], "value_range": [0, 1]},
        }
    spec["preprocessing"] = {}
    for key in reversed(list(spec)):
        spec[key] = spec.pop(key)


def test_how_a_spec_is_written_makes_no_difference(tmp_path: Path) -> None:
    def exact(spec: dict[str, Any], folder: Path) -> None:
        spec["preprocessing"] = {"small": {"resize": 2, "crop": 2}}

    one = build(tmp_path / "one", exact, task="presence")
    other = build(tmp_path / "other", defaults_written_out, task="presence")
    differences = compare_archives(one, other)
    assert differences.before.record.digest != differences.after.record.digest
    assert differences.is_equal, differences.to_json()
    assert archive_sections(differences) == []


def set_key(*place: Any, value: Any) -> Edit:
    def edit(spec: dict[str, Any], folder: Path) -> None:
        content: Any = spec
        for key in place[:-1]:
            content = content.setdefault(key, {}) if isinstance(content, dict) else content[key]
        content[place[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (set_key("version", value="2.0"), 'settings: version: "1.0" -> "2.0"'),
        (set_key("threshold", value=0.7), "settings: threshold.bright: 0.5 -> 0.7"),
        (set_key("threshold", value=0.7), "settings: members.b.threshold.bright: 0.5 -> 0.7"),
        (set_key("members", 1, "temperature", value=2), "members.b.temperature: 1.0 -> 2.0"),
        (set_key("members", 1, "voting_weight", value=2), "members.b.voting_weight: 1.0 -> 2.0"),
        (set_key("policies", "default", value="any"), 'policies.default: "mean" -> "any"'),
        (set_key("policies", "named", value={"x": "all"}), 'policies.named.x: "all" (was unset)'),
        (set_key("limits", "max_samples", value=9), "limits.max_samples: 256 -> 9"),
        (set_key("runtime", "threads", value=3), "runtime.threads: 3 (was unset)"),
        (set_key("serving", "workers", value=3), "serving.workers: 1 -> 3"),
        (
            set_key("preprocessing", "small", "mean", value=[0.5]),
            "members.a.preprocessing.mean: [0.0, 0.0, 0.0] -> [0.5, 0.5, 0.5]",
        ),
        (
            set_key("labels", value=["dim", "bright"]),
            "labels: 2 -> 2; added dim; removed dark",
        ),
        (
            set_key("labels", value=["bright", "dark"]),
            "labels: their order changes, and so what each output of a member means",
        ),
        (set_key("provenance", "owner", value="me"), 'provenance.owner: "me" (was unset)'),
    ],
)
def test_settings(first: Path, tmp_path: Path, edit: Edit, line: str) -> None:
    differences, lines = compared(first, tmp_path, edit)
    assert line in lines
    assert not differences.is_equal
    assert not differences.weights
    assert not differences.files


def test_members_that_come_and_go(first: Path, tmp_path: Path) -> None:
    def edit(spec: dict[str, Any], folder: Path) -> None:
        spec["members"][2]["name"] = "new"
        spec["members"].reverse()

    _, lines = compared(first, tmp_path, edit)
    assert "members: added: new (probe.py:Probe, c.safetensors)" in lines
    assert "members: removed: c (probe.py:Probe, c.safetensors)" in lines
    assert "settings" not in lines


def test_weights_by_tensor(first: Path, tmp_path: Path) -> None:
    def edit(spec: dict[str, Any], folder: Path) -> None:
        save_file({"bound": torch.tensor(0.75)}, folder / "b.safetensors")

    differences, lines = compared(first, tmp_path, edit)
    assert lines == (
        "weights of b (b.safetensors): 1 of 1 tensors differ\n"
        "weights of b (b.safetensors): bound: float32 [], largest change 0.25 of values up to 0.5, "
        "1 of 1 elements"
    )
    (change,) = differences.weights
    assert change.tensors is not None
    assert change.tensors[0].largest == 0.25


def test_another_format_of_equal_tensors_is_equal(first: Path, tmp_path: Path) -> None:
    def edit(spec: dict[str, Any], folder: Path) -> None:
        torch.save(load_file(folder / "b.safetensors"), folder / "b.pth")
        spec["members"][1]["weights"] = "b.pth"

    differences, lines = compared(first, tmp_path, edit)
    assert differences.weights[0].tensors == ()
    assert 'members.b.weights: "b.safetensors" -> "b.pth"' in lines
    assert "all 1 tensors are equal; only the files differ" in lines


def test_code_is_compared_as_text(first: Path, tmp_path: Path) -> None:
    def edit(spec: dict[str, Any], folder: Path) -> None:
        code = (folder / "probe.py").read_text()
        (folder / "probe.py").write_text(code.replace("logit = 10 *", "logit = 20 *"))
        (folder / "table.bin").write_bytes(b"\x00")
        spec["extra_files"] = ["table.bin"]

    differences, lines = compared(first, tmp_path, edit)
    assert "code probe.py: changed: -        logit = 10 * (brightness - self.bound)" in lines
    assert "code probe.py: changed: +        logit = 20 * (brightness - self.bound)" in lines
    assert "files: table.bin: added" in lines
    assert not differences.weights


def test_the_toolkit_and_packages_in_one_line_each(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "other.mar"
    with zipfile.ZipFile(first) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = ArchiveRecord.from_json(contents.pop(RECORD).decode(), source="first")
    contents["handlers/service.py"] += b"# changed\n"
    contents["handlers/further.py"] = b""
    contents["requirements.txt"] += b"onnxruntime>=1.18\n"
    digests = {name: sha256_of_bytes(content) for name, content in contents.items()}
    built_with = dict(record.built_with) | {"torch": "9.9"}
    contents[RECORD] = ArchiveRecord(digests, built_with).to_json().encode()
    with zipfile.ZipFile(second, "w") as archive:
        for name in sorted(contents):
            archive.writestr(zip_entry(name), contents[name])
    differences = compare_archives(first, second)
    by_title = {each.title: each.lines for each in archive_sections(differences)}
    assert by_title == {
        "packages that the server needs": ("onnxruntime: none -> >=1.18",),
        "built with": (f"torch: {record.built_with['torch']} -> 9.9",),
        "the toolkit's own code": ("1 files changed, 1 added, 0 removed",),
    }


def test_damaged_archives_are_refused(first: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mar"
    damaged.write_bytes(first.read_bytes()[:-7])
    for pair in ((first, damaged), (damaged, first)):
        with pytest.raises(ArchiveError, match=r"damaged.mar: it does not end as a model archive"):
            compare_archives(*pair)
    with pytest.raises(ArchiveError, match="no such archive"):
        compare_archives(first, tmp_path / "missing.mar")


def test_an_extracted_archive_is_equal_to_its_file(first: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "extracted")
    assert compare_archives(first, tmp_path / "extracted").is_equal


def changes_of(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> Any:
    save_file(before, folder / "before")
    save_file(after, folder / "after")
    return tensor_changes((folder / "before", SAFETENSORS), (folder / "after", SAFETENSORS))


def test_tensors_of_other_shapes_types_and_numbers(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    before = {
        "gone": torch.ones(1),
        "shape": torch.ones(2),
        "type": torch.ones(2),
        "nan": torch.tensor([nan, 1.0, inf]),
        "broken": torch.tensor([1.0, 2.0]),
        "large": torch.tensor([2**60, 5]),
        "equal": torch.ones(3),
        "empty": torch.zeros(0),
    }
    after = {
        "new": torch.ones(1),
        "shape": torch.ones(3),
        "type": torch.ones(2, dtype=torch.float64),
        "nan": torch.tensor([nan, 3.0, inf]),
        "broken": torch.tensor([1.0, nan]),
        "large": torch.tensor([2**60, 9]),
        "equal": torch.ones(3),
        "empty": torch.zeros(0),
    }
    changes, num_equal = changes_of(tmp_path, before, after)
    found = {each.name: each for each in changes}
    assert num_equal == 2
    assert set(found) == {"gone", "new", "shape", "type", "nan", "broken", "large"}
    assert (found["gone"].after, found["new"].before) == (None, None)
    assert (found["shape"].before, found["shape"].after) == ("float32 [2]", "float32 [3]")
    assert (found["type"].after, found["type"].changed) == ("float64 [2]", 0)
    assert (found["nan"].largest, found["nan"].changed, found["nan"].scale) == (2.0, 1, 1.0)
    assert (found["broken"].largest, found["broken"].changed) == (None, 1)
    assert found["large"].largest == 4


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=20, max_size=20),
)
@settings(max_examples=30, deadline=None)
def test_the_largest_change_is_that_of_the_elements(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], others: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    one, other = torch.tensor(values), torch.tensor(others[: len(values)])
    changes, _ = changes_of(folder, {"w": one}, {"w": other})
    expected = max(abs(a - b) for a, b in zip(one.tolist(), other.tolist(), strict=True))
    assert (changes[0].largest if changes else 0.0) == expected


def test_a_damaged_file_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\x00" * 50)
    with pytest.raises(MemberError, match="bad is not a whole safetensors file"):
        tensor_changes((tmp_path / "bad", SAFETENSORS), (tmp_path / "bad", SAFETENSORS))
