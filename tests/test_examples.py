"""Tests that the examples' split of the data never changes, and that its parts do not overlap."""

from __future__ import annotations

import hashlib
from pathlib import Path

from examples import data
from examples.presence import train
from torchserve_ensemble.handlers.spec import load_spec


def test_the_split_is_fixed() -> None:
    training, held_out = data.load()
    assert (len(training.files), len(held_out.files)) == (1347, 450)
    assert not set(training.indices) & set(held_out.indices)
    listing = ",".join(map(str, held_out.indices)).encode()
    assert hashlib.sha256(listing).hexdigest()[:16] == "5d8f2959acf867cf"


def test_every_digit_is_in_both_parts() -> None:
    for part in data.load():
        assert set(part.digits) == set(range(10))


def test_some_training_images_are_left_for_tuning_presence() -> None:
    assert len(data.load()[0].files) > 3 * train.IMAGES_EACH


def test_the_cascade_has_the_members_of_the_example_and_then_a_large_one() -> None:
    folder = Path(train.__file__).parent
    plain, cascade = (
        load_spec(folder / name, check_files=False) for name in ("ensemble.yaml", "cascade.yaml")
    )
    *small, large = cascade.members
    assert [(m.name, m.weights) for m in small] == [(m.name, m.weights) for m in plain.members]
    assert large.name == train.LARGE
    assert cascade.policies.lazy
