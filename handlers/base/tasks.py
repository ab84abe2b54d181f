"""The tasks of an ensemble: which kind of answer it gives."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """The kind of answer that an ensemble gives for one sample.

    CLASSIFICATION: exactly one of C labels.
    PRESENCE: whether one thing is there.
    MULTILABEL: any number of C labels.
    REGRESSION: C numbers.
    """

    CLASSIFICATION = "classification"
    PRESENCE = "presence"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"
