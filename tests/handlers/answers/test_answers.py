"""Numbers in JSON are short and exact; the score of a sample is that of its best chosen label."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.answers.encoding import to_json_numbers
from torchserve_ensemble.handlers.answers.label_rows import _best_scores

singles = st.floats(width=32)


@given(st.lists(singles, max_size=12))
def test_numbers_are_the_shortest_decimals_of_single_precision(values: list[float]) -> None:
    written = [
        float(str(value)) if np.isfinite(value) else None
        for value in np.array(values, dtype=np.float32)
    ]
    assert repr(to_json_numbers(torch.tensor(values))) == repr(written)
    pairs = torch.tensor(values[: len(values) // 2 * 2]).reshape(-1, 1, 2)
    assert repr(to_json_numbers(pairs)) == repr(
        [[list(p)] for p in zip(*[iter(written)] * 2, strict=False)]
    )


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_the_score_is_that_of_the_best_label_chosen(
    data: st.DataObject, num_labels: int, num_samples: int
) -> None:
    number = st.sampled_from([-0.0, 0.0, 0.1, 0.5, 1.0])
    row = st.lists(st.tuples(st.booleans(), number), min_size=num_labels, max_size=num_labels)
    rows = data.draw(st.lists(row, min_size=num_samples, max_size=num_samples))
    best = _best_scores(
        torch.tensor([[score for _, score in row] for row in rows]),
        torch.tensor([[chosen for chosen, _ in row] for row in rows]),
    )
    # Of equal scores the first one counts: 0.0 and -0.0 are written differently.
    assert repr(to_json_numbers(best)) == repr([max(row, key=tuple)[1] for row in rows])
