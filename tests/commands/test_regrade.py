"""`coach regrade` and `coach bulk` against a real Valkey: what an operator types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coach import config
from coach.errors import CoachError
from coach.grading import Bulk, Grade, Queue, Submission
from coach.store import open_embedded, open_redis

from . import inside

pytestmark = pytest.mark.real_time

PROVIDER = """[[provider]]
name = "p"
base_url = "https://127.0.0.1:1"
model = "m"
api_key = "k"
price = { input = "3", output = "15" }
"""


async def test_an_operator_asks_for_the_price_begins_pauses_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coach.toml").write_text(PROVIDER)
    monkeypatch.setenv("COACH_CONFIG", str(tmp_path / "coach.toml"))
    monkeypatch.setenv("COACH_DATA_DIR", str(tmp_path))
    says = inside.says
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        queue = Queue(redis, config.Grading())
        for number in range(3):
            essay = Submission(
                id=f"s{number}", user="ann", org="demo", assignment="a", text="Calm. " * 100
            )
            grade = Grade(score=7, criteria=(), judges=3, degraded=False, feedback="")
            await queue.keep(essay, grade)
        said = await says("regrade", "--assignment", "a", "--dry-run")
        assert said.startswith("3 essays, 9 answers of judges: about ")
        with pytest.raises(CoachError, match="say --yes to begin"):
            await says("regrade", "s1")

        (tmp_path / "list").write_text("s1\n\nnobody's\n")
        begin = ("regrade", "s0", "--list", str(tmp_path / "list"), "--yes", "--no-wait")
        job = json.loads(await says(*begin, "--json"))
        assert (job["total"], job["kind"], job["mode"]) == (2, "regrade", "running")
        assert await says("bulk", "pause", job["id"]) == f"{job['id']}: paused, 0 of 2\n"
        assert job["id"] in await says("bulk", "show")
        await says("bulk", "stop", job["id"], "--yes")
        found = await Bulk(redis, queue, config.Grading()).find(job["id"])
        assert found is not None
        assert (found.mode, found.waiting) == ("stopped", 0)
    with pytest.raises(CoachError, match="name submissions, --list"):
        await says("regrade")
