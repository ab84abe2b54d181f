"""What few or one-sided data cannot show is said, and no policy is chosen that ignores a label."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from member_files import write_ensemble
from probe_ensemble import image, probes
from safetensors.torch import save_file
from torch import Tensor

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Panel
from torchserve_ensemble.tuning.evidence import (
    check_labels,
    evidence,
    images_needed,
    labels_note,
    proof_note,
)
from torchserve_ensemble.tuning.fitting import Outputs
from torchserve_ensemble.tuning.selection import apply, measure
from torchserve_ensemble.tuning.targets import parse_target

LABELS = ("ash", "birch", "cedar", "elm")


def outputs(task: Task, targets: Tensor, *, noise: float = 1.5, seed: int = 1) -> Outputs:
    """Three members that see the truth through noise of their own."""
    labels = targets.shape[1]
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn((3, *targets.shape), generator=generator)
    logits = 4 * (2 * targets.float() - 1) + noise * random
    scores = logits.softmax(dim=2) if task is Task.CLASSIFICATION else logits.sigmoid()
    panel = Panel(
        task=task,
        member_names=("a", "b", "c"),
        weights=torch.ones(3),
        member_thresholds=torch.full((3, labels), 0.5),
        thresholds=torch.full((labels,), 0.5),
    )
    return Outputs(panel, scores, logits, targets)


def classes(*counts: int) -> Tensor:
    """So many images of each label."""
    return torch.cat([torch.eye(len(counts)).bool()[i].expand(n, -1) for i, n in enumerate(counts)])


class TestLabels:
    def test_every_policy_can_answer_a_label_that_the_data_lack(self) -> None:
        seen = outputs(Task.CLASSIFICATION, classes(60, 60, 0, 60))
        found, learned = measure(seen, parse_target("accuracy>=0.9", Task.CLASSIFICATION), folds=3)
        assert "stacking" not in {each.candidate.name for each in found}
        new = outputs(Task.CLASSIFICATION, classes(0, 0, 20, 0), noise=0.1)
        for each in found:
            decisions = apply(each, new, learned).decisions
            assert decisions is not None
            assert bool(decisions[:, 2].all()), each.text

    @pytest.mark.parametrize("always", [True, False])
    def test_every_policy_can_answer_what_the_data_lack_of_a_multilabel(self, always: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        targets = torch.rand((120, 3), generator=generator) < 0.5
        targets[:, 1] = always
        seen = outputs(Task.MULTILABEL, targets)
        found, learned = measure(seen, parse_target("f1>=0.5", Task.MULTILABEL), folds=3)
        assert "stacking" not in {each.candidate.name for each in found}
        other = torch.full((20, 3), not always)
        new = outputs(Task.MULTILABEL, other, noise=0.1)
        for each in found:
            decisions = apply(each, new, learned).decisions
            assert decisions is not None
            assert bool((decisions[:, 1] == other[:, 1]).all()), each.text

    def test_stacking_stays_where_all_labels_are_there(self) -> None:
        seen = outputs(Task.CLASSIFICATION, classes(20, 20, 20, 20))
        found, _ = measure(seen, parse_target("accuracy>=0.9", Task.CLASSIFICATION), folds=3)
        assert "stacking" in {each.candidate.name for each in found}
        assert labels_note(seen, LABELS) is None

    def test_the_labels_are_named(self) -> None:
        note = labels_note(outputs(Task.CLASSIFICATION, classes(9, 0, 9, 0)), LABELS)
        assert note is not None
        assert note.startswith("no image shows 'birch', 'elm'")
        both = torch.tensor([[True, True, False], [True, False, False]])
        note = labels_note(outputs(Task.MULTILABEL, both), LABELS[:3])
        assert note is not None
        assert note.startswith("all images have the same answer for 'ash', 'cedar'")

    def test_a_label_with_fewer_images_than_folds_is_refused_by_name(self) -> None:
        seen = outputs(Task.CLASSIFICATION, classes(9, 2, 0, 4))
        with pytest.raises(
            SpecError, match="too few images for 5 folds: 'birch' has 2, 'elm' has 4"
        ):
            check_labels(seen, LABELS, 5)
        check_labels(seen, LABELS, 2)

    def test_the_only_label_is_refused_by_name(self) -> None:
        with pytest.raises(SpecError, match="all images show 'birch'; add images of another label"):
            check_labels(outputs(Task.CLASSIFICATION, classes(0, 9, 0, 0)), LABELS, 3)
        with pytest.raises(SpecError, match="all images show 'no tree'"):
            check_labels(outputs(Task.PRESENCE, NO), ("no tree", "tree"), 3)

    def test_presence_names_the_label_that_is_rare(self) -> None:
        seen = outputs(Task.PRESENCE, torch.cat([YES[:2], NO]))
        with pytest.raises(SpecError, match="too few images for 3 folds: 'tree' has 2"):
            check_labels(seen, ("no tree", "tree"), 3)


@pytest.mark.parametrize(
    ("share", "needed"), [(0.95, 59), (0.99, 299), (0.9, 29), (0.5, 5), (0.0, 0), (1.0, None)]
)
def test_how_many_right_answers_prove_a_share(share: float, needed: int | None) -> None:
    assert images_needed(share) == needed
    if needed:
        assert share**needed <= 0.05 < share ** (needed - 1)


YES, NO = torch.ones(10, 1).bool(), torch.zeros(30, 1).bool()


@pytest.mark.parametrize(
    ("text", "task", "targets", "available", "needed"),
    [
        ("recall>=0.95", Task.PRESENCE, torch.cat([YES, NO]), 10, 59),
        ("sensitivity>=0.99", Task.PRESENCE, torch.cat([YES, NO]), 10, 299),
        ("specificity>=0.95", Task.PRESENCE, torch.cat([YES, NO]), 30, 59),
        ("fpr<=0.01", Task.PRESENCE, torch.cat([YES, NO]), 30, 299),
        ("accuracy>=0.9", Task.PRESENCE, torch.cat([YES, NO]), 40, 29),
        ("precision>=0.9", Task.PRESENCE, torch.cat([YES, NO]), 10, 29),
        ("recall>=1", Task.PRESENCE, torch.cat([YES, NO]), 10, None),
        ("recall>=0.9", Task.MULTILABEL, torch.ones(7, 3).bool(), 21, 29),
        ("accuracy>=0.9", Task.CLASSIFICATION, classes(30, 5, 5), 40, 29),
        ("coverage>=0.9", Task.CLASSIFICATION, classes(30, 5, 5), 40, 29),
        # A mean over the labels is no better known than its least known part.
        ("recall>=0.9", Task.CLASSIFICATION, classes(30, 5, 9), 5, 29),
        ("precision>=0.9", Task.CLASSIFICATION, classes(30, 5, 9), 5, 29),
    ],
)
def test_what_counts_for_a_target(
    text: str, task: Task, targets: Tensor, available: int, needed: int | None
) -> None:
    found = evidence(parse_target(text, task), targets, targets, task)
    assert found is not None
    assert (found.available, found.needed) == (available, needed)


@pytest.mark.parametrize("text", ["maximise recall", "f1>=0.9"])
def test_what_is_no_bound_of_a_share_needs_no_number(text: str) -> None:
    target = parse_target(text, Task.PRESENCE)
    assert evidence(target, YES, YES, Task.PRESENCE) is None
    assert proof_note(target, None) is None


def test_too_few_images_prove_nothing_and_enough_may() -> None:
    target = parse_target("recall>=0.95", Task.PRESENCE)
    for number, enough in ((10, False), (58, False), (59, True), (600, True)):
        targets = torch.ones(number, 1).bool()
        note = proof_note(target, evidence(target, targets, targets, Task.PRESENCE))
        assert (note is None) == enough
    never = parse_target("specificity>=1", Task.PRESENCE)
    note = proof_note(never, evidence(never, NO, NO, Task.PRESENCE))
    assert note is not None
    assert "no number of images" in note


@pytest.mark.parametrize(("images", "proves"), [(10, False), (60, True)])
def test_the_command_says_how_many_images_are_needed(
    images: int, proves: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes(tmp_path, task="presence")
    for label, start in (("dark", 0.05), ("bright", 0.8)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(images):
            level = start + 0.15 * number / images
            (tmp_path / "data" / label / f"{number}.png").write_bytes(image(level))
    path = str(tmp_path / "ensemble.yaml")
    command = ["tune", path, "--data", str(tmp_path / "data"), "--target", "recall>=0.95"]
    report = tmp_path / "report"
    assert main([*command, "--no-nested", "--report", str(report)]) == 0
    told = capsys.readouterr().out
    words = "that proves nothing about recall>=0.95: there are 10 images with the label, and at 95%"
    assert (words in told) != proves
    assert ("at least 59" in told) != proves
    content = json.loads((report / "report.json").read_text())
    assert content["evidence"]["available"] == images
    assert content["evidence"]["needed"] == 59
    assert ("proves nothing" in (report / "report.html").read_text()) != proves


def test_the_command_names_a_label_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = """
        import torch
        from torch import nn

        class Thirds(nn.Module):
            def __init__(self, sharpness):
                super().__init__()
                self.unused = nn.Parameter(torch.zeros(()))
                self.sharpness = sharpness

            def forward(self, batch):
                level = batch.mean(dim=(1, 2, 3)).unsqueeze(1)
                return -self.sharpness * (level - torch.tensor([0.2, 0.5, 0.8])).square()
    """
    (tmp_path / "thirds.py").write_text(textwrap.dedent(code))
    members = []
    for name, sharpness in (("soft", 30.0), ("sharp", 60.0)):
        save_file({"unused": torch.zeros(())}, tmp_path / f"{name}.safetensors")
        members.append(
            {
                "name": name,
                "weights": f"{name}.safetensors",
                "architecture": "thirds.py:Thirds",
                "arguments": {"sharpness": sharpness},
            }
        )
    path = write_ensemble(tmp_path, members, labels=["dark", "gray", "bright"])
    for label, level in (("dark", 0.2), ("bright", 0.8)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "data" / label / f"{number}.png").write_bytes(image(level + number / 200))
    command = ["tune", str(path), "--data", str(tmp_path / "data"), "--target", "accuracy>=0.5"]
    assert main([*command, "--folds", "3", "--report", str(tmp_path / "report")]) == 0
    assert "note: no image shows 'gray'" in capsys.readouterr().out
    notes = json.loads((tmp_path / "report" / "report.json").read_text())["notes"]
    assert any("'gray'" in note for note in notes)
    assert "&#x27;gray&#x27;" in (tmp_path / "report" / "report.html").read_text()
