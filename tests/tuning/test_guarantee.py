"""Guarantees: what they count, that they hold as often as they say, and where they are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from probe_ensemble import probes
from scipy.stats import binom, norm
from simulated_outputs import outputs_of, scores_of
from torch import Tensor

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Outcome, one_hot
from torchserve_ensemble.handlers.spec import load_spec
from torchserve_ensemble.tuning.fitting import Outputs
from torchserve_ensemble.tuning.guarantee import Claim, Guarantee
from torchserve_ensemble.tuning.labelled_data import LabelledData
from torchserve_ensemble.tuning.metrics import compute_metrics
from torchserve_ensemble.tuning.risk_bounds import Method, num_passed, p_value
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.tune import Tuning, split, tune

RUNS = 200


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def claim(
    text: str, task: Task = Task.PRESENCE, *, confidence: float = 0.95, is_grouped: bool = False
) -> Claim:
    return Claim(parse_target(text, task), task, confidence, is_grouped)


def classes(*counts: int) -> Tensor:
    """So many images of each label."""
    return torch.cat([torch.eye(len(counts)).bool()[i].expand(n, -1) for i, n in enumerate(counts)])


YES, NO = torch.ones(10, 1).bool(), torch.zeros(30, 1).bool()
BOTH = torch.cat([YES, NO])


@pytest.mark.parametrize(
    ("text", "task", "targets", "available", "needed"),
    [
        ("recall>=0.95", Task.PRESENCE, BOTH, 10, 59),
        ("sensitivity>=0.99", Task.PRESENCE, BOTH, 10, 299),
        ("specificity>=0.95", Task.PRESENCE, BOTH, 30, 59),
        ("fpr<=0.01", Task.PRESENCE, BOTH, 30, 299),
        ("accuracy>=0.9", Task.PRESENCE, BOTH, 40, 29),
        ("recall>=1", Task.PRESENCE, BOTH, 10, None),
        # Labels of one image depend on one another: it counts once.
        ("recall>=0.9", Task.MULTILABEL, torch.ones(7, 3).bool(), 7, 29),
        ("accuracy>=0.9", Task.CLASSIFICATION, classes(30, 5, 5), 40, 29),
        ("coverage>=0.9", Task.CLASSIFICATION, classes(30, 5, 5), 40, 29),
        # A mean over labels: as many images of each label as the rarest has.
        ("recall>=0.9", Task.CLASSIFICATION, classes(30, 5, 9), 15, 29),
        ("f1>=0.9", Task.CLASSIFICATION, classes(30, 5, 9), 44, 30),
        ("rmse<=2", Task.REGRESSION, torch.zeros(20, 1), 20, 30),
    ],
)
def test_what_counts_for_a_target(
    text: str, task: Task, targets: Tensor, available: int, needed: int | None
) -> None:
    wish = claim(text, task)
    assert (wish.num_available(targets, None), wish.num_needed()) == (available, needed)
    if needed is None or available < needed:
        words = "never an exception" if needed is None else f"at least {needed} held-out"
        with pytest.raises(SpecError, match=words):
            wish.check(targets, None)
    else:
        wish.check(targets, None)


def test_groups_count_once() -> None:
    groups = torch.arange(40) // 5
    assert claim("recall>=0.9", is_grouped=True).num_available(BOTH, groups) == 2
    assert claim("specificity>=0.9", is_grouped=True).num_available(BOTH, groups) == 6


@pytest.mark.parametrize(
    ("text", "task", "grouped", "method"),
    [
        ("recall>=0.9", Task.PRESENCE, False, Method.BINOMIAL),
        ("f1>=0.9", Task.PRESENCE, False, Method.BINOMIAL),
        ("recall>=0.9", Task.PRESENCE, True, Method.HOEFFDING_BENTKUS),
        ("f1>=0.9", Task.PRESENCE, True, Method.BOOTSTRAP),
        ("recall>=0.9", Task.MULTILABEL, False, Method.HOEFFDING_BENTKUS),
        ("accuracy>=0.9", Task.CLASSIFICATION, False, Method.BINOMIAL),
        ("precision>=0.9", Task.CLASSIFICATION, False, Method.HOEFFDING_BENTKUS),
        ("precision>=0.9", Task.CLASSIFICATION, True, Method.BOOTSTRAP),
        ("mae<=1", Task.REGRESSION, False, Method.BOOTSTRAP),
    ],
)
def test_each_metric_has_the_bound_that_fits(
    text: str, task: Task, grouped: bool, method: Method
) -> None:
    assert claim(text, task, is_grouped=grouped).method is method


@pytest.mark.parametrize(
    ("task", "labels", "metrics"),
    [
        (Task.PRESENCE, 1, ("recall", "precision", "specificity", "accuracy", "f1")),
        (Task.CLASSIFICATION, 4, ("accuracy", "coverage", "f1")),
        (Task.MULTILABEL, 3, ("accuracy", "f1")),
    ],
)
def test_what_is_guaranteed_is_the_metric_itself(
    task: Task, labels: int, metrics: tuple[str, ...]
) -> None:
    scores = torch.rand(200, labels, generator=generator())
    noise = torch.rand(200, labels, generator=generator(1))
    targets = (scores + noise) > 1
    decisions = scores >= 0.5
    if task is Task.CLASSIFICATION:
        targets, decisions = one_hot(scores + noise), one_hot(scores)
        decisions[:20] = False
    expected = compute_metrics(scores, decisions, targets, task).values
    for metric in metrics:
        wish = claim(f"{metric}>=0.5", task)
        evidence = wish.evidence(Outcome(scores, decisions), targets, None)
        assert evidence.value == pytest.approx(expected[metric]), metric
        assert evidence.bound < expected[metric], metric
        assert (evidence.p_value <= 0.05) == (evidence.bound >= 0.5), metric
    if task is Task.PRESENCE:
        wish = claim("fpr<=0.5")
        evidence = wish.evidence(Outcome(scores, decisions), targets, None)
        assert evidence.value == pytest.approx(expected["false_positive_rate"])
        assert evidence.bound > evidence.value


def test_answers_that_do_not_exist_show_no_precision() -> None:
    decisions = torch.zeros_like(BOTH)
    evidence = claim("precision>=0.5").evidence(Outcome(BOTH.float(), decisions), BOTH, None)
    assert (evidence.p_value, evidence.num_units, evidence.bound) == (1, 0, 0)
    guarantee = Guarantee(claim("precision>=0.5"), evidence, num_tested=1, holds=False)
    assert str(guarantee).startswith("Not guaranteed: precision>=0.5 with 95 % confidence.")
    assert str(guarantee).endswith("It takes at least 5 of them.")


def test_the_margin_is_what_passes() -> None:
    wish = claim("recall>=0.9")
    for positives in (29, 100, 1000):
        bound = wish.target_with_margin(positives).bound
        assert bound is not None
        misses = round((1 - bound) * positives)
        assert binom.cdf(misses, positives, 0.1) <= 0.05 < binom.cdf(misses + 1, positives, 0.1)


# The strictest threshold first. Scores of positives are normal around 1.5, those of negatives
# around 0, so that every metric is known for all images.
THRESHOLDS = torch.linspace(-1.0, 2.5, 51)
Draw = Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor | None]]


def independent_images(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    targets = torch.rand(300, 1, generator=draws) < 0.4
    return targets * 1.5 + torch.randn(300, 1, generator=draws), targets, None


def videos(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """100 videos of 20 frames, most of whose noise is common to a video."""
    targets = (torch.rand(100, generator=draws) < 0.8).repeat_interleave(20).unsqueeze(1)
    of_video = torch.randn(100, generator=draws).repeat_interleave(20).unsqueeze(1)
    noise = 0.95**0.5 * of_video + 0.05**0.5 * torch.randn(2000, 1, generator=draws)
    return targets * 1.5 + noise, targets, torch.arange(100).repeat_interleave(20)


def true_recall(threshold: float) -> float:
    return float(norm.cdf(1.5 - threshold))


def true_specificity(threshold: float) -> float:
    return float(norm.cdf(threshold))


def true_precision(threshold: float) -> float:
    hits = 0.4 * true_recall(threshold)
    return hits / (hits + 0.6 * (1 - true_specificity(threshold)))


def guaranteed_threshold(
    wish: Claim, scores: Tensor, targets: Tensor, groups: Tensor | None, order: Tensor
) -> float | None:
    """The last threshold that passes, by the test of `tune`; None if none does."""

    def test(threshold: Tensor) -> float:
        losses = wish.losses(scores >= threshold, targets, groups)
        return p_value(losses, wish.max_loss, wish.method)

    passed = num_passed(map(test, order), wish.confidence)
    return float(order[passed - 1]) if passed else None


@pytest.mark.parametrize(
    ("text", "draw", "order", "truth"),
    [
        ("recall>=0.9", independent_images, THRESHOLDS, true_recall),
        ("specificity>=0.95", independent_images, THRESHOLDS.flip(0), true_specificity),
        ("fpr<=0.1", independent_images, THRESHOLDS.flip(0), lambda t: 1 - true_specificity(t)),
        # A precision starts where enough images reach the threshold to show it.
        ("precision>=0.65", independent_images, THRESHOLDS[:36].flip(0), true_precision),
        ("recall>=0.9", videos, THRESHOLDS, true_recall),
    ],
)
def test_a_guarantee_fails_no_more_often_than_it_says(
    text: str, draw: Draw, order: Tensor, truth: Callable[[float], float]
) -> None:
    """Of 200 runs at most 5 % may end at a threshold that misses the target, but for noise."""
    wish = claim(text, is_grouped=draw is videos)
    violations, shown = 0, 0
    for seed in range(RUNS):
        scores, targets, groups = draw(generator(seed))
        threshold = guaranteed_threshold(wish, scores, targets, groups, order)
        if threshold is not None:
            shown += 1
            metric = wish.target.metric
            violations += not wish.target.meets({metric: truth(threshold)})
    assert shown > 0.9 * RUNS, "a guarantee that is hardly ever given is of no use"
    assert violations <= binom.ppf(0.999, RUNS, 1 - wish.confidence)


def test_the_last_threshold_that_looks_good_enough_is_not_good_enough() -> None:
    """Optional stopping: it meets the bound on the very images that it was chosen on, and on
    about half of all other sets of images it does not."""
    wish, violations = claim("recall>=0.9"), 0
    for seed in range(RUNS):
        scores, targets, _ = independent_images(generator(seed))
        recalls = [float((scores[targets] >= t).double().mean()) for t in THRESHOLDS]
        last = max(t for t, recall in zip(THRESHOLDS, recalls, strict=True) if recall >= 0.9)
        violations += not wish.target.meets({"recall": true_recall(float(last))})
    assert violations > 0.3 * RUNS


def test_frames_of_a_video_that_are_taken_for_independent_images_break_the_guarantee() -> None:
    wish, violations = claim("recall>=0.9"), 0
    for seed in range(RUNS):
        scores, targets, _ = videos(generator(seed))
        threshold = guaranteed_threshold(wish, scores, targets, None, THRESHOLDS)
        assert threshold is not None
        violations += not wish.target.meets({"recall": true_recall(threshold)})
    assert violations > 0.15 * RUNS


# The whole of tuning.


def ensemble(
    task: Task, samples: int, labels: int = 1, *, seed: int = 0, groups: Tensor | None = None
) -> tuple[LabelledData, Outputs]:
    """Three members a, b and c that see the truth through noise of their own."""
    if task is Task.CLASSIFICATION:
        targets = one_hot(torch.rand(samples, labels, generator=generator(seed)))
    else:
        targets = torch.rand(samples, labels, generator=generator(seed)) < 0.4
    noise = torch.randn(3, samples, labels, generator=generator(seed + 1))
    logits = 2 * (2 * targets.float() - 1) + 1.5 * noise
    scores = scores_of(task, logits)
    if task is Task.REGRESSION:
        targets = torch.randn(samples, labels, generator=generator(seed))
        scores, logits = targets + 0.5 * noise, torch.full_like(noise, torch.nan)
    paths = tuple(Path(f"{index}.png") for index in range(samples))
    data = LabelledData("ward", paths, targets, "sha256:12", groups)
    return data, outputs_of(task, scores, logits, targets, groups)


def tuned(
    folder: Path, text: str, task: Task, samples: int, labels: int = 1, **options: object
) -> Tuning:
    probes(folder, task=task.value)
    spec = load_spec(folder / "ensemble.yaml")
    groups = options.pop("groups", None)
    assert groups is None or isinstance(groups, Tensor)
    data, outputs = ensemble(task, samples, labels, groups=groups)
    return tune(spec, data, outputs, parse_target(text, task), report=False, folds=3)


@pytest.mark.parametrize(
    ("text", "task", "labels"),
    [
        ("recall>=0.9", Task.PRESENCE, 1),
        ("precision>=0.8", Task.PRESENCE, 1),
        ("specificity>=0.9", Task.PRESENCE, 1),
        ("fpr<=0.1", Task.PRESENCE, 1),
        ("accuracy>=0.85", Task.PRESENCE, 1),
        ("f1>=0.8", Task.PRESENCE, 1),
        ("recall>=0.8", Task.MULTILABEL, 2),
        ("f1>=0.8", Task.MULTILABEL, 2),
        ("accuracy>=0.9", Task.CLASSIFICATION, 2),
        ("coverage>=0.8", Task.CLASSIFICATION, 2),
        ("recall>=0.8", Task.CLASSIFICATION, 2),
        ("precision>=0.8", Task.CLASSIFICATION, 2),
        ("f1>=0.8", Task.CLASSIFICATION, 2),
        ("rmse<=0.5", Task.REGRESSION, 1),
        ("r2>=0.5", Task.REGRESSION, 1),
    ],
)
def test_every_target_can_be_shown(text: str, task: Task, labels: int, tmp_path: Path) -> None:
    results = tuned(tmp_path, text, task, 600, labels)
    guarantee = results.operating_point.guarantee
    assert guarantee is not None
    assert guarantee.holds, str(guarantee)
    assert results.reached
    assert results.target.meets({results.target.metric: guarantee.evidence.bound})
    statement = guarantee.statement()
    approximate = guarantee.claim.method is Method.BOOTSTRAP
    assert statement.startswith("Approximately guaranteed" if approximate else "Guaranteed")
    assert ("an approximation" in statement) == approximate


@pytest.mark.parametrize(
    ("text", "task", "labels"),
    [
        ("recall>=0.8", Task.PRESENCE, 1),
        ("recall>=0.8", Task.MULTILABEL, 2),
        ("recall>=0.8", Task.CLASSIFICATION, 2),
        ("rmse<=0.5", Task.REGRESSION, 1),
    ],
)
def test_groups_are_said_and_counted(text: str, task: Task, labels: int, tmp_path: Path) -> None:
    groups = torch.arange(1200) // 4
    results = tuned(tmp_path, text, task, 1200, labels, groups=groups)
    guarantee = results.operating_point.guarantee
    assert guarantee is not None
    assert guarantee.holds, str(guarantee)
    assert guarantee.evidence.num_units <= 150
    assert "held-out groups" in guarantee.statement()


def test_a_target_without_a_bound_is_neither_guaranteed_nor_missed(tmp_path: Path) -> None:
    results = tuned(tmp_path, "maximise f1", Task.PRESENCE, 200)
    assert results.operating_point.guarantee is None
    assert results.reached
    assert results.operating_point.text == results.chosen.text


def test_nothing_is_fitted_on_the_held_out_images(tmp_path: Path) -> None:
    """With other labels on the held-out images everything but the threshold stays as it is."""
    probes(tmp_path, task="presence")
    spec = load_spec(tmp_path / "ensemble.yaml")
    data, outputs = ensemble(Task.PRESENCE, 400)
    target = parse_target("specificity>=0.5", Task.PRESENCE)
    held_out = split(spec, data, target).held_out
    first = tune(spec, data, outputs, target, report=False)
    scores, logits = outputs.scores.clone(), outputs.logits.clone()
    logits[:, held_out] = -logits[:, held_out]
    scores[:, held_out] = logits[:, held_out].sigmoid()
    again = tune(spec, data, replace(outputs, scores=scores, logits=logits), target, report=False)
    assert first.fitted.temperatures == again.fitted.temperatures
    assert torch.equal(first.fitted.weights, again.fitted.weights)
    assert first.chosen.text == again.chosen.text
    assert first.operating_point.held_out.values != again.operating_point.held_out.values
