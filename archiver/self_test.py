"""Makes an archive's self-test: probes, and what the saved members answer to them.

The probes are the example images on which every member is tried, as two PNG files and a JPEG file.
The spec's `example` files are probes too, where members decode files of their own format. The user
may add images that the ensemble will receive.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..handlers.archive.self_test import Probe, SelfTest, check, decision_of, tolerance_of
from ..handlers.base.errors import ArchiveError
from ..handlers.base.tasks import Task
from ..handlers.decisions.choosing import Choice, Chooser
from ..handlers.deployment import catalogue
from ..handlers.inputs.example_inputs import example_images
from ..handlers.members.compiled_record import RECORD as COMPILED_RECORD
from ..handlers.members.compiled_record import CompiledRecord
from ..handlers.requests.options import RequestOptions
from ..handlers.self_testing import answer_probes
from ..handlers.service import EnsembleService
from ..handlers.spec import EnsembleSpec, Precision
from .saved_members import service_of

_MAX_PROBE_BYTES = 1024**2
"""A worker keeps the probes in memory as long as it lives."""

_NO_DEADLINE_MS = "600000"
_NUM_RANDOM_CHANGES = 16
_MISSING = {"failed_members", "late_members"}
_DIGITS = 6
"""Significant digits of a score: far more than the tolerance needs, and half as many bytes."""


def make_self_test(
    spec: EnsembleSpec,
    folder: Path,
    *,
    samples: Sequence[Path] = (),
    report: Callable[[str], None] = print,
) -> SelfTest | None:
    """Load all members as the spec asks for, and as they were saved; record how these answer.

    The members as the spec asks for must pass the self-test too. Executables for other engines are
    not loaded here: `compilation` compares them on the probes.

    Args:
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.
        samples: images of the user that become probes.
        report: called with what is left out of the self-test.

    Returns:
        The self-test; None if there is no probe that all members answer.

    Raises:
        SpecError: a policy or preprocessing does not exist.
        MemberError: a member cannot be loaded, or its precision changes its answers too much.
        ArchiveError: a sample is too large, cannot be read, or is not answered.
    """
    service = service_of(spec, folder)
    saved = service
    if spec.runtime.precision is not Precision.FLOAT32:
        saved = service_of(
            replace(spec, runtime=replace(spec.runtime, precision=Precision.FLOAT32)), folder
        )
    files = _probe_files(spec, folder) | _sample_files(samples)
    self_test = SelfTest(
        probes=_probes(saved, folder, files, report),
        labels=spec.score_labels,
        field=_field(spec),
        options=_options(spec),
        tolerance=tolerance_of(spec),
    )
    if not self_test.probes:
        report("self-test: the archive gets none, because no probe is answered by every member")
        return None
    if saved is not service:
        check(self_test, answer_probes(service, self_test.contents(), self_test.options))
    return self_test


def with_proven_precision(
    self_test: SelfTest, spec: EnsembleSpec, folder: Path, compiled: Mapping[str, Path]
) -> SelfTest:
    """Widen a self-test for members whose lower precision labelled images have proven.

    Such members may differ by more than the spec's tolerance.

    Args:
        self_test: the self-test, with the spec's tolerance.
        spec: the ensemble.
        folder: the folder to which the paths in the spec are relative.
        compiled: path of each file for another engine than torch -> the file.
    """
    if COMPILED_RECORD not in compiled:
        return self_test
    record = CompiledRecord.from_json(compiled[COMPILED_RECORD].read_text())
    tolerance = max(each.tolerance(self_test.tolerance) for each in record.executables)
    if tolerance == self_test.tolerance:
        return self_test
    choice = Chooser(spec, catalogue(spec, folder), {}).choose(RequestOptions())
    probes = tuple(
        replace(
            probe,
            decision_is_stable=_is_stable(
                choice, torch.tensor(list(probe.scores.values())), tolerance
            ),
        )
        for probe in self_test.probes
    )
    return replace(self_test, probes=probes, tolerance=tolerance)


def _probe_files(spec: EnsembleSpec, folder: Path) -> dict[str, bytes]:
    """Make the probes of an ensemble that need no samples: name -> file."""
    files: dict[str, bytes] = {}
    for position, image in enumerate(example_images(3), start=1):
        # A PNG file holds the very pixels on which members are tried at load, so that a precision
        # that passes there passes here too. The JPEG file shows that its decoder works.
        ending = "jpg" if position == 3 else "png"
        pixels, file = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
        if ending == "jpg":
            pixels.save(file, "JPEG", quality=95, subsampling=0)
        else:
            pixels.save(file, "PNG")
        files[f"pattern-{position}.{ending}"] = file.getvalue()
    for member in spec.members:
        example = spec.preprocessing_of(member).example
        if example is not None and (folder / example).stat().st_size <= _MAX_PROBE_BYTES:
            files[example] = (folder / example).read_bytes()
    return files


def _sample_files(samples: Sequence[Path]) -> dict[str, bytes]:
    """Read the user's samples; their file names stay out of the archive.

    Raises:
        ArchiveError: a file cannot be read, or is too large.
    """
    files = {}
    for position, path in enumerate(samples, start=1):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
        if len(content) > _MAX_PROBE_BYTES:
            raise ArchiveError(
                f"{path} has {len(content)} bytes, and a probe of the self-test may have "
                f"{_MAX_PROBE_BYTES}: keep fewer samples (--keep-samples), or smaller ones"
            )
        files[f"sample-{position}"] = content
    return files


def _field(spec: EnsembleSpec) -> str:
    """Return the key under which a JSON answer has all scores of a member."""
    return "values" if spec.task is Task.REGRESSION else "scores"


def _options(spec: EnsembleSpec) -> dict[str, str]:
    """Return options with which every member answers, and gives all of its scores."""
    options = {"include": "scores", "lazy": "false"}
    if spec.failures.deadline_ms is not None:
        options["deadline_ms"] = _NO_DEADLINE_MS
    return options


def _probes(
    saved: EnsembleService,
    folder: Path,
    files: Mapping[str, bytes],
    report: Callable[[str], None],
) -> tuple[Probe, ...]:
    """Let the saved members answer the probes, and keep those that every member answered.

    Raises:
        ArchiveError: a sample of the user is not answered.
    """
    spec = saved.spec
    choice = Chooser(spec, catalogue(spec, folder), {}).choose(RequestOptions())
    probes = []
    for name, prediction in answer_probes(saved, files, _options(spec)).items():
        members = prediction.get("members") or {}
        names = choice.chosen_panel.member_names
        if len(members) == len(names) and not prediction.keys() & _MISSING:
            scores = {
                member: tuple(float(f"{number:.{_DIGITS}g}") for number in by_label.values())
                for member, by_label in ((name, members[name][_field(spec)]) for name in names)
            }
            probes.append(
                Probe(
                    name,
                    files[name],
                    scores,
                    decision_of(prediction),
                    _is_stable(choice, torch.tensor(list(scores.values())), tolerance_of(spec)),
                )
            )
        elif name.startswith("sample-"):
            raise ArchiveError(
                f"{name} of --samples cannot be kept for the self-test, because not every member "
                "answers it; `ts-ensemble predict --local` shows why"
            )
        else:
            report(f"self-test: {name} is no probe, because not every member answers it")
    return tuple(probes)


def _is_stable(choice: Choice, scores: Tensor, tolerance: float) -> bool:
    """Return whether the default policy decides the same if scores change within the tolerance.

    The policy is asked about many changed scores, so this holds for every policy, whatever
    thresholds it has.

    Args:
        choice: the default policy and all members.
        scores: (M members, C labels) float32.
        tolerance: largest change of a score.
    """
    panel = choice.chosen_panel
    if panel.task is Task.REGRESSION:
        return True
    scores = scores.unsqueeze(1)
    decided = choice.policy.combine(panel.ballot(scores)).decisions
    assert decided is not None
    if panel.task is Task.CLASSIFICATION:
        votes = scores == scores.amax(dim=2, keepdim=True)
    else:
        votes = scores >= panel.member_thresholds.unsqueeze(1)
    signs = torch.cat(list(_directions(votes, decided)), dim=1)
    changed = (scores + tolerance * signs).clamp(0, 1)
    outcome = choice.policy.combine(panel.ballot(torch.cat([scores, changed], dim=1)))
    assert outcome.decisions is not None
    is_same = bool((outcome.decisions == outcome.decisions[:1]).all())
    if outcome.abstained is not None:
        is_same &= bool((outcome.abstained == outcome.abstained[:1]).all())
    return is_same


def _directions(votes: Tensor, decided: Tensor) -> Iterator[Tensor]:
    """Yield directions in which scores may change, (M members, any number, C labels) of -1 to 1.

    Args:
        votes: (M, 1, C) bool, the labels that each member votes for.
        decided: (1, C) bool, the labels that the policy decides for.
    """
    every_score = torch.ones(votes.shape)
    against_votes = 1 - 2 * votes.float()
    yield from (every_score, -every_score, against_votes)
    yield (1 - 2 * decided.float()).expand_as(every_score)
    for member in range(len(votes)):
        alone = torch.zeros(votes.shape)
        alone[member] = against_votes[member]
        yield alone
    generator = torch.Generator().manual_seed(0)
    shape = (votes.shape[0], _NUM_RANDOM_CHANGES, votes.shape[2])
    yield 2 * torch.randint(0, 2, shape, generator=generator).float() - 1
