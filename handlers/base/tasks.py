"""What kind of answer an ensemble gives."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """The kinds of answer.

    CLASSIFICATION: exactly one of C labels. PRESENCE: is one thing there or not.
    MULTILABEL: any number of C labels. REGRESSION: C numbers.
    """

    CLASSIFICATION = "classification"
    PRESENCE = "presence"
    MULTILABEL = "multilabel"
    REGRESSION = "regression"
