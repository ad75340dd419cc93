"""`coach queue` against a real Valkey: what an operator types, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from coach import config
from coach.grading import LANES, Queue, Submission
from coach.store import open_embedded, open_redis
from tests.test_cli import coach, refusal

pytestmark = pytest.mark.real_time


@attrs.frozen
class Operator:
    """A queue, and the command line beside it."""

    queue: Queue
    folder: Path

    async def says(self, *arguments: str, code: int = 0) -> str:
        done = await coach("queue", *arguments, "--data-dir", str(self.folder), cwd=self.folder)
        assert done.returncode == code, done.stderr.decode()
        return done.stdout.decode()

    async def is_told(self, *arguments: str) -> Any:
        return json.loads(await self.says(*arguments, "--json"))

    async def is_refused(self, *arguments: str) -> str:
        return refusal(
            await coach("queue", *arguments, "--data-dir", str(self.folder), cwd=self.folder)
        )


@asynccontextmanager
async def open_operator(tmp_path: Path) -> AsyncIterator[Operator]:
    """Three essays: `gone` is a dead letter, `a` and `b` wait."""
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        await redis.execute_command("CONFIG SET", "appendfsync", "always")
        queue = Queue(redis, config.Grading())
        for id_ in ("gone", "a", "b"):
            await queue.submit(
                Submission(id=id_, user="ann", org="school", assignment="x", text="Calm.")
            )
        claim = await queue.claim(0, LANES)
        assert claim is not None
        assert not isinstance(claim, float)
        await queue.fail(claim, reason="no judge answers", final=True)
        yield Operator(queue, tmp_path)


async def test_an_operator_sees_repeats_and_drops(tmp_path: Path) -> None:
    async with open_operator(tmp_path) as operator:
        lanes = (await operator.says("show")).splitlines()
        assert lanes[2].split()[:4] == ["submission", "open", "2", "2"]
        assert "1 dead letters" in lanes[-1]
        (dead,) = (await operator.says("show", "--state", "dead")).splitlines()[1:]
        assert dead.startswith("gone ")
        assert dead.rstrip().endswith("no judge answers")
        (shown,) = await operator.is_told("show", "--state", "ready", "--limit", "1")
        assert (shown["id"], shown["state"], shown["attempts"]) == ("a", "ready", 0)

        assert await operator.says("retry", "--all") == "1 ready now\n"
        assert (await operator.queue.statistics()).dead == 0
        assert await operator.says("retry", "a", "nobody", code=1) == (
            "0 ready now\na is ready already\nnobody is unknown\n"
        )

        assert await operator.is_refused("drop", "a") == "say --yes to drop 1 job"
        told = await operator.is_told("drop", "a", "--yes")
        assert told == {"done": [{"id": "a", "shard": 0, "was": "ready"}], "unknown": []}
        left = await operator.says("drop", "--all", "--state", "ready", "--yes")
        assert left == "2 dropped\n"
        assert (await operator.is_told("show"))["lanes"]["submission"]["unfinished"] == 0


async def test_an_operator_stops_and_starts_lanes(tmp_path: Path) -> None:
    async with open_operator(tmp_path) as operator:
        assert await operator.says("pause", "submission") == "submission: paused, 2 unfinished\n"
        assert not (await operator.queue.claim_many(0, LANES, 8))[0]
        assert (await operator.is_told("resume", "--all"))["lanes"] == list(LANES)
        claims, _ = await operator.queue.claim_many(0, LANES, 8)
        assert len(claims) == 2
        refused = await operator.is_refused("drain", "submission")
        assert refused.startswith("say --yes to refuse new essays in submission until")
        said = await operator.says("drain", "submission", "--yes", "--no-wait")
        assert said == "submission: draining, 2 left\n"
        assert (await operator.is_told("show"))["lanes"]["submission"]["mode"] == "draining"


async def test_what_an_operator_gets_wrong_is_one_line(tmp_path: Path) -> None:
    async with open_operator(tmp_path) as operator:
        assert (await operator.is_refused("pause")).startswith("name lanes (interactive, ")
        assert (await operator.is_refused("pause", "fast")).startswith("'fast' is no lane: ")
        assert (await operator.is_refused("retry")).startswith("name them, or say --all")
        assert (await operator.is_refused("drop", "a", "--all")).startswith("name them")
    away = await coach(
        "queue",
        "show",
        cwd=tmp_path,
        environ={"COACH_REDIS__URL": "redis://:p@127.0.0.1:1", "COACH_REDIS__WAIT_S": "0.1"},
    )
    assert refusal(away).startswith("redis.url: Redis does not answer: ")
