"""The spec: what it accepts, and what it says about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.archiver.spec_reference import spec_reference
from torchserve_ensemble.handlers.base.errors import MemberError, SpecError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.spec import (
    Output,
    WeightsFormat,
    json_schema,
    load_spec,
    located_errors,
    parse_spec,
)

MINIMAL = """\
name: digits
version: "1.0"
task: classification
labels: [zero, one]
preprocessing:
  small: {color: grayscale, resize: [8, 8]}
members:
  - name: cnn
    architecture: members.py:CNN
    weights: cnn.safetensors
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="ensemble.yaml")
    return str(caught.value).splitlines()


def test_a_minimal_spec_has_sensible_defaults() -> None:
    spec = parse_spec(MINIMAL)
    member = spec.members[0]
    assert spec.task is Task.CLASSIFICATION
    assert spec.policies.default == "mean"
    assert member.weights_format is WeightsFormat.SAFETENSORS
    assert spec.output_of(member) is Output.LOGITS
    assert spec.preprocessing_of(member).size == (8, 8)
    assert spec.files() == ("cnn.safetensors", "members.py")


def test_presence_scores_the_positive_label_alone() -> None:
    spec = parse_spec(
        MINIMAL.replace("classification", "presence")
        + "    threshold: {one: 0.3}\nthreshold: 0.6\n"
    )
    assert spec.score_labels == ("one",)
    assert spec.thresholds() == (0.6,)
    assert spec.thresholds(spec.members[0]) == (0.3,)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("labels:", "lables:", "ensemble.yaml:4: lables: unknown key; known here: name, version"),
        ("labels:", "lables:", "did you mean 'labels'?"),
        ("classification", "clasification", "did you mean 'classification'?"),
        ('"1.0"', "1.0", 'ensemble.yaml:2: version: must be text: write version: "1.0", in quotes'),
        # YAML reads the number 1.1.
        ('"1.0"', "1.10", 'ensemble.yaml:2: version: must be text: write version: "1.10"'),
        ("[zero, one]", "[zero, 0x10]", 'labels[1]: must be text: write "0x10", in quotes'),
        (
            "members.py:CNN",
            "resnet18",
            "members[0].architecture: 'resnet18' is neither torchvision.models.NAME nor FILE.py:",
        ),
        ("resize: [8, 8]", "resize: [8, 0]", "preprocessing.small.resize[1]: input should be"),
        ("resize: [8, 8]", "resize: 8", "images of all sizes must become inputs of one size"),
        ("resize: [8, 8]", "reszie: [8, 8]", "did you mean 'resize'?"),
        ("grayscale", "gray", "color: must be one of rgb, grayscale"),
        ("weights: cnn.safetensors", "weights: cnn.bin", "set format to one of safetensors"),
        ("weights: cnn.safetensors", "weights: ../cnn.pt", "must lie in the spec's folder"),
        ("weights: cnn.safetensors", "weights: cnn.onnx", "carry their own architecture"),
        ("    architecture: members.py:CNN\n", "", "architecture is missing"),
        ("[zero, one]", "[zero, zero]", "labels must differ; given twice: ['zero']"),
        ("[zero, one]", "[zero]", "at least two labels"),
        ("name: cnn", "name: c n n", "members[0].name: must be letters, digits, '_', '.' and"),
        (
            'version: "1.0"',
            'version: "1.0-beta"',
            "version: must be numbers separated by dots",
        ),
        ("task: classification", "task: presence\nthreshold: {zero: 0.5}", "not a label that is"),
        ("labels: [zero, one]", "", "ensemble.yaml:1: labels: this key is missing"),
        ("task: classification", "task: classification\ntask: presence", "given twice"),
        (
            "weights: cnn",
            "temperature: 2\n    output: probabilities\n    weights: cnn",
            "only logits",
        ),
        ("weights: cnn", "output: values\n    weights: cnn", "takes members that give logits"),
        ("weights: cnn", "voting_weight: 0\n    weights: cnn", "at least one voting_weight"),
        ("weights: cnn", "preprocessing: smal\n    weights: cnn", "did you mean 'small'?"),
        # TorchServe would take it for "not set", and wait 100 ms.
        (
            "task: classification",
            "task: classification\nserving: {max_batch_delay_ms: 0}",
            "serving.max_batch_delay_ms: input should be greater than or equal to 1",
        ),
        (
            "task: classification",
            "task: classification\nruntime: {precision: int8, engine: torch}",
            "runtime.precision: int8 needs runtime.engine: auto or openvino",
        ),
        (
            "task: classification",
            "task: classification\nruntime: {compile: true}",
            "runtime.compile: runtime.engine replaces this key",
        ),
        ("name: digits", "name: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_line_key_and_remedy(old: str, new: str, expected: str) -> None:
    assert old in MINIMAL
    assert expected in "\n".join(problems_of(MINIMAL.replace(old, new)))


def test_every_mistake_is_reported_at_once() -> None:
    lines = problems_of("name: 3\nversion: 1\nmembers:\n  - nam: a\n")
    assert [line.split(": ")[1] for line in lines] == [
        "name",
        "version",
        "task",
        "labels",
        "members[0].name",
        "members[0].weights",
        "members[0].nam",
    ]


def test_two_members_of_one_name_are_refused() -> None:
    twice = MINIMAL + "  - {name: cnn, architecture: m.py:A, weights: b.pt}\n"
    assert any("two members are named 'cnn'" in line for line in problems_of(twice))


def test_missing_files_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ensemble.yaml").write_text(MINIMAL)
    (tmp_path / "cnn.safetensor").touch()
    (tmp_path / "members.py").touch()
    with pytest.raises(SpecError, match="did you mean 'cnn.safetensor'") as caught:
        load_spec(tmp_path / "ensemble.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_state_dict_without_architecture_needs_one(tmp_path: Path) -> None:
    """Its file name ends as that of a TorchScript archive, which carries its architecture."""
    text = MINIMAL.replace("cnn.safetensors", "cnn.pt")
    without = text.replace("    architecture: members.py:CNN\n", "")
    (tmp_path / "members.py").touch()
    (tmp_path / "ensemble.yaml").write_text(without)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "cnn.pt")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "ensemble.yaml")
    (line,) = str(caught.value).splitlines()
    assert "members[0]: architecture is missing: cnn.pt holds a state dict" in line
    assert "remove" not in line
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "cnn.pt")
    load_spec(tmp_path / "ensemble.yaml")


def test_what_shows_only_later_is_located_too(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.yaml"
    path.write_text(MINIMAL + "policies: {named: {two: at_least(k=9)}}\n")
    error = MemberError("no such network")
    error.place = ("members", "cnn", "architecture")
    with pytest.raises(MemberError) as caught, located_errors(path):
        raise error
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "architecture" in line)
    assert str(caught.value) == f"{path}:{number}: members[0].architecture: no such network"
    error.place = ("policies", "named", "two")
    expected = f":{len(lines)}: policies.named.two: no such network"
    with pytest.raises(MemberError, match=expected), located_errors(path):
        raise error


def test_an_error_without_a_place_stays_as_it_is(tmp_path: Path) -> None:
    error = MemberError("no such network")
    with pytest.raises(MemberError) as caught, located_errors(tmp_path / "none.yaml"):
        raise error
    assert caught.value is error


def test_a_missing_spec_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "none.yaml")


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    jsonschema.validate(yaml.safe_load(MINIMAL), json_schema())
    wrong = yaml.safe_load(MINIMAL) | {"lables": []}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


def test_the_published_reference_is_current() -> None:
    published = Path(__file__).parents[3] / "docs" / "spec.md"
    assert published.read_text() == spec_reference(json_schema()), (
        "run: ts-ensemble schema --markdown > docs/spec.md"
    )


def test_the_published_schema_is_current() -> None:
    published = Path(__file__).parents[3] / "docs" / "ensemble.schema.json"
    assert json.loads(published.read_text()) == json_schema(), (
        "run: ts-ensemble schema > docs/ensemble.schema.json"
    )


@given(st.text())
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


@given(st.sampled_from(sorted(yaml.safe_load(MINIMAL))), TREES)
def test_any_value_of_any_key_is_accepted_or_a_spec_error(key: str, value: object) -> None:
    document = yaml.safe_load(MINIMAL) | {key: value}
    try:
        parse_spec(yaml.safe_dump(document))
    except SpecError as error:
        assert str(error).startswith("spec:")
