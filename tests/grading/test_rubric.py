"""Rubrics: what a bad file says, and that what is made of a good one never changes by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coach.errors import ConfigurationError
from coach.grading import Rubric, load_rubric

GOOD = """
title = "Short"
[[criterion]]
name = "content"
label = "Content"
weight = 60
bands = ["poor", "good"]
[[criterion]]
name = "style"
label = "Style"
weight = 40
bands = ["poor", "fair", "good"]
[[assignment]]
id = "one"
title = "One"
task = "Write one."
"""


def load(tmp_path: Path, text: str) -> Rubric:
    path = tmp_path / "rubric.toml"
    path.write_text(text, encoding="utf-8")
    return load_rubric(path)


def test_the_default_has_four_criteria_in_six_bands_and_enough_tasks() -> None:
    rubric = load_rubric()
    assert [criterion.name for criterion in rubric.criteria] == [
        "content",
        "structure",
        "language",
        "spelling-punctuation-grammar",
    ]
    assert {criterion.band_max for criterion in rubric.criteria} == {5}
    assert len(rubric.assignments) >= 6
    anchors = [anchor for criterion in rubric.criteria for anchor in criterion.bands]
    assert len(set(anchors)) == len(anchors) == 24


def test_a_task_is_found_by_its_id_and_never_missing(tmp_path: Path) -> None:
    rubric = load(tmp_path, GOOD)
    assert rubric.task("one") == "Write one."
    assert rubric.task("two") == rubric.task(None) != ""


def test_the_text_for_prompts_is_exactly_this(tmp_path: Path) -> None:
    """A changed byte makes every provider's cached prefix worthless: change it on purpose only."""
    assert load(tmp_path, GOOD).as_text() == (
        "Rubric: Short\n"
        "content (Content, 60 %)\n"
        "  0: poor\n"
        "  1: good\n"
        "style (Style, 40 %)\n"
        "  0: poor\n"
        "  1: fair\n"
        "  2: good"
    )


def test_text_and_schema_are_the_same_bytes_in_every_process() -> None:
    code = (
        "import json; from coach.grading import load_rubric; r = load_rubric();"
        "print(r.as_text()); print(json.dumps(r.schema()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_schema_is_strict_at_every_level(tmp_path: Path) -> None:
    objects = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                objects.append(node)
            for value in node.values():
                visit(value)

    schema = load(tmp_path, GOOD).schema()
    visit(schema)
    assert len(objects) == 4
    for node in objects:
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])
    criteria = schema["properties"]["criteria"]["properties"]
    assert criteria["style"]["properties"]["band"] == {"type": "integer", "enum": [0, 1, 2]}
    msgspec.json.encode(schema)


BAD_FILES = {
    "not_toml": ("title = ", "not TOML"),
    "unknown_key": (GOOD + "\ncolour = 1", "colour"),
    "unknown_criterion_key": (GOOD.replace("weight = 60", "weight = 60\nwight_of = 1"), "wight_of"),
    "missing_title": (GOOD.replace('title = "Short"', "", 1), "title"),
    "no_criteria": ('title = "x"\ncriterion = []', "criterion"),
    "weights": (GOOD.replace("weight = 60", "weight = 61"), "add up to 101, not 100"),
    "zero_weight": (GOOD.replace("weight = 60", "weight = 0"), "weight"),
    "one_band": (GOOD.replace('["poor", "good"]', '["poor"]'), "bands"),
    "blank_band": (GOOD.replace('["poor", "good"]', '["poor", " "]'), "bands"),
    "band_of_two_lines": (GOOD.replace('["poor", "good"]', '["poor", "a\\nb"]'), "bands"),
    "same_name": (GOOD.replace('name = "style"', 'name = "content"'), "'content'"),
    "bad_name": (GOOD.replace('name = "style"', 'name = "My Style"'), "name"),
    "same_assignment": (GOOD + GOOD[GOOD.index("[[assignment]]") :], "'one'"),
    "bad_assignment_id": (GOOD.replace('id = "one"', 'id = "a b"'), "id"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_says_where(tmp_path: Path, name: str) -> None:
    text, said = BAD_FILES[name]
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert said in message
    assert "rubric.toml" in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load_rubric(tmp_path / "nowhere.toml")
