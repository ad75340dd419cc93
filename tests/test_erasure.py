"""Erasing a user: the whole database is searched for the name and for what was written."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
import trio
from typer.testing import CliRunner

from coach import config
from coach.app import app
from coach.budget import set_rule
from coach.cli import cli
from coach.grading import Bulk, Claim, Readings, Reviews, Submission, delivery_desk
from coach.grading.batch import custom_id
from coach.ops import ask_for_bill, read_bill
from coach.providers import Usage
from coach.session import Records
from coach.store import Redis
from tests.test_app import GRADE, Opened, opened

pytestmark = pytest.mark.real_time

TEXT = "My secret summer"
HERE, ELSEWHERE = "school", "academy"
LOST = "auth0|ana.lost"
"""As identity providers name people."""
PEOPLE = ((LOST, HERE), (LOST, ELSEWHERE), (f"{LOST}2", HERE), ("eve", HERE))


async def live(served: Opened, user: str, org: str) -> None:
    """Leave a user's traces everywhere that coach keeps any."""
    backend, text = served.parts.backend, f"{TEXT} of {user} in {org}"
    redis, queue, me = backend.redis, backend.queue, f"{user.removeprefix('auth0|')}-{org}"
    session = f"sid-{PEOPLE.index((user, org))}"
    for each in (queue, delivery_desk(redis, app.settings).queue):
        for fate in ("graded", "put-off", "given-up", "runs", "waits"):
            await each.submit(
                Submission(id=f"{fate}.{me}", user=user, org=org, assignment="a", text=text)
            )
            if fate == "waits":
                continue
            claim = await each.claim(each.shard(org), ["submission"])
            assert isinstance(claim, Claim)
            if fate == "graded":
                await each.finish(claim, GRADE)
            elif fate != "runs":
                await each.fail(claim, reason="r", delay_s=600.0, final=fate == "given-up")
    await Reviews(redis, queue, app.settings.grading).add(org, f"graded.{me}", "disagreement")
    bulk = Bulk(redis, queue, app.settings.grading)
    essays = [f"graded.{me}"]
    job = await bulk.open(org, "regrade", essays, by=user, way="batch", job=f"j-{session}")
    await redis.execute_command("HSET", f"bulk:{{0}}:batches:{job}", "chunk:0", f'["graded.{me}"]')
    await redis.execute_command(
        "HSET", f"bulk:{{0}}:answers:{job}", custom_id(job, f"graded.{me}", 2), text
    )
    outbox = f"queue:{{{queue.shard(org)}}}:outbox"
    await redis.execute_command("ZADD", outbox, 1, f"graded 1 graded.{me}")
    await readings_of(served).enter(org, f"graded.{me}", by="eve", score=70, blind=True)

    await queue.inbox.expect(org, user, f"graded.{me}")
    await queue.inbox.come(org, user, "w-gone")

    records = Records(redis, config.Session())
    state_json = msgspec.json.encode({"draft": text})
    await records.keep(
        session,
        worker="w-gone",
        epoch=1,
        fields={
            "user": user,
            "org": org,
            "role": "student",
            "token": f"digest-{me}",
            "previous": "",
            "state": state_json,
            "draft:d1": state_json,
        },
        said=(state_json,),
        tail="append",
        parted=True,
    )
    for letter in (
        {"kind": "grade", "session": "s", "user": user, "submission": f"graded.{me}"},
        {"kind": "relay", "session": session, "user": user, "submission": ""},
    ):
        await records.post("w-gone", {**letter, "payload": text})

    async with served.parts.services.limits.reserve(user=user, org=org, tokens=10) as reservation:
        reservation.settle(5)
    await set_rule(redis, org=org, user=user, each_user=False, limits={"requests": 9}, by="op")
    backend.costs.book(
        reason="feedback",
        provider="p",
        model="claude-opus-5-5",
        usage=Usage(1_000, 0, 0, 0),
        org=org,
        user=user,
        assignment="a",
    )
    await backend.costs.flush(redis)


def readings_of(served: Opened) -> Readings:
    backend = served.parts.backend
    return Readings(backend.redis, backend.queue, app.settings.grading, backend.rubric)


async def traces(redis: Redis, *words: bytes) -> list[bytes]:
    """The keys in whose name or value any of the words stands."""
    found = []
    async for key in redis.scan_keys("*"):
        value = b" ".join(await _leaves(redis, key))
        if any(word in key or word in value for word in words):
            found.append(key)
    return sorted(found)


async def _leaves(redis: Redis, key: bytes) -> list[bytes]:
    reads = {
        b"string": ("GET", key),
        b"hash": ("HGETALL", key),
        b"list": ("LRANGE", key, 0, -1),
        b"set": ("SMEMBERS", key),
        b"zset": ("ZRANGE", key, 0, -1),
        b"stream": ("XRANGE", key, "-", "+"),
    }
    leaves: list[bytes] = []
    branches = [await redis.execute_command(*reads[await redis.execute_command("TYPE", key)])]
    while branches:
        branch = branches.pop()
        if isinstance(branch, dict):
            branches += [*branch.keys(), *branch.values()]
        elif isinstance(branch, list | tuple | set):
            branches += branch
        elif isinstance(branch, bytes):
            leaves.append(branch)
    return leaves


async def test_nothing_that_names_a_user_or_that_they_wrote_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        redis = served.parts.backend.redis
        for user, org in PEOPLE:
            await live(served, user, org)
        mine = (b"ana.lost-school", b"ana.lost in school")
        others = [(f"{u}-{o}".encode(), f"{u} in {o}".encode()) for u, o in PEOPLE[1:]]
        before = [await traces(redis, *words) for words in others]
        assert len(await traces(redis, *mine)) >= 10
        assert all(len(keys) >= 10 for keys in before)
        bill = await spent_in(redis, HERE)

        operator = served.bearer("op", ELSEWHERE, role="operator")
        path = f"/api/users/{quote(LOST)}?org={HERE}"
        erased = await (await app.test_client().delete(path, headers=operator)).get_json()
        assert erased == {
            "sessions": 1,
            "submissions": 10,
            "scores": 0,
            "inbox": 2,
            "letters": 2,
            "limits": 2,
            "hours": 1,
        }
        assert [await traces(redis, *words) for words in others] == before
        assert await spent_in(redis, HERE) == bill
        assert await traces(redis, *mine) == []
        jobs = await Bulk(redis, served.parts.backend.queue, config.Grading()).jobs()
        assert sorted(job.by for job in jobs) == ["", LOST, f"{LOST}2", "eve"]
        by_user = ask_for_bill(org=HERE, user=None, by="user", since=None, until=None)
        users = {name for (name,) in (await read_bill(redis, by_user)).lines}
        assert users == {"", f"{LOST}2", "eve"}
        again = await app.test_client().delete(path, headers=operator)
        assert set((await again.get_json()).values()) == {0}


async def test_what_an_educator_gave_goes_with_them_and_the_essays_stay(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        await live(served, LOST, HERE)
        redis, readings, essay = served.parts.backend.redis, readings_of(served), "graded.ana.lost"
        await readings.enter(HERE, f"{essay}-{HERE}", by="eva.gone", score=60, blind=True)
        operator = served.bearer("op", HERE, role="operator")
        gone = await app.test_client().delete("/api/users/eva.gone", headers=operator)
        assert (await gone.get_json())["scores"] == 1
        assert await traces(redis, b"eva.gone") == []
        found = await readings.find(HERE, f"{essay}-{HERE}")
        assert found is not None
        assert [score.by for score in found.scores] == ["eve"]


async def test_the_command_says_how_much_there_was_and_when_nothing_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        user, org = PEOPLE[0]
        await live(served, user, org)
        command = ["users", "erase", user, "--org", org, "--data-dir", str(tmp_path)]
        said = []
        for _ in range(2):
            result = await trio.to_thread.run_sync(CliRunner().invoke, cli, command)
            assert result.exit_code == 0, (result.output, result.exception)
            said.append(result.output)
    assert said == [
        "erased: 1 sessions, 10 submissions, 2 inbox, 2 letters, 2 limits, 1 hours\n",
        "nothing is left of this user\n",
    ]


async def spent_in(redis: Redis, org: str) -> object:
    bill = await read_bill(
        redis, ask_for_bill(org=org, user=None, by="day", since=None, until=None)
    )
    return bill.lines
