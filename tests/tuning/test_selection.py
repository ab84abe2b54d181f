"""Thresholds, folds, calibration, and the choice among candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from simulated_outputs import outputs_of, scores_of

from torchserve_ensemble.handlers.base.errors import PolicyError, SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import one_hot
from torchserve_ensemble.tuning.calibration import calibrations
from torchserve_ensemble.tuning.fitting import (
    Outputs,
    fit_parameters,
    fit_weights,
    members_with_logits,
)
from torchserve_ensemble.tuning.member_thresholds import (
    per_member_curve,
    per_member_text,
    per_member_thresholds,
)
from torchserve_ensemble.tuning.metrics import compute_metrics
from torchserve_ensemble.tuning.selection import apply, bind, choose, measure
from torchserve_ensemble.tuning.splitting import cross_validation, hold_out
from torchserve_ensemble.tuning.targets import parse_target
from torchserve_ensemble.tuning.threshold_sweep import is_constant, threshold_curve


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simulated(
    task: Task, samples: int = 200, labels: int = 1, *, signal: float = 1.5, seed: int = 0
) -> Outputs:
    """Three members that see the truth through their own noise; with no signal, nothing of it."""
    if task is Task.CLASSIFICATION:
        targets = one_hot(torch.rand(samples, labels, generator=generator(seed)))
    else:
        targets = torch.rand(samples, labels, generator=generator(seed)) < 0.35
    noise = torch.randn(3, samples, labels, generator=generator(seed + 1))
    logits = signal * (2 * targets.float() - 1) + 1.5 * noise
    return outputs_of(task, scores_of(task, logits), logits, targets)


@pytest.mark.parametrize("policy", ["any", "majority", "mean", "logit_mean"])
@pytest.mark.parametrize(
    ("task", "labels", "parameter"),
    [
        (Task.PRESENCE, 1, "threshold"),
        (Task.MULTILABEL, 3, "threshold"),
        (Task.CLASSIFICATION, 3, "min_confidence"),
    ],
)
def test_a_curve_is_what_the_policy_does_at_each_value(
    policy: str, task: Task, labels: int, parameter: str
) -> None:
    outputs = simulated(task, 120, labels)
    fitted = fit_parameters(outputs, members_with_logits(outputs))
    curve = threshold_curve(
        bind(policy, outputs, fitted).combine(outputs.ballot()), outputs.targets, task
    )
    assert len(curve.values) > 50
    for value, results in list(zip(curve.values, curve.metrics, strict=True))[::6]:
        text = f"{policy}({parameter}={value:g})"
        outcome = bind(text, outputs, fitted).combine(outputs.ballot())
        assert not is_constant(outcome.decisions)
        expected = compute_metrics(
            outcome.scores, outcome.decisions, outputs.targets, task, with_areas=False
        )
        for name, number in results.items():
            assert number == pytest.approx(expected.values[name], nan_ok=True), (text, name)


@pytest.mark.parametrize("votes", [1, 2, 3])
def test_members_with_thresholds_of_their_own(votes: int) -> None:
    """Member c scores high in general: a shared threshold would be wrong for it."""
    outputs = simulated(Task.PRESENCE, 300)
    logits = outputs.logits + torch.tensor([0.0, 0.0, 4.0]).view(3, 1, 1)
    outputs = replace(outputs, logits=logits, scores=logits.sigmoid())
    fitted = fit_parameters(outputs, [False] * 3)
    assert fitted.negative_quantiles is not None
    thresholds = per_member_thresholds(fitted.negative_quantiles, 0.9)
    assert thresholds[2] > thresholds[0]
    for member, threshold in enumerate(thresholds):
        negatives = outputs.scores[member][~outputs.targets]
        assert float((negatives < threshold).float().mean()) == pytest.approx(0.9, abs=0.01)
    curve = per_member_curve(outputs, fitted.negative_quantiles, votes)
    for share, results in list(zip(curve.values, curve.metrics, strict=True))[::10]:
        values = per_member_thresholds(fitted.negative_quantiles, share)
        outcome = bind(per_member_text("abc", values, votes), outputs, fitted).combine(
            outputs.ballot()
        )
        expected = compute_metrics(
            outcome.scores, outcome.decisions, outputs.targets, Task.PRESENCE
        ).values
        assert {name: expected[name] for name in results} == pytest.approx(results, nan_ok=True)


def test_an_expression_over_many_members_is_too_long_and_left_out() -> None:
    outputs = simulated(Task.PRESENCE)
    text = per_member_text([f"a-rather-long-name-{index}" for index in range(9)], [0.5] * 9, 4)
    with pytest.raises(PolicyError, match="500"):
        bind(text, outputs, fit_parameters(outputs, [False] * 3))


def test_out_of_fold_is_no_better_than_in_sample_where_there_is_nothing_to_learn() -> None:
    """With as many scores as there are to overfit: a leak would show as equal metrics."""
    outputs = simulated(Task.CLASSIFICATION, 90, 6, signal=0.0)
    results, _ = measure(outputs, parse_target("maximise f1", Task.CLASSIFICATION), folds=3)
    stacking = next(m for m in results if m.candidate.name == "stacking")
    assert stacking.in_sample.values["auroc"] > stacking.out_of_fold.values["auroc"] + 0.1


def test_what_was_chosen_can_be_applied_to_other_samples() -> None:
    outputs, new = simulated(Task.PRESENCE, 400), simulated(Task.PRESENCE, 400, seed=50)
    target = parse_target("specificity>=0.95", Task.PRESENCE)
    results, fitted = measure(outputs, target, report=False)
    best = choose(results, target)
    outcome = apply(best, new, fitted)
    again = bind(best.text, outputs, fitted).combine(fitted.apply(new).ballot())
    assert outcome.decisions is not None
    assert again.decisions is not None
    assert torch.equal(outcome.decisions, again.decisions)
    values = compute_metrics(outcome.scores, outcome.decisions, new.targets, Task.PRESENCE).values
    assert values["specificity"] == pytest.approx(best.out_of_fold.values["specificity"], abs=0.05)


def test_calibration_is_measured_on_samples_that_the_temperature_did_not_see() -> None:
    outputs = simulated(Task.PRESENCE, 2000)
    logits = 2 * torch.randn(1, 2000, 1, generator=generator()).expand(3, -1, -1)
    targets = torch.rand(2000, 1, generator=generator(1)) < logits[0].sigmoid()
    loud = replace(outputs, logits=4 * logits, scores=(4 * logits).sigmoid(), targets=targets)
    for each in calibrations(loud, cross_validation(loud, 5, 0)):
        assert each.temperature == pytest.approx(4, rel=0.15)
        assert each.after["ece"] < each.before["ece"] / 2
        assert each.after["nll"] < each.before["nll"]
        assert each.improves


def test_a_temperature_that_does_not_help_on_other_images_is_not_used() -> None:
    """Few images that are calibrated already: what is fitted on some is noise for the others."""
    logits = 2 * torch.randn(1, 40, 1, generator=generator()).expand(3, -1, -1)
    targets = torch.rand(40, 1, generator=generator(5)) < logits[0].sigmoid()
    outputs = replace(simulated(Task.PRESENCE, 40), logits=logits, scores=logits.sigmoid())
    outputs = replace(outputs, targets=targets)
    for each in calibrations(outputs, cross_validation(outputs, 5, 0)):
        worse = any(each.after[name] > each.before[name] for name in ("ece", "nll"))
        assert worse
        assert not each.improves
    fitted = fit_parameters(outputs, [False] * 3)
    assert fitted.temperatures == (1, 1, 1)


def test_a_member_without_logits_keeps_its_calibration() -> None:
    outputs = simulated(Task.PRESENCE)
    outputs.logits[1] = torch.nan
    results = calibrations(outputs, cross_validation(outputs, 5, 0))
    assert results[1].temperature == 1
    assert results[1].before == results[1].after
    assert not results[1].improves


@pytest.mark.parametrize(
    ("positives", "folds", "words"),
    [
        (0, 5, "all images have the same label"),
        (3, 5, "only 3 images, too few for 5 folds"),
        (20, 1, "takes at least 2"),
    ],
)
def test_too_few_images(positives: int, folds: int, words: str) -> None:
    outputs = simulated(Task.PRESENCE, 60)
    few = replace(outputs, targets=torch.arange(60).unsqueeze(1) < positives)
    with pytest.raises(SpecError) as caught:
        measure(few, parse_target("maximise f1", Task.PRESENCE), folds=folds)
    assert words in caught.value.message


def test_folds_keep_the_share_of_each_class_and_use_every_image_once() -> None:
    outputs = simulated(Task.CLASSIFICATION, 100, 4)
    tests = [test for _, test in cross_validation(outputs, 5, 0)]
    assert torch.equal(torch.cat(tests).sort().values, torch.arange(100))
    sizes = torch.stack([outputs.targets[test].sum(dim=0) for test in tests])
    assert int((sizes.amax(dim=0) - sizes.amin(dim=0)).max()) <= 1
    for training, test in cross_validation(outputs, 5, 0):
        assert not set(training.tolist()) & set(test.tolist())
    assert torch.equal(cross_validation(outputs, 5, 1)[0][1], cross_validation(outputs, 5, 1)[0][1])
    assert not torch.equal(
        cross_validation(outputs, 5, 0)[0][1], cross_validation(outputs, 5, 1)[0][1]
    )


@pytest.mark.parametrize("task", [Task.PRESENCE, Task.CLASSIFICATION, Task.MULTILABEL])
def test_images_of_a_group_are_never_on_both_sides(task: Task) -> None:
    outputs = simulated(task, 240, 3 if task is not Task.PRESENCE else 1)
    outputs = replace(outputs, groups=torch.arange(240) // 6)
    assert outputs.groups is not None
    for training, test in cross_validation(outputs, 5, 0):
        assert not set(outputs.groups[training].tolist()) & set(outputs.groups[test].tolist())
    development, held_out = hold_out(
        outputs.targets, outputs.groups, share=0.5, stratify=False, seed=0
    )
    assert not set(outputs.groups[development].tolist()) & set(outputs.groups[held_out].tolist())
    assert torch.equal(torch.cat([development, held_out]).sort().values, torch.arange(240))
    assert len(torch.unique(outputs.groups[held_out])) == 20


def test_labels_of_too_few_groups_are_refused() -> None:
    outputs = simulated(Task.PRESENCE, 60)
    outputs = replace(outputs, groups=torch.arange(60) // 20)
    with pytest.raises(SpecError, match="3 groups, too few for 5 folds"):
        measure(outputs, parse_target("maximise f1", Task.PRESENCE))
    with pytest.raises(SpecError, match="3 groups are too few for 5 folds"):
        cross_validation(replace(outputs, panel=simulated(Task.MULTILABEL, 60).panel), 5, 0)


def test_held_out_images_have_the_share_of_each_label_where_that_is_allowed() -> None:
    targets = torch.arange(100).unsqueeze(1) < 20
    for seed in range(5):
        _, held_out = hold_out(targets, None, share=0.5, stratify=True, seed=seed)
        assert int(targets[held_out].sum()) == 10
    counts = {
        int(targets[hold_out(targets, None, share=0.5, stratify=False, seed=seed)[1]].sum())
        for seed in range(20)
    }
    assert len(counts) > 1


def test_a_member_that_never_finds_a_rare_label_has_no_weight() -> None:
    """At 1:1000 the accuracy of a member that always says no is 0.999."""
    targets = torch.arange(4000).unsqueeze(1) < 4
    blind = torch.full((4000, 1), 0.1)
    good = torch.where(targets, 0.9, 0.1)
    good[4:30] = 0.9
    outputs = simulated(Task.PRESENCE, 4000)
    outputs = replace(outputs, targets=targets, scores=torch.stack([blind, good, good]))
    weights = fit_weights(outputs)
    assert weights[0] == 0
    assert weights[1] > 1
