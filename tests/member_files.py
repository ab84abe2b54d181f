"""Helpers for the tests of members: a small network, its files, and specs that name them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from torchserve_ensemble.handlers.base.errors import MemberError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.members.loading import LoadedMember, check_member, load_member
from torchserve_ensemble.handlers.spec import EnsembleSpec, Member, Preprocessing

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)
CODE = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, outputs=3):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(16, outputs)

        def forward(self, x):
            return self.head(self.features(x).flatten(1))
"""


class Net(nn.Module):
    """The network whose source is also in `CODE`."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


class Planted:
    """An object that makes a folder when it is unpickled, which shows that its code ran."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def net(outputs: int = 3) -> Net:
    """Make the network; each call gives the same weights."""
    torch.manual_seed(0)
    return Net(outputs).eval()


def write_code(folder: Path, code: str = CODE, name: str = "net.py") -> None:
    """Write a Python file with the code of an architecture."""
    (folder / name).write_text(textwrap.dedent(code))


def batch(num_samples: int = 3) -> Tensor:
    """Make a batch of inputs; each call gives the same numbers."""
    return torch.rand((num_samples, *SHAPE), generator=torch.Generator().manual_seed(1))


def member(weights: str, **settings: Any) -> Member:
    """Make the member ``first`` of a spec; a state dict gets the network's architecture."""
    if weights.endswith((".safetensors", ".pth")):
        settings.setdefault("architecture", "net.py:Net")
    return Member(name="first", weights=weights, **settings)


def spec_of(one: Member, *, task: Task = Task.CLASSIFICATION, labels: int = 3) -> EnsembleSpec:
    """Make the spec of an ensemble with a single member."""
    return EnsembleSpec(
        name="trees",
        version="1.0",
        task=task,
        labels=tuple(f"label{index}" for index in range(labels)),
        members=(one,),
        preprocessing={"small": Preprocessing(crop=4)},
    )


def write_ensemble(
    folder: Path, members: Sequence[Mapping[str, object]], **settings: object
) -> Path:
    """Write the spec of an ensemble whose members take 4 x 4 pixels.

    They run with torch unless `settings` say otherwise, so that a build is quick.

    Args:
        folder: folder for ``ensemble.yaml``.
        members: keys of each member.
        settings: further keys of the spec, which replace the default ones.
    """
    content = {
        "name": "trees",
        "version": "1.0",
        "task": "classification",
        "labels": ["a", "b", "c"],
        "preprocessing": {"small": {"resize": [4, 4]}},
        "members": [dict(each) for each in members],
        **({"runtime": {"engine": "torch"}} | settings),
    }
    path = folder / "ensemble.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def load(folder: Path, weights: str, **settings: Any) -> LoadedMember:
    """Load a member from a weights file."""
    one = member(weights, **settings)
    return load_member(spec_of(one), one, folder, CPU)


def load_error(folder: Path, weights: str, **settings: Any) -> str:
    """Load a member, which must fail, and return the message.

    The message must name the ensemble and the member.
    """
    with pytest.raises(MemberError) as caught:
        load(folder, weights, **settings)
    message = str(caught.value)
    assert message.startswith("ensemble 'trees', member 'first': ")
    return message


def check(loaded: LoadedMember, *, weights: str = "w.pt", **settings: Any) -> None:
    """Make the check that a build makes of every member.

    Args:
        loaded: the member.
        weights: name of its weights file, which messages quote.
        settings: the task, the number of labels, and keys of the member.
    """
    task = settings.pop("task", Task.CLASSIFICATION)
    labels = settings.pop("labels", 3)
    one = member(weights, **settings)
    check_member(loaded, spec_of(one, task=task, labels=labels), one, batch())
