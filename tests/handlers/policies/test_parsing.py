"""Tests of parsing policies: names, calls, expressions, allowed policies, and error messages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ballots import chosen, make_ballot
from hypothesis import given, settings
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.errors import PolicyError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    Ballot,
    BoundPolicy,
    Catalogue,
    Outcome,
    check_catalogue,
    definitions,
    parse_policy,
)

CATALOGUE = Catalogue(
    task=Task.PRESENCE,
    member_names=("cnn", "mlp", "resnet-18"),
    named={"high-sensitivity": "any", "strict": "high-specificity", "high-specificity": "all"},
)
BALLOT = replace(
    make_ballot(
        Task.PRESENCE,
        [[[0.9], [0.2], [0.6]], [[0.4], [0.1], [0.7]], [[0.3], [0.8], [0.9]]],
    ),
    member_names=CATALOGUE.member_names,
)


def parse(text: str, catalogue: Catalogue = CATALOGUE, **parameters: Any) -> BoundPolicy:
    """Parse a policy with the test's catalogue, or with another one."""
    return parse_policy(text, parameters, catalogue)


def refusal(text: str, catalogue: Catalogue = CATALOGUE, **parameters: Any) -> str:
    """Parse a text that must be refused, and return the message."""
    with pytest.raises(PolicyError) as caught:
        parse(text, catalogue, **parameters)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "parameters", "canonical"),
    [
        ("any", {}, "any"),
        ("  any\n", {}, "any"),
        ("any()", {}, "any"),
        ("high-sensitivity", {}, "any"),
        ("strict", {}, "all"),
        ("at_least(k=2)", {}, "at_least(k=2)"),
        ("at_least( k = '2' )", {}, "at_least(k=2)"),
        ("at_least", {"k": "2"}, "at_least(k=2)"),
        ("at_least(k=2)", {"min_confidence": "0.8"}, "at_least(k=2, min_confidence=0.8)"),
        ("trimmed_mean", {}, "trimmed_mean(fraction=0.2)"),
        ("mean(threshold=0.25)", {}, "mean(threshold=0.25)"),
        ("(any)", {}, "any"),
        ("cnn", {}, "cnn"),
        ("(cnn)", {}, "cnn"),
        ("resnet-18", {}, "member('resnet-18')"),
        ("any(cnn,mlp) and mean>=.7", {}, "any(cnn, mlp) and mean >= 0.7"),
    ],
)
def test_texts_and_their_canonical_form(
    text: str, parameters: Mapping[str, Any], canonical: str
) -> None:
    policy = parse_policy(text, parameters, CATALOGUE)
    assert policy.text == canonical
    assert parse(policy.text) == policy
    assert json.loads(json.dumps(policy.parameters)) == policy.parameters


@pytest.mark.parametrize(
    ("text", "decisions", "scores"),
    [
        ("cnn", [1, 0, 1], [0.9, 0.2, 0.6]),
        ('member("resnet-18")', [0, 1, 1], [0.3, 0.8, 0.9]),
        ("any(cnn, mlp)", [1, 0, 1], [0.9, 0.2, 0.7]),
        ('all(mlp, member("resnet-18"))', [0, 0, 1], [0.3, 0.1, 0.7]),
        ("at_least(cnn, mlp, k=2)", [0, 0, 1], [0.4, 0.1, 0.6]),
        ("not all", [1, 1, 0], [0.7, 0.9, 0.4]),
        ("cnn and not mlp", [1, 0, 0], [0.6, 0.2, 0.3]),
        ("cnn >= 0.9 or any(mlp)", [1, 0, 1], [0.9, 0.2, 0.7]),
        ("cnn > 0.9", [0, 0, 0], [0.9, 0.2, 0.6]),
        ("0.6 <= cnn", [1, 0, 1], [0.9, 0.2, 0.6]),
        ("0.2 < cnn < 0.9", [0, 0, 1], [0.1, 0.2, 0.4]),
        ("mean(cnn, mlp) > 0.4", [1, 0, 1], [0.65, 0.15, 0.65]),
        ("mean <= 0.5", [0, 1, 0], [0.4667, 0.6333, 0.2667]),
        ("mean(threshold=0.3) and max >= 0.85", [1, 0, 1], [0.5333, 0.3667, 0.7333]),
        ("(cnn or mlp) and (any or all)", [1, 0, 1], [0.9, 0.2, 0.7]),
    ],
)
def test_expressions_by_hand(text: str, decisions: list[int], scores: list[float]) -> None:
    policy = parse(text)
    assert policy.name == "expression"
    outcome = policy.combine(BALLOT)
    assert outcome.decisions is not None
    assert outcome.decisions.flatten().long().tolist() == decisions
    assert outcome.scores.flatten().tolist() == pytest.approx(scores, abs=1e-4)
    assert outcome.abstained is None


def test_a_limit_is_rounded_as_the_scores_are() -> None:
    # 0.7 as float32 is less than 0.7 as float64, and must still count as 0.7.
    at_limit = replace(BALLOT, scores=torch.full((3, 1, 1), 0.7))
    assert chosen(parse("cnn >= 0.7").combine(at_limit)) == [[0]]
    assert chosen(parse("cnn > 0.7").combine(at_limit)) == [[]]
    assert chosen(parse("mean(threshold=0.7)").combine(at_limit)) == [[0]]


def test_an_expression_decides_each_label_of_a_classification() -> None:
    ballot = make_ballot(Task.CLASSIFICATION, [[[0.7, 0.3], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9]]])
    catalogue = Catalogue(task=Task.CLASSIFICATION, member_names=("m0", "m1"))
    outcome = parse("all and mean >= 0.7", catalogue).combine(ballot)
    assert chosen(outcome) == [[0], []]
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [False, True]


def test_a_policy_comes_before_a_member_of_its_name() -> None:
    catalogue = Catalogue(task=Task.PRESENCE, member_names=("any", "min", "not"))
    assert parse("any", catalogue).name == "any"
    assert parse('any and member("any")', catalogue).name == "expression"
    assert parse('member("not")', catalogue).name == "expression"


def test_a_deployments_name_comes_before_a_registered_policy() -> None:
    catalogue = replace(CATALOGUE, named={"mean": "weighted_mean", "min": "min(threshold=0.1)"})
    assert parse("mean", catalogue).text == "weighted_mean"
    assert parse("min", catalogue).text == "min(threshold=0.1)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the policy is empty"),
        ("   ", "the policy is empty"),
        ("x" * 501, "500 characters at most, not 501"),
        ("any\x00", "holds characters that no policy has"),
        ("any # and cnn", "holds characters that no policy has"),
        ("any\\", "holds characters that no policy has"),
        ("\ud800", "holds characters that no policy has"),
        ("anny", "unknown policy 'anny'; choose one of high-sensitivity, strict"),
        ("anny", "did you mean 'any'?"),
        ("high-sensitivty", "did you mean 'high-sensitivity'?"),
        ("at_leest(k=2)", "did you mean 'at_least'?"),
        ("at_least", "parameter k is missing; it takes k, threshold"),
        ("at_least(q=2)", "parameter 'q' is not known; it takes k, threshold"),
        ("at_least(k=0)", "k=0: input should be greater than or equal to 1"),
        ("at_least(k=1.5)", "k=1.5: input should be a valid integer"),
        ("at_least(k=True)", "True is not a number"),
        ("at_least(k=4)", "k=4 exceeds the number of members, 3"),
        ("at_least(cnn, mlp, k=3) or mlp", "k=3 exceeds the number of members, 2"),
        ("mean(min_confidence=2)", "less than or equal to 1"),
        ("mean(treshold=0.3)", "did you mean 'threshold'?"),
        ("any(k=[1])", "parameter k must be a number, or a text in quotes"),
        ("any(**k)", "written as name=value"),
        ("borda", "does not fit task presence; choose one of"),
        ("stacking", "needs a fitted stacking model, and this deployment has none"),
        ("cnn and mpl", "'mpl' is neither a member (cnn, mlp, resnet-18) nor a policy"),
        ("cnn and mpl", "did you mean 'mlp'?"),
        ("any(cnn, cnn)", "member cnn is given twice"),
        ('any("cnn")', "a policy takes members"),
        ("any(...)", "a policy takes members"),
        ("member(cnn)", 'written as member("name")'),
        ('member("cnn", "mlp")', 'written as member("name")'),
        ('member("nobody")', "'nobody' is neither a member"),
        ("cnn >= 7", "between 0 and 1"),
        ("cnn >= 1e999", "between 0 and 1"),
        ("cnn >= -0.5", "compared with a number from 0 to 1"),
        ("cnn >= True", "compared with a number from 0 to 1"),
        ("cnn >= mlp", "compared with a number from 0 to 1"),
        ("0.1 < 0.2", "not part of an expression"),
        ("cnn == 0.5", "compared with <, <=, > or >="),
        ("cnn in mlp", "compared with <, <=, > or >="),
        ("cnn + mlp >= 0.5", "not part of an expression"),
        ("cnn.mlp or any", "not part of an expression"),
        ("[cnn][0]", "not part of an expression"),
        ("any()()", "not part of an expression"),
        ("f'{cnn}' or cnn", "not part of an expression"),
        ("lambda: cnn", "not part of an expression"),
        ("__import__('os').system('true')", "not part of an expression"),
        ("mean(min_confidence=0.5) and any", "min_confidence goes with a policy alone"),
        ("not " * 30 + "cnn", "nested deeper than 20 levels"),
        ("(" * 240 + "cnn" + ")" * 240, "cannot read the policy"),
        ("any(", "cannot read the policy: '(' was never closed"),
        ("cnn := 0.5", "cannot read the policy"),
    ],
)
def test_mistakes_are_named_in_the_message(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "pointed"),
    [
        ("any(cnnn, mlp) and mean >= 0.7", "cnnn"),
        ("cnn >= 0.9 or at_least(cnn, mlp, k=9)", "9)"),
        ("cnn and anny(mlp)", "anny"),
        ("mean >= 7 or cnn", "7"),
        ("at_least(k=9)", "9"),
        ("cnn and  ñandú", "ñandú"),
        ("ñandú or cnn and mpl", "ñandú"),
        ('member("ñandú") or cnn', '"ñandú"'),
        ("any(cnn, mlp, mlp) or cnn", "mlp)"),
        ('"ñandú" == cnn', "cnn"),
    ],
)
def test_a_caret_points_at_the_mistake(text: str, pointed: str) -> None:
    _, shown, caret = refusal(text).split("\n")
    assert caret.strip() == "^"
    assert shown[caret.index("^") :].startswith(pointed)


def test_parameters_from_a_form() -> None:
    assert "sets k already" in refusal("at_least(k=2)", k=1)
    assert "takes no parameters ('k')" in refusal("any and cnn", k="1")
    assert "unable to parse string as an integer" in refusal("at_least", k="two")
    assert "parameter k=None: input should be a valid integer" in refusal("at_least", k=None)
    with pytest.raises(PolicyError, match=r"'\\ud800' is not known"):
        parse_policy("any", {"\ud800": 1}, CATALOGUE)


RESTRICTED = replace(
    CATALOGUE,
    allowed=frozenset({"high-sensitivity", "mean"}),
    default="at_least(k=2)",
)


def test_a_client_chooses_from_what_is_allowed() -> None:
    assert parse("mean(threshold=0.3)", RESTRICTED).name == "mean"
    assert parse("high-sensitivity", RESTRICTED).text == "any"
    assert parse(" at_least(k=2) ", RESTRICTED).text == "at_least(k=2)"
    for text in ("any", "strict", "at_least(k=1)", "at_least"):
        message = refusal(text, RESTRICTED)
        assert "is not allowed here; choose one of high-sensitivity, mean" in message
    for text in ("cnn", "any and all", "any(cnn)"):
        message = refusal(text, RESTRICTED)
        assert message == "expressions are not allowed here; choose one of high-sensitivity, mean"
    assert "did you mean" not in refusal("anny", RESTRICTED)
    with_expressions = replace(RESTRICTED, allowed=frozenset({"expression"}))
    assert parse("any and cnn", with_expressions).name == "expression"
    assert "is not allowed here" in refusal("any", with_expressions)


def test_a_policy_that_is_only_offered_by_name_takes_no_parameters() -> None:
    for text in ("high-sensitivity", "at_least(k=2)"):
        assert "is fixed in this deployment" in refusal(text, RESTRICTED, threshold=0.1)
    assert parse("high-sensitivity", threshold=0.1).text == "any(threshold=0.1)"


def test_an_expression_may_be_the_default_or_have_a_name() -> None:
    catalogue = replace(
        CATALOGUE,
        named={"careful": "all(cnn, mlp) and mean >= 0.8"},
        allowed=frozenset({"careful"}),
        default="any(cnn, mlp)",
    )
    assert parse("careful", catalogue).name == "expression"
    assert parse("any(cnn, mlp)", catalogue).name == "expression"
    check_catalogue(catalogue)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default": "meen"}, "did you mean 'mean'"),
        ({"named": {"sure": "at_least"}}, "parameter k is missing"),
        ({"named": {"sure": "at_least(k=9)"}}, "exceeds the number of members"),
        ({"named": {"a": "b", "b": "c", "c": "a"}}, "a -> b -> c -> a lead in a circle"),
        ({"named": {"a": "a"}}, "a -> a lead in a circle"),
        ({"named": {"a": "b", "b": "b"}}, "a -> b -> b lead in a circle"),
        ({"named": {"a": "a"}, "default": "a"}, "a -> a lead in a circle"),
        ({"allowed": frozenset({"men"})}, "'men' is allowed, but is no policy.*'mean'"),
        ({"allowed": frozenset({"borda"})}, "no policy for task presence"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_the_build(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_catalogue(replace(CATALOGUE, **change))


def test_a_good_catalogue_passes_the_check_whatever_is_allowed() -> None:
    check_catalogue(CATALOGUE)
    check_catalogue(RESTRICTED)


@pytest.mark.parametrize("name", ["any", "mean", "all", "cnn"])
@pytest.mark.parametrize("default", ["any", "mean", "own", "cnn"])
def test_a_policy_may_be_offered_under_its_own_name(name: str, default: str) -> None:
    catalogue = replace(CATALOGUE, named={name: f" {name} ", "own": name}, default=default)
    check_catalogue(catalogue)
    assert parse(name, catalogue).text == name
    assert parse("own", catalogue).text == name
    restricted = replace(catalogue, allowed=frozenset({name}))
    check_catalogue(restricted)
    assert parse(name, restricted).text == name
    assert parse(default, restricted).text == parse(default, catalogue).text


def test_regressions_take_no_votes_and_no_expressions() -> None:
    catalogue = Catalogue(task=Task.REGRESSION, member_names=("cnn", "mlp"))
    fitting = "choose one of mean, weighted_mean, median, trimmed_mean, max, min"
    for text in ("any", "majority", "geometric_mean"):
        assert f"policy '{text}' does not fit task regression; {fitting}" in refusal(
            text, catalogue
        )
    assert "an expression chooses labels" in refusal("cnn", catalogue)
    assert "not known; it takes no parameters" in refusal("mean(min_confidence=0.5)", catalogue)
    assert parse("cnn and mlp", replace(catalogue, task=Task.MULTILABEL)).name == "expression"


def test_a_catalogue_describes_what_clients_may_choose() -> None:
    described = RESTRICTED.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["default"] == "at_least(k=2)"
    assert described["expressions"] is False
    assert [policy["name"] for policy in described["available"]] == ["high-sensitivity", "mean"]
    assert CATALOGUE.describe()["expressions"] is True


DOCUMENT = (Path(__file__).parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")
DOCUMENTED = replace(CATALOGUE, member_names=("cnn", "mlp", "resnet18", "resnet-18"))


def test_every_policy_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)", DOCUMENT, flags=re.MULTILINE)
    missing = {registered.name for registered in definitions()} - set(rows) - {"cascade"}
    assert not missing
    assert "`cascade(confidence=" in DOCUMENT


def test_documented_requests_are_understood() -> None:
    requests = re.findall(r"-F '?policy=([^'\n]+?)'?(?= -F|\n)(.*)", DOCUMENT)
    assert len(requests) > 5
    for text, rest in requests:
        written = re.search(r"policy_parameters=(\{.*?\})", rest)
        parse_policy(text, json.loads(written[1]) if written else {}, DOCUMENTED)


def test_documented_expressions_are_understood() -> None:
    (block,) = re.findall(r"## Expressions.*?```\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    for line in block.splitlines():
        parse(line, DOCUMENTED)


WORDS = st.sampled_from(
    """any all mean at_least stacking cascade expression member cnn mlp resnet-18 and or not ( ) , =
    k 2 0.7 >= < == 'cnn' "mlp" lambda : [ ] { } ** * - ~ . # ... None True 1e999 if else await
    yield f'{x}' high-sensitivity threshold min_confidence""".split()  # noqa: SIM905
)
# JSON can contain halves of surrogate pairs, which cannot be encoded.
CHARACTERS = st.characters(exclude_categories=())


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(CHARACTERS, max_size=600)
    | st.lists(WORDS | st.sampled_from(["\\", "\n", "\0"]), max_size=40).map(" ".join),
    parameters=st.dictionaries(
        st.sampled_from(["k", "threshold", "min_confidence"]) | st.text(CHARACTERS, max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=5),
        max_size=2,
    ),
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_text_is_a_policy_or_a_policy_error(text: str, parameters: dict[str, Any]) -> None:
    started = time.process_time()
    try:
        policy = parse_policy(text, parameters, CATALOGUE)
    except PolicyError as error:
        error.message.encode()
        assert len(error.message) < 3000
    else:
        assert isinstance(policy.combine(BALLOT), Outcome)
        assert parse(policy.text) == policy
    assert time.process_time() - started < 2


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Draw a text that follows the grammar of expressions."""
    depth = draw(st.integers(0, 3))

    def build(level: int) -> str:
        if level == 0 or draw(st.booleans()):
            return draw(
                st.sampled_from(
                    [
                        "cnn",
                        'member("resnet-18")',
                        "any",
                        "all(cnn, mlp)",
                        "mean >= 0.5",
                        "0.2 < max(cnn, mlp) <= 0.9",
                        "at_least(k=2)",
                        "unanimous",
                    ]
                )
            )
        kind = draw(st.sampled_from(["and", "or", "not"]))
        if kind == "not":
            return f"not ({build(level - 1)})"
        return f"({build(level - 1)}) {kind} ({build(level - 1)})"

    return build(depth)


def negated(ballot: Ballot, text: str) -> torch.Tensor:
    """Compute the decisions of the negation of an expression."""
    outcome = parse(f"not ({text})").combine(ballot)
    assert outcome.decisions is not None
    return outcome.decisions


@settings(deadline=None)
@given(left=expressions(), right=expressions())
def test_expressions_obey_de_morgan(left: str, right: str) -> None:
    both, either = (parse(f"({left}) {word} ({right})").combine(BALLOT) for word in ("and", "or"))
    assert both.decisions is not None
    assert either.decisions is not None
    assert torch.equal(~both.decisions, negated(BALLOT, left) | negated(BALLOT, right))
    assert torch.equal(~either.decisions, negated(BALLOT, left) & negated(BALLOT, right))
    assert (both.scores <= either.scores).all()
    assert ((both.scores >= 0) & (either.scores <= 1)).all()
