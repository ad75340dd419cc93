"""Grades: JSON that any schema permits, bands that grow with quality, evidence from the essay."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.corpus import Essay
from coach.simulator.grades import grade

from .texts import ESSAYS, cut, misspelt, of_level, shuffled

each_essay = pytest.mark.parametrize("essay", ESSAYS, ids=lambda essay: essay.name)
WEIGHTS = {"content": 35, "structure": 25, "language": 20, "spelling-punctuation-grammar": 20}


def strict(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def criterion(bands: int = 6) -> dict[str, Any]:
    return strict(
        evidence={"type": "string", "description": "copied word for word from the essay"},
        reason={"type": "string", "description": "one sentence"},
        band={"type": "integer", "enum": list(range(bands))},
    )


def asked(bands: int = 6) -> dict[str, Any]:
    """What coach's judges ask for."""
    return strict(
        criteria=strict(**{name: criterion(bands) for name in WEIGHTS}),
        improve_first={"type": "string"},
    )


def answer(text: str, schema: dict[str, Any], **options: bool) -> Any:
    return json.loads(grade(f"<essay>\n{text}\n</essay>\nJudge this essay.", schema, **options))


def bands(text: str, count: int = 6) -> dict[str, int]:
    criteria = answer(text, asked(count))["criteria"]
    return {name: criteria[name]["band"] for name in WEIGHTS}


def score(text: str) -> float:
    """As coach weighs it, of 100."""
    return sum(band * WEIGHTS[name] / 5 for name, band in bands(text).items())


def test_every_good_essay_is_graded_above_every_weak_one() -> None:
    weak = [score(essay.text) for essay in of_level("weak")]
    good = [score(essay.text) for essay in of_level("secure", "strong")]

    assert max(weak) < min(good)
    assert min(weak) > 20
    assert max(good) > 85


@each_essay
def test_spoilt_essays_get_lower_grades(essay: Essay) -> None:
    assert score(cut(essay.text, 0.2)) < score(essay.text) - 15
    assert score(shuffled(essay.text)) < score(essay.text) - 15
    spelling = "spelling-punctuation-grammar"
    assert bands(misspelt(essay.text), 11)[spelling] < bands(essay.text, 11)[spelling]


@each_essay
def test_evidence_stands_in_the_essay_and_reasons_are_given(essay: Essay) -> None:
    given_answer = answer(essay.text, asked())

    assert list(given_answer) == ["criteria", "improve_first"]
    assert list(given_answer["criteria"]) == list(WEIGHTS)
    for judgement in given_answer["criteria"].values():
        assert list(judgement) == ["evidence", "reason", "band"]
        assert judgement["evidence"] in essay.text
        assert 0 < len(judgement["evidence"].split()) <= 12
        assert judgement["reason"].endswith(".")
    assert len(given_answer["improve_first"]) > 20


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_bands_use_the_whole_range_there_is(count: int) -> None:
    best = max(bands(essay.text, count)["spelling-punctuation-grammar"] for essay in ESSAYS)

    assert best == count - 1
    assert set(bands("", count).values()) == {0}


def test_invented_evidence_does_not_stand_in_the_essay() -> None:
    invented = answer("A text.", asked(), invent=True)["criteria"]["content"]["evidence"]
    again = answer(f"A text, {invented}.", asked(), invent=True)["criteria"]["content"]["evidence"]

    assert again not in f"A text, {invented}."


TEXT = ESSAYS[0].text


def test_criteria_may_be_a_list() -> None:
    item = strict(
        criterion={"type": "string", "enum": ["Ideas", "Organisation"]},
        score={"type": "integer", "description": "0 to 10"},
        quotes={"type": "array", "items": {"type": "string"}},
    )
    grades = answer(TEXT, strict(scores={"type": "array", "items": item}))["scores"]

    assert [each["criterion"] for each in grades] == ["Ideas", "Organisation"]
    assert all(5 < each["score"] <= 10 for each in grades)
    assert all(each["quotes"][0] in TEXT for each in grades)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": "v1"}, "v1"),
        ({"type": "null"}, None),
        ({"type": "boolean"}, True),
        ({"type": ["null", "boolean"]}, True),
        ({"anyOf": [{"type": "null"}, {"const": 3}]}, 3),
        ({"$ref": "#/$defs/missing"}, "The text has 375 words"),
        ({"type": "string", "enum": ["poor", "fair", "good"]}, "good"),
        ({"type": "integer", "enum": [5, 1, 3]}, 5),
        ({"type": "integer", "description": "between 10 and 20"}, 19),
        ({"type": "number", "description": "0–1"}, 0.88),
        ({"type": "object", "properties": {}}, {}),
        ({"type": "object"}, {}),
        ({"enum": [True, None]}, None),
    ],
)
def test_other_kinds_of_values(schema: dict[str, Any], value: object) -> None:
    found = answer(TEXT, strict(structure=schema))["structure"]

    assert found == value or (isinstance(value, str) and found.startswith(value))


def test_references_are_followed_and_circles_end() -> None:
    root = strict(content={"$ref": "#/$defs/node"})
    root["$defs"] = {"node": strict(next={"$ref": "#/$defs/node"}, other={"$ref": "#/$defs/self"})}
    root["$defs"]["self"] = {"$ref": "#/$defs/self"}

    assert list(answer(TEXT, root)["content"]) == ["next", "other"]

    root["$defs"]["node"]["properties"]["self"] = {"$ref": "#/$defs/node"}  # a tree of 2**24 parts
    assert len(grade(TEXT, root)) < 100_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "enum",
                    "const",
                    "anyOf",
                    "$ref",
                    "description",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref"]), json_values
    )
)
def test_a_schema_that_is_none_is_answered_all_the_same(schema: dict[str, Any]) -> None:
    answer("A text.", schema)


@given(st.text(max_size=300))
def test_any_essay_is_graded_with_evidence_that_stands_in_it(text: str) -> None:
    if "<essay>" in text or "</essay>" in text:
        return
    for judgement in answer(text, asked())["criteria"].values():
        assert judgement["evidence"] in text
        if any(map(str.isalpha, text)):
            assert judgement["evidence"]
