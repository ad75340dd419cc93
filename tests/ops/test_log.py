"""What must never stand in a log does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import structlog
from coach import config
from coach.ops import log

log.configure(config.Log(format=sys.argv[1]))

def ask(api_key: str, essay: str) -> None:
    prompt = {"essay": essay}
    raise ValueError(f"cannot ask with {len(prompt)} part")

try:
    ask("sk-" + "very-secret", "Dear " + "diary")
except* ValueError:
    structlog.get_logger().exception("turn_failed", session="s1")
"""


@pytest.mark.parametrize("format_", ["console", "json"])
def test_a_traceback_shows_where_but_not_what_with(format_: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, format_], capture_output=True, text=True, check=True
    ).stderr
    assert "turn_failed" in said
    assert "cannot ask with 1 part" in said
    assert "ask" in said
    assert "very-secret" not in said.replace('"sk-" + "very-secret"', "")
    assert "Dear diary" not in said
