"""How often does a guarantee of `tune` fail? The whole of tuning, on simulated members.

Three members see the truth through noise, so that any number of fresh images can be drawn. Each
run draws other labelled images, tunes, and measures the written policy on 40,000 fresh images. The
share of runs whose policy misses the target must be at most one minus the confidence. The table
also shows the rule that looks natural and fails: the threshold that just meets the target on the
same held-out images. ``python -m benchmarks.guarantees --help`` lists the options; the result is
the table in docs/tuning.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from scipy.stats import binom

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Panel, one_hot
from torchserve_ensemble.handlers.spec import EnsembleSpec, parse_spec
from torchserve_ensemble.tuning.fitting import Outputs
from torchserve_ensemble.tuning.guarantee import percent
from torchserve_ensemble.tuning.labelled_data import LabelledData
from torchserve_ensemble.tuning.metrics import compute_metrics
from torchserve_ensemble.tuning.selection import combine, sweep
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.tune import Tuning, tune

NUM_FRESH_IMAGES = 40_000
FRAMES_PER_VIDEO = 5
SIGNAL, NOISE = 2.0, 2.0
"""Distance of a member's logits from 0, and their standard deviation."""


@dataclass(frozen=True)
class Setting:
    """One row of the table: a target, and the labelled images that are drawn in each run.

    Attributes:
        target: the target of `tune`.
        task: task of the ensemble.
        num_images: number of labelled images.
        labels: the ensemble's labels.
        has_videos: whether the images are frames of videos, and so belong to groups.
    """

    target: str
    task: Task
    num_images: int
    labels: tuple[str, ...]
    has_videos: bool = False

    @property
    def data(self) -> str:
        """The labelled images, in words."""
        if self.has_videos:
            return f"{self.num_images // FRAMES_PER_VIDEO} videos of {FRAMES_PER_VIDEO} frames"
        return f"{self.num_images} images"


PRESENCE = ("no", "yes")
SETTINGS = (
    Setting("recall>=0.95", Task.PRESENCE, 1000, PRESENCE),
    Setting("recall>=0.99", Task.PRESENCE, 2500, PRESENCE),
    Setting("precision>=0.9", Task.PRESENCE, 1000, PRESENCE),
    Setting("false_positive_rate<=0.05", Task.PRESENCE, 1000, PRESENCE),
    Setting("recall>=0.95", Task.PRESENCE, 2000, PRESENCE, has_videos=True),
    Setting("accuracy>=0.99", Task.CLASSIFICATION, 1000, ("a", "b", "c")),
    Setting("recall>=0.85", Task.CLASSIFICATION, 1000, ("a", "b", "c")),
    Setting("recall>=0.9", Task.MULTILABEL, 1000, ("a", "b", "c")),
)


@dataclass(frozen=True)
class Run:
    """The result of tuning once.

    Attributes:
        is_guaranteed: whether `tune` guaranteed the target, and so wrote the policy.
        value: the metric of the policy on fresh images.
        complement: the metric that it is traded against.
        naive_value: the metric on fresh images with the threshold that just meets the target on
            the held-out images.
    """

    is_guaranteed: bool
    value: float
    complement: float
    naive_value: float


def spec_of(setting: Setting) -> EnsembleSpec:
    """An ensemble of three members that never run."""
    members = "".join(
        f"  - {{name: {name}, weights: {name}.safetensors, architecture: m.py:Member}}\n"
        for name in "abc"
    )
    labels = ", ".join(f'"{label}"' for label in setting.labels)
    text = (
        f'name: simulated\nversion: "1.0"\ntask: {setting.task}\nlabels: [{labels}]\n'
        f"preprocessing:\n  small: {{resize: [2, 2]}}\nmembers:\n{members}"
    )
    return parse_spec(text, source="simulated")


def draw(setting: Setting, num_images: int, seed: int) -> Outputs:
    """Scores of three members on images that are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = 1 if setting.task is Task.PRESENCE else len(setting.labels)
    frames = FRAMES_PER_VIDEO if setting.has_videos else 1
    videos = num_images // frames
    if setting.task is Task.CLASSIFICATION:
        targets = one_hot(torch.rand(videos, labels, generator=generator))
    else:
        targets = torch.rand(videos, labels, generator=generator) < 0.4
    targets = targets.repeat_interleave(frames, dim=0)
    noise = torch.randn(3, num_images, labels, generator=generator)
    if setting.has_videos:
        # Nine tenths of the variance are common to the frames of a video.
        of_video = torch.randn(3, videos, labels, generator=generator)
        noise = 0.1**0.5 * noise + 0.9**0.5 * of_video.repeat_interleave(frames, dim=1)
    logits = SIGNAL * (2 * targets.float() - 1) + NOISE * noise
    scores = logits.softmax(dim=2) if setting.task is Task.CLASSIFICATION else logits.sigmoid()
    panel = Panel(
        task=setting.task,
        member_names=("a", "b", "c"),
        weights=torch.ones(3),
        member_thresholds=torch.full((3, labels), 0.5),
        thresholds=torch.full((labels,), 0.5),
    )
    groups = torch.arange(num_images) // frames if setting.has_videos else None
    return Outputs(panel, scores, logits, targets, groups)


def runs(setting: Setting, num_runs: int) -> Iterator[Run]:
    """Tune on fresh labelled images again and again."""
    spec = spec_of(setting)
    target = parse_target(setting.target, setting.task)
    paths = tuple(Path(f"{index}.png") for index in range(setting.num_images))
    for seed in range(num_runs):
        outputs = draw(setting, setting.num_images, seed)
        data = LabelledData("simulated", paths, outputs.targets, "", outputs.groups)
        tuning = tune(spec, data, outputs, target, folds=3, seed=seed, report=False)
        fresh = draw(setting, NUM_FRESH_IMAGES, 10**6 + seed)
        applied = tuning.fitted.apply(tuning.held_out)
        naive = sweep(tuning.chosen.candidate, applied, tuning.fitted).best(target)
        yield Run(
            is_guaranteed=tuning.reached,
            value=true_metric(tuning, tuning.operating_point.value, fresh, target.metric),
            complement=true_metric(tuning, tuning.operating_point.value, fresh, target.complement),
            naive_value=true_metric(tuning, naive, fresh, target.metric),
        )


def true_metric(tuning: Tuning, value: float | None, fresh: Outputs, metric: str) -> float:
    """A metric of the chosen policy on fresh images, as the guarantee counts it."""
    outcome = combine(tuning.chosen.candidate, value, tuning.fitted.apply(fresh), tuning.fitted)
    guarantee = tuning.operating_point.guarantee
    assert guarantee is not None
    if metric == guarantee.claim.target.metric:
        return guarantee.claim.evidence(outcome, fresh.targets, fresh.groups).value
    task = fresh.panel.task
    metrics = compute_metrics(
        outcome.scores, outcome.decisions, fresh.targets, task, with_areas=False
    )
    return metrics.values[metric]


def row(setting: Setting, results: list[Run], confidence: float) -> str:
    """A row of the table."""
    target = parse_target(setting.target, setting.task)
    guaranteed = [each for each in results if each.is_guaranteed]
    missed = sum(not target.meets({target.metric: each.value}) for each in guaranteed)
    naive = sum(not target.meets({target.metric: each.naive_value}) for each in results)
    limit = int(binom.ppf(0.999, len(results), 1 - confidence))
    values = median(each.value for each in guaranteed) if guaranteed else float("nan")
    complements = median(each.complement for each in guaranteed) if guaranteed else float("nan")
    return (
        f"| {setting.task}, {setting.data} | `{setting.target}` "
        f"| {len(guaranteed)} of {len(results)} | {missed} (up to {limit}) | {naive} "
        f"| {values:.4f} | {target.complement} {complements:.4f} |"
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="for each row (default: 200)")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of the rows, from 0")
    arguments = parser.parse_args()
    confidence = 0.95
    print(
        f"| labelled data | target at {percent(confidence)} confidence | guaranteed | of these the "
        "target is missed | missed by the threshold that just meets it | median of the metric "
        "| traded against it |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for number, setting in enumerate(SETTINGS):
        if arguments.rows is None or number in arguments.rows:
            results = list(
                track(
                    runs(setting, arguments.runs),
                    setting.target,
                    total=arguments.runs,
                    console=Console(stderr=True),
                )
            )
            print(row(setting, results, confidence), flush=True)


if __name__ == "__main__":
    main()
