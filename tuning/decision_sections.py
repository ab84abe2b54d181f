"""Puts the changes of decisions into sentences, for a terminal and for a page of HTML."""

from __future__ import annotations

from collections.abc import Iterator

from ..archiver.difference_sections import Section
from .decision_changes import DecisionChange, DecisionChanges, broken, corrected


def decision_sections(changes: DecisionChanges) -> list[Section]:
    """Return a summary, and one section for each direction in which decisions change."""
    found = [Section(f"decisions on {changes.data}", tuple(_summary(changes)))]
    found += [
        Section(f"{before} -> {after}: {len(images)}", tuple(map(change_line, images)))
        for (before, after), images in changes.directions.items()
    ]
    errors = tuple(f"{image}: {error}" for image, error in changes.errors.items())
    return [each for each in (*found, Section("left out", errors)) if each.lines]


def change_line(change: DecisionChange) -> str:
    """Describe how the decision on one image changes."""
    line = f"{change.image}: {change.before} -> {change.after}"
    if change.score_before is not None and change.score_after is not None:
        line = f"{change.image}: score {change.score_before:.4f} -> {change.score_after:.4f}"
    if change.is_right is None:
        return line if change.truth is None else f"{line} (shows {change.truth})"
    return f"{line} ({verdict(change)}, shows {change.truth})"


def verdict(change: DecisionChange) -> str:
    """Return what a change means, in one word; empty if it is not known what the image shows."""
    if change.is_right is None:
        return ""
    if change.is_right:
        return "corrected"
    return "broken" if change.was_right else "still wrong"


def _summary(changes: DecisionChanges) -> Iterator[str]:
    yield (
        f"{len(changes.changes)} of {changes.num_images} decisions change; scores change by at "
        f"most {changes.largest_difference:.3g}"
    )
    if changes.right_before is not None and changes.right_after is not None:
        count = max(1, changes.num_images)
        yield (
            f"accuracy {changes.right_before / count:.4f} ({changes.right_before} right) -> "
            f"{changes.right_after / count:.4f} ({changes.right_after} right)"
        )
        yield (
            f"{corrected(changes.changes)} changes correct a decision, "
            f"{broken(changes.changes)} break one"
        )
    if changes.root_mean_square_errors is not None:
        before, after = changes.root_mean_square_errors
        yield f"root mean square error {before:.4g} -> {after:.4g}"
    if changes.test is not None:
        yield str(changes.test)
        if changes.has_groups:
            yield (
                "the images have groups, and those of one group are not independent, which the "
                "test does not know: p is too small"
            )
