"""Laws of the plan: it ends, reaches the desired state, and never leaves a model unanswered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchserve_ensemble.operations.plan import (
    ActualModel,
    ActualState,
    ActualVersion,
    Contents,
    DesiredModel,
    DesiredState,
    DesiredVersion,
    Verb,
    after,
    next_action,
    plan,
)

VERSIONS = ("1.0", "1.0.0", "1.1", "2.0")


def contents(digest: str = "a", batch_size: int = 8) -> Contents:
    return Contents(f"{digest}.mar", f"sha256:{digest}", batch_size, 3)


@st.composite
def desired_models(draw: st.DrawFn) -> DesiredModel:
    names = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, max_size=3, unique=True))
    versions = tuple(
        DesiredVersion(
            name,
            contents(draw(st.sampled_from("ab")), draw(st.sampled_from((8, 16)))),
            own_workers=draw(st.integers(1, 2)),
            workers=draw(st.none() | st.integers(1, 3)),
        )
        for name in names
    )
    return DesiredModel(versions, draw(st.sampled_from(names)))


@st.composite
def actual_models(draw: st.DrawFn) -> ActualModel:
    names = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, max_size=4, unique=True))
    versions = {}
    for name in names:
        workers = draw(st.integers(1, 3))
        made_of = contents(draw(st.sampled_from("ab")), draw(st.sampled_from((8, 16))))
        versions[name] = ActualVersion(made_of, workers, draw(st.integers(0, workers)))
    return ActualModel(versions, draw(st.sampled_from(names)))


states = st.tuples(
    st.dictionaries(st.sampled_from("mn"), desired_models(), max_size=2),
    st.dictionaries(st.sampled_from("mno"), actual_models(), max_size=3),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(states)
def test_every_plan_reaches_the_desired_state(
    drawn: tuple[dict[str, DesiredModel], dict[str, ActualModel], bool],
) -> None:
    models, actual, remove = drawn
    desired = DesiredState(models, remove)
    state: ActualState = actual
    actions = plan(desired, actual)
    assert len(actions) < 40
    for action in actions:
        before = state.get(action.name)
        if action.verb is Verb.UNREGISTER:
            assert before is not None
            is_last = action.name not in models and len(before.versions) == 1
            assert is_last or action.version != before.default, "TorchServe would refuse this"
        if action.verb is Verb.REGISTER:
            assert before is None or action.version not in before.versions
        if action.verb is Verb.SET_DEFAULT:
            assert before is not None
            assert before.versions[action.version].ready > 0
        state = after(state, action)
        if before is not None and action.name in models:
            # Whoever names no version is answered at any time.
            assert state[action.name].default in state[action.name].versions
    for name, model in models.items():
        assert set(state[name].versions) == {each.version for each in model.versions}
        assert state[name].default == model.default
        for each in model.versions:
            now = state[name].versions[each.version]
            assert not now.contents.differences(each.contents)
            assert each.workers in (None, now.workers)
    assert remove is False or set(state) == set(models)


@settings(max_examples=60, deadline=None)
@given(states, st.integers(0, 10))
def test_an_interrupted_plan_is_continued(
    drawn: tuple[dict[str, DesiredModel], dict[str, ActualModel], bool], interrupted_after: int
) -> None:
    models, actual, remove = drawn
    desired = DesiredState(models, remove)
    whole = plan(desired, actual)
    state: ActualState = actual
    for action in whole[:interrupted_after]:
        state = after(state, action)
    assert whole[:interrupted_after] + plan(desired, state) == whole


def test_another_batch_size_is_registered_anew_behind_a_stand_in() -> None:
    model = DesiredModel((DesiredVersion("1.0", contents(batch_size=16), workers=2),), "1.0")
    actual = {"m": ActualModel({"1.0": ActualVersion(contents(), 2, 2)}, "1.0")}
    lines = [str(action) for action in plan(DesiredState({"m": model}), actual)]
    assert [line.partition(":")[0] for line in lines] == [
        "register m 1.0.0 from stand-in-1.0.0.applied-a.mar",
        "scale m 1.0.0 to 2",
        "set-default m 1.0.0",
        "unregister m 1.0",
        "register m 1.0 from a.mar",
        "scale m 1.0 to 2",
        "set-default m 1.0",
        "unregister m 1.0.0",
    ]
    assert "batches of 8 in 3 ms, not of 16 in 3 ms" in lines[3]
    any_number = DesiredModel((DesiredVersion("1.0", contents(batch_size=16)),), "1.0")
    assert [str(action) for action in plan(DesiredState({"m": any_number}), actual)] == lines


def test_a_model_that_nobody_lists_stays_unless_it_is_to_be_removed() -> None:
    actual = {"m": ActualModel({"1.0": ActualVersion(contents(), 1, 1)}, "1.0")}
    assert next_action(DesiredState({}), actual) is None
    action = next_action(DesiredState({}, remove_other_models=True), actual)
    assert str(action) == "unregister m 1.0: the deployment does not list the model"


@pytest.mark.parametrize(
    ("archive", "digest", "same"),
    [("a.mar", None, True), ("b.mar", None, False), ("b.mar", "sha256:a", True)],
)
def test_without_a_digest_the_file_name_counts(
    archive: str, digest: str | None, same: bool
) -> None:
    now = Contents(archive, digest, 8, 3)
    assert (not now.differences(contents())) == same
