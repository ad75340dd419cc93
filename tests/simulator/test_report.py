"""The report's files: whole, self-contained, and safe with whatever a server has said."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from coach.simulator.charts import Chart, Series, svg
from coach.simulator.conversation import Tally
from coach.simulator.exposition import Exposition
from coach.simulator.host import Usage
from coach.simulator.report import charts_of, page_of, write_report
from coach.simulator.timeline import Sample
from coach.simulator.verdict import judge
from coach.simulator.writers import Plan, Report


def sample(at_s: float, **changes: object) -> Sample:
    usages = (Usage(7, "worker", 0.5, 90.0, 40, 1024), Usage(8, "redis", 0.1, 12.0, 20, 1024))
    return Sample(at_s=at_s, writers=int(at_s) + 1, usages=usages, **changes)  # type: ignore[arg-type]


SAMPLES = [
    sample(0.0),
    sample(1.0, ttft_p95_ms=310.0, tokens={"input": 20, "cached": 5, "output": 7}),
    sample(2.0, ttft_p95_ms=900.0, errors=1, error_codes={"<script>alert(1)</script>": 1}),
]


def test_a_folder_has_the_run_for_programs_spreadsheets_and_people(tmp_path: Path) -> None:
    """The secret that signs tokens is in none of them; the page refers to nothing else."""
    plan = Plan(writers=3, seconds=10, secret="the signing key")
    page = write_report(tmp_path / "new", Report(plan, Tally(), 3.0), SAMPLES, judge(SAMPLES))
    run = json.loads((tmp_path / "new" / "run.json").read_text())
    assert run["writers"] == 3
    assert run["verdict"]["noticed"]["name"] == "errors"
    assert [row["ttft_p95_ms"] for row in run["samples"]] == [None, 310.0, 900.0]
    with (tmp_path / "new" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["worker_cpu"] for row in rows] == ["0.5"] * 3
    assert rows[1]["tokens_input"] == "20"
    for file_ in (tmp_path / "new").iterdir():
        assert "the signing key" not in file_.read_text()
    text = page.read_text()
    assert not re.search(r"(?:src|href)=|url\(|@import", text)
    assert "<!--" not in text
    assert "prefers-color-scheme: dark" in text


def test_what_a_server_says_is_text_on_the_page() -> None:
    """An error code that is a script is shown, not run."""
    report = Report(Plan(writers=3, seconds=10), Tally(), 3.0)
    text = page_of(report.as_dict(), report.plan.as_dict(), SAMPLES, judge(SAMPLES))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    parser = HTMLParser()
    parser.feed(text)
    parser.close()


def test_charts_leave_gaps_where_nothing_is_known() -> None:
    """A line goes on after them; a chart without a point is not shown."""
    shown = {chart.title for chart in charts_of(SAMPLES) if chart.shown}
    assert "Time to first token" in shown
    assert "Time to score (p95)" not in shown
    chart = Chart(title="a & b", unit="", series=[Series("x", [(0, 1), (1, None), (2, 3), (4, 2)])])
    drawing = svg(chart, [(0, 1), (4, 9)], mark_s=2)
    (path,) = re.findall(r'class="line line-1" d="([^"]*)"', drawing)
    assert [part[0] for part in re.findall(r"[ML][^ML]*", path)] == ["M", "M", "L"]
    assert 'aria-label="a &amp; b"' in drawing


@pytest.mark.parametrize("value", [0.0, 0.004, 1, 999, 1_000, 1.2e9])
def test_every_value_lies_within_its_scale(value: float) -> None:
    """From nothing to billions."""
    chart = Chart(title="t", unit="", series=[Series("x", [(0, value)])])
    drawing = svg(chart, [(0, 0)])
    (y,) = re.findall(r'line-1" d="M\S+ ([\d.]+)h0"', drawing)
    assert 0 < float(y) < 220


def test_scales_are_written_as_people_write_them() -> None:
    """Whole hundreds and thousands; no exponents."""
    chart = Chart(title="t", unit="", series=[Series("x", [(0, 1_400.0)])])
    drawing = svg(chart, [(0, 25_000), (1, 0)])
    shown = re.findall(r'class="tick(?: faint)?"[^>]*>([^<]*)<', drawing)
    assert {"1500", "1125", "375", "30k", "7.5k"} - set(shown) == {"7.5k"}
    assert "7500" in shown


SCRAPE = """\
# HELP coach_wait_seconds how long
coach_wait_seconds_bucket{le="0.1",endpoint="a \\"b\\""} 90
coach_wait_seconds_bucket{le="1.0",endpoint="a \\"b\\""} 99
coach_wait_seconds_bucket{le="+Inf",endpoint="a \\"b\\""} 100
coach_lines{endpoint="a",lane="live"} 3
coach_lines{endpoint="b",lane="live"} 4
coach_lines{endpoint="b",lane="background"} 5.5
coach_strange not-a-number
"""


def test_metrics_are_read_as_a_scraper_reads_them() -> None:
    """Totals by label, and quantiles of what came since an earlier scrape."""
    now, nothing = Exposition(SCRAPE), Exposition()
    assert now.total("coach_lines") == 12.5
    assert now.total("coach_lines", endpoint="b") == 9.5
    assert now.largest("coach_lines", lane="live") == 4
    assert now.total("coach_strange") == now.largest("coach_absent") == 0
    assert now.quantile("coach_wait_seconds", 0.5, nothing) == 0.1
    assert now.quantile("coach_wait_seconds", 0.95, nothing) == 1.0
    assert now.quantile("coach_wait_seconds", 1.0, nothing) == 1.0
    assert now.quantile("coach_wait_seconds", 0.5, now) is None
