"""scripts/chaos for a minute: everything breaks, and no student loses a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from chaos_run import main; sys.exit(main())"
)
ENDS_S_MAX = 300
"""Most of it on a machine that is busy with other things."""


def test_whatever_is_killed_nothing_is_lost_doubled_or_left_behind(tmp_path: Path) -> None:
    """Workers, Valkey and a provider, under students with bad networks."""
    figures = tmp_path / "chaos.json"
    options = ["--writers", "20", "--minutes", "1", "--json", str(figures)]
    run = [sys.executable, "-c", RUN, str(SCRIPTS), *options]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=ENDS_S_MAX)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["deltas_lost"] == found["deltas_doubled"] == found["streams_left_open"] == 0
    assert found["resumed"] > 20
    assert found["graded"] == found["submissions"] >= 20
