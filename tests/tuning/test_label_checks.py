"""Labels that the data cannot show anything about are named, and no policy ignores them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from member_files import write_ensemble
from probe_ensemble import image
from safetensors.torch import save_file
from simulated_outputs import outputs_of, scores_of
from torch import Tensor

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.tuning.fitting import Outputs
from torchserve_ensemble.tuning.label_checks import check_labels, labels_note
from torchserve_ensemble.tuning.selection import apply, measure
from torchserve_ensemble.tuning.targets import parse_target

LABELS = ("ash", "birch", "cedar", "elm")


def simulated(task: Task, targets: Tensor, *, noise: float = 1.5, seed: int = 1) -> Outputs:
    """Three members that see the truth through noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn((3, *targets.shape), generator=generator)
    logits = 4 * (2 * targets.float() - 1) + noise * random
    return outputs_of(task, scores_of(task, logits), logits, targets)


def check(outputs: Outputs, labels: tuple[str, ...], folds: int) -> None:
    check_labels(outputs.targets, outputs.groups, outputs.panel.task, labels, folds)


YES, NO = torch.ones(10, 1).bool(), torch.zeros(30, 1).bool()


def classes(*counts: int) -> Tensor:
    """So many images of each label."""
    return torch.cat([torch.eye(len(counts)).bool()[i].expand(n, -1) for i, n in enumerate(counts)])


class TestLabels:
    def test_every_policy_can_answer_a_label_that_the_data_lack(self) -> None:
        outputs = simulated(Task.CLASSIFICATION, classes(60, 60, 0, 60))
        results, fitted = measure(
            outputs, parse_target("accuracy>=0.9", Task.CLASSIFICATION), folds=3
        )
        assert "stacking" not in {each.candidate.name for each in results}
        new = simulated(Task.CLASSIFICATION, classes(0, 0, 20, 0), noise=0.1)
        for each in results:
            decisions = apply(each, new, fitted).decisions
            assert decisions is not None
            assert bool(decisions[:, 2].all()), each.text

    @pytest.mark.parametrize("always", [True, False])
    def test_every_policy_can_answer_what_the_data_lack_of_a_multilabel(self, always: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        targets = torch.rand((120, 3), generator=generator) < 0.5
        targets[:, 1] = always
        outputs = simulated(Task.MULTILABEL, targets)
        results, fitted = measure(outputs, parse_target("f1>=0.5", Task.MULTILABEL), folds=3)
        assert "stacking" not in {each.candidate.name for each in results}
        other = torch.full((20, 3), not always)
        new = simulated(Task.MULTILABEL, other, noise=0.1)
        for each in results:
            decisions = apply(each, new, fitted).decisions
            assert decisions is not None
            assert bool((decisions[:, 1] == other[:, 1]).all()), each.text

    def test_stacking_stays_where_all_labels_are_there(self) -> None:
        outputs = simulated(Task.CLASSIFICATION, classes(20, 20, 20, 20))
        results, _ = measure(outputs, parse_target("accuracy>=0.9", Task.CLASSIFICATION), folds=3)
        assert "stacking" in {each.candidate.name for each in results}
        assert labels_note(outputs, LABELS) is None

    def test_the_labels_are_named(self) -> None:
        note = labels_note(simulated(Task.CLASSIFICATION, classes(9, 0, 9, 0)), LABELS)
        assert note is not None
        assert note.startswith("no image shows 'birch', 'elm'")
        both = torch.tensor([[True, True, False], [True, False, False]])
        note = labels_note(simulated(Task.MULTILABEL, both), LABELS[:3])
        assert note is not None
        assert note.startswith("all images have the same answer for 'ash', 'cedar'")

    def test_a_label_with_fewer_images_than_folds_is_refused_by_name(self) -> None:
        outputs = simulated(Task.CLASSIFICATION, classes(9, 2, 0, 4))
        with pytest.raises(
            SpecError, match="too few images for 5 folds .*'birch' has 2, 'elm' has 4"
        ):
            check(outputs, LABELS, 5)
        check(outputs, LABELS, 2)

    def test_the_only_label_is_refused_by_name(self) -> None:
        with pytest.raises(SpecError, match="all images show 'birch'; add images of another label"):
            check(simulated(Task.CLASSIFICATION, classes(0, 9, 0, 0)), LABELS, 3)
        with pytest.raises(SpecError, match="all images show 'no tree'"):
            check(simulated(Task.PRESENCE, NO), ("no tree", "tree"), 3)

    def test_presence_names_the_label_that_is_rare(self) -> None:
        outputs = simulated(Task.PRESENCE, torch.cat([YES[:2], NO]))
        with pytest.raises(SpecError, match="too few images for 3 folds .*'tree' has 2"):
            check(outputs, ("no tree", "tree"), 3)


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
