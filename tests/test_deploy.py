"""deploy/: the alert rules fire when they must, and rules and dashboard name only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from coach import config
from coach.ops import metrics
from coach.supervisor import KILL_MARGIN_S

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "coach.rules.yml"
RULE_TESTS = DEPLOY / "prometheus" / "coach.rules.test.yml"
RUNBOOK = DEPLOY.parent / "docs" / "operations.md"
DASHBOARD = DEPLOY / "grafana" / "coach.json"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


def known_names() -> dict[str, set[str]]:
    """Every sample that coach exports, and its labels."""
    assert metrics.CONTENT_TYPE  # imported, so they are registered
    own = {
        name: set(getattr(each, "_labelnames", ()))
        for each in vars(metrics).values()
        for name in [getattr(each, "_name", None)]
        if name is not None
    }
    return {
        collected.name + suffix: own.get(collected.name, set()) | {"le", "instance"}
        for collected in REGISTRY.collect()
        for suffix in SUFFIXES.get(collected.type, ("",))
    }


def rules() -> list[str]:
    return re.split(r"^ +- alert: ", RULES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


def test_every_metric_of_a_rule_exists() -> None:
    named = set(re.findall(r"\bcoach_\w+", "".join(rules())))
    known = set(known_names())
    known |= {name.removesuffix("_bucket") for name in known}  # as prose names them
    assert len(named) > 12
    assert named - known == set()


def test_every_rule_says_what_to_do_and_is_tried() -> None:
    assert len(rules()) > 20
    runbook = RUNBOOK.read_text(encoding="utf-8")
    tried = RULE_TESTS.read_text(encoding="utf-8")
    for rule in rules():
        for part in ("expr:", "severity:", "summary:", "action:"):
            assert rule.count(part) == 1, rule
        name = rule.split()[0]
        assert re.search(rf"alertname: {name}\n +exp_alerts:", tried), f"{name} is never seen fire"
        assert re.search(rf"^\| [^|]*\b{name}\b", runbook, re.MULTILINE), f"{name} is in no runbook"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (prometheus) is not here")
def test_rules_fire_when_they_must_and_not_before() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", RULE_TESTS.name],
        cwd=RULE_TESTS.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        for target in panel.get("targets", ()):
            yield target["expr"]
        yield from expressions(panel.get("panels", []))


def test_the_dashboard_asks_only_for_what_exists() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    known = known_names()
    named: set[str] = set()
    for expression in expressions(dashboard["panels"]):
        of_it = set(re.findall(r"\bcoach_\w+", expression))
        assert of_it <= set(known), expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            allowed = set.union(*(known[name] for name in of_it))
            # what coach collects at the moment of asking has no fixed labels to compare with
            if any(known[name] > {"le", "instance"} for name in of_it):
                assert {label.strip() for label in labels.split(",")} <= allowed, expression
        named |= of_it
    assert len(named) > 25


def test_panels_of_the_dashboard_stand_beside_each_other() -> None:
    """No two overlap, every one has a title and a number of its own."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert panel["title"]
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_units_leave_more_time_than_draining_takes() -> None:
    """Else the service manager cuts off what would have been finished."""
    units = {
        "coach.service": config.Server().drain_s,
        "coach-grade@.service": config.Grading().drain_s,
    }
    for name, drain_s in units.items():
        unit = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
        (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
        assert float(stop_s) >= drain_s + KILL_MARGIN_S + 5, name
