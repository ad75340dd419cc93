"""docs/alerts.yml: every rule is whole, and every metric it names exists."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

from coach.ops import metrics

TEXT = (Path(__file__).parent.parent / "docs" / "alerts.yml").read_text(encoding="utf-8")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


def test_every_metric_of_a_rule_exists() -> None:
    assert metrics.CONTENT_TYPE  # imported, so they are registered
    known = {
        collected.name + suffix
        for collected in REGISTRY.collect()
        for suffix in SUFFIXES.get(collected.type, ("",))
    }
    named = set(re.findall(r"\bcoach_\w+", TEXT))
    assert len(named) > 4
    assert named - known == set()


def test_every_rule_says_what_to_do() -> None:
    rules = re.split(r"^ +- alert: ", TEXT, flags=re.MULTILINE)[1:]
    assert len(rules) > 4
    for rule in rules:
        for part in ("expr:", "severity:", "summary:", "action:"):
            assert rule.count(part) == 1, rule


def test_two_hundred_waiting_submissions_page_somebody() -> None:
    assert 'max(coach_queue_depth{lane="submission"}) > 200' in TEXT
