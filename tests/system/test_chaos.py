"""scripts/chaos on a small scale: everything breaks, and no student loses a word."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.real_time

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from chaos_run import main; sys.exit(main())"
)


async def test_whatever_is_killed_nothing_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    """Workers, Valkey and a provider, under students with bad networks; half a minute in all."""
    figures = tmp_path / "chaos.json"
    options = ["--writers", "12", "--minutes", "0.3", "--json", str(figures)]
    run = [sys.executable, "-c", RUN, str(SCRIPTS), *options]
    done = await trio.run_process(run, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    found = json.loads(figures.read_text())
    assert found["deltas_lost"] == found["deltas_doubled"] == found["streams_left_open"] == 0
    assert found["resumed"] > 0
    assert found["graded"] == found["submissions"] >= 12
