"""The bridge over HTTP, with a real Redis: who may look, what is seen, what is done and written."""

from __future__ import annotations

import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from coach import acts, bridge, config, control
from coach.app import app
from coach.grading import Claim, Submission
from coach.ops import read_flags
from coach.store import RedisError, hold_lease
from tests.support.valkey import open_test_redis

from .test_app import PROVIDER, Opened, answer, opened, serving
from .test_review import graded

pytestmark = pytest.mark.real_time

PATHS = tuple(
    f"/api/ops/{name}" for name in ("stream", "quotas", "audit", "dead", "bulk", "regrade")
)


async def act(served: Opened, **action: object) -> tuple[int, dict[str, Any]]:
    response = await app.test_client().post(
        "/api/ops/actions", json=action, headers=served.bearer("ola", role="operator")
    )
    return response.status_code, await response.get_json()


async def audit(served: Opened) -> list[dict[str, Any]]:
    status, entries = await answer("/api/ops/audit", served.bearer(role="operator"))
    assert status == 200
    return [{**entry, **msgspec.json.decode(entry["detail"])} for entry in entries]


async def dead_letter(served: Opened, id_: str) -> None:
    queue = served.parts.backend.queue
    await queue.submit(Submission(id=id_, user="ana", org="demo", assignment="x", text="Calm."))
    claim = await queue.claim(0, ["submission"])
    assert isinstance(claim, Claim)
    await queue.fail(claim, reason="no use", final=True)


async def test_nobody_but_operators_sees_or_does_anything(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        for path in PATHS:
            assert (await answer(path))[0] == 401
            for role in ("student", "educator"):
                assert (await answer(path, served.bearer(role=role)))[0] == 403
        response = await app.test_client().post(
            "/api/ops/actions",
            json={"type": "flag", "flag": "pool", "percent": 0},
            headers=served.bearer(role="educator"),
        )
        assert response.status_code == 403
        assert await read_flags(served.parts.backend.redis) == {}


async def test_what_an_operator_does_is_done_and_written_down(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        queue = served.parts.backend.queue
        assert (await act(served, type="lane", lane="submission", mode="paused"))[0] == 200
        assert (await queue.statistics()).lanes["submission"].mode == "paused"
        await act(served, type="lane", lane="submission", mode="open")
        await dead_letter(served, "e-1")
        await dead_letter(served, "e-2")
        shown = (await answer("/api/ops/dead", served.bearer(role="operator")))[1]
        assert [job["id"] for job in shown] == ["e-2", "e-1"]
        said = (await act(served, type="dead", id="e-1", what="retry"))[1]["said"]
        assert said == "e-1: it was dead"
        assert (await queue.statistics()).lanes["submission"].ready == 1
        await act(served, type="dead", id="e-2", what="drop")
        assert (await queue.statistics()).dead == 0
        assert (await act(served, type="flag", flag="pool", percent=25))[0] == 200
        assert await read_flags(served.parts.backend.redis) == {"pool": 25}
        entries = await audit(served)
    assert [entry["type"] for entry in entries] == ["flag", "dead", "dead", "lane", "lane"]
    assert {entry["who"] for entry in entries} == {"demo/ola"}
    assert entries[0]["percent"] == 25


async def test_an_operator_leaves_a_provider_alone_and_asks_it_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        (endpoint,) = served.parts.backend.endpoints
        name = endpoint.provider.name
        said = (await act(served, type="breaker", provider=name, what="hold"))[1]["said"]
        assert said == f"{name} is left alone for 10 minutes"
        assert await endpoint.circuit.ask() is None
        said = (await act(served, type="breaker", provider=name, what="reset"))[1]["said"]
        assert said == f"{name} is asked again"
        assert await endpoint.circuit.ask() is not None
        assert [entry["type"] for entry in await audit(served)] == ["breaker", "breaker"]


async def test_an_operator_changes_a_quota_for_a_while_and_the_settings_decide_again(
    tmp_path: Path,
) -> None:
    provider = msgspec.structs.replace(PROVIDER, quota=config.Quota(requests_per_minute=100))
    async with opened(tmp_path, provider=(provider,)) as served:

        async def quota() -> tuple[dict[str, int], float | None]:
            _, (found,) = await answer("/api/ops/quotas", served.bearer(role="operator"))
            assert found["provider"] == provider.name
            return found["quota"], found["said_for_s"]

        assert await quota() == ({"requests": 100}, None)
        wanted = {"type": "quota", "provider": provider.name, "hours": 2}
        _, told = await act(served, **wanted, limits={"requests": 40})
        assert told["said"] == f"{provider.name}: requests 40 a minute, for 2 h"
        limits, said_for_s = await quota()
        assert limits == {"requests": 40}
        assert said_for_s == pytest.approx(7_200, abs=60)
        await act(served, **wanted, limits={"requests": 900})
        assert (await quota())[0] == {"requests": 100}  # not above the settings, unless
        await act(served, **wanted, limits={"requests": 900}, may_exceed=True)
        assert (await quota())[0] == {"requests": 900}
        await act(served, **wanted)
        assert await quota() == ({"requests": 100}, None)
        assert [entry["type"] for entry in await audit(served)] == ["quota"] * 4


async def test_workers_are_renewed_by_the_supervisor_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, or one alone; what was asked for goes down the pipe to it."""
    async with opened(tmp_path) as served:
        status, said = await act(served, type="workers", what="renew")
        assert (status, said["code"]) == (400, "bad_message")
        assert await audit(served) == []
        with control.open_control() as (asking, inherited):
            monkeypatch.setenv(control.VARIABLE, f"{inherited}")
            assert (await act(served, type="workers", what="renew"))[0] == 200
            said = (await act(served, type="workers", what="renew", slot="1"))[1]["said"]
            assert said.startswith("worker 1 is renewed")
            async with aclosing(control.asked(asking)) as lines:
                assert [await anext(lines), await anext(lines)] == ["renew", "renew 1"]
            while filled(inherited):
                pass
            status, said = await act(served, type="workers", what="renew")
            assert (status, said["code"]) == (503, "overloaded")
        assert [entry["type"] for entry in await audit(served)] == ["workers"] * 3


def filled(fd: int) -> int:
    """Write into a pipe what it takes; 0: it is full."""
    try:
        return os.write(fd, b"\n" * 1_024)
    except BlockingIOError:
        return 0


async def test_essays_are_graded_again_after_the_price_was_told(tmp_path: Path) -> None:
    """No more of them than it was told for; asked twice it is one job; it can be paused."""
    async with opened(tmp_path) as served:
        for number in range(3):
            await graded(served, f"e-{number}", {"a": 3})
        mine = served.bearer("ola", role="operator")
        asked = {"org": "demo", "assignment": "x"}
        status, told = await answer("/api/ops/regrade?org=demo&assignment=x", mine)
        assert (status, told["essays"], told["currency"]) == (200, 3, "USD")
        assert told["answers"] == 3 * served.parts.services.settings.grading.judges
        assert (await answer("/api/ops/regrade?org=demo&assignment=none", mine))[1]["essays"] == 0
        wrong = ("org=demo", "org=demo&assignment=x&percent=0", "org=demo&assignment=x&batch=maybe")
        for question in wrong:
            assert (await answer(f"/api/ops/regrade?{question}", mine))[0] == 400
        begin = {"type": "regrade", **asked, "job": "b-1", "essays": 2}
        said = [(await act(served, **begin))[1]["said"] for _ in range(2)]
        assert said == ["b-1: 2 essays are graded again, in the background"] * 2
        (job,) = (await answer("/api/ops/bulk", mine))[1]
        assert (job["id"], job["total"], job["mode"], job["by"]) == ("b-1", 2, "running", "ola")
        said = (await act(served, type="bulk", job="b-1", mode="paused"))[1]["said"]
        assert said == "b-1 is paused; 2 of 2 are not begun"
        nobody = (await act(served, type="bulk", job="b-2", mode="paused"))[1]["said"]
        assert nobody == "b-2: nobody knows it"
        nothing = await act(served, **{**begin, "assignment": "none", "job": "b-3"})
        assert "has no essay" in nothing[1]["said"]
        types = [entry["type"] for entry in await audit(served)]
    assert types == ["regrade", "bulk", "bulk", "regrade", "regrade"]


@pytest.mark.parametrize(
    "action",
    [
        {"type": "quota", "provider": "nobody", "limits": {"requests": 1}},
        {"type": "quota", "provider": "p", "limits": {"requests": 0}},
        {"type": "quota", "provider": "p", "limits": {"wishes": 1}},
        {"type": "quota", "provider": "p", "limits": {"requests": 1}, "hours": 1_000},
        {"type": "breaker", "provider": "nobody", "what": "hold"},
        {"type": "lane", "lane": "fast", "mode": "paused"},
        {"type": "flag", "flag": "poool", "percent": 5},
        {"type": "flag", "flag": "pool", "percent": 101},
        {"type": "explode"},
        {"type": "dead", "id": "e-1", "what": "drop", "more": 1},
    ],
)
async def test_what_cannot_be_done_is_neither_done_nor_written(
    tmp_path: Path, action: dict[str, object]
) -> None:
    async with opened(tmp_path) as served:
        status, said = await act(served, **action)
        assert (status, said["code"]) == (400, "bad_message")
        assert await audit(served) == []


async def test_an_id_that_nobody_knows_is_said_to_be_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        assert (await act(served, type="dead", id="x", what="retry"))[1]["said"] == (
            "x: nobody knows it"
        )


async def test_what_cannot_be_written_down_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RedisError("away")

    async with opened(tmp_path) as served:
        monkeypatch.setattr(acts, "write_audit", fails)
        assert (await act(served, type="flag", flag="pool", percent=0))[0] == 503
        assert await read_flags(served.parts.backend.redis) == {}


async def test_the_stream_brings_the_past_and_goes_on_until_the_worker_drains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "SAMPLE_S", 0.05)
    monkeypatch.setattr(bridge, "WATCH_S", 0.1)
    lines = []
    async with (
        opened(tmp_path) as served,
        serving() as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        await trio.sleep(0.4)
        mine = served.bearer(role="operator")
        async with client.stream("GET", "/api/ops/stream", headers=mine) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            with trio.fail_after(10):
                async for line in response.aiter_lines():
                    lines.append(line)
                    if len(lines) == 40:
                        served.parts.sessions.drain()  # and the stream ends
    records = [msgspec.json.decode(line[6:]) for line in lines if line.startswith("data: ")]
    assert len(records) > 5
    moments = [record["at"] for record in records]
    assert moments == sorted(set(moments))
    assert records[0]["lanes"]["submission"] == {"ready": 0, "oldest_s": 0.0, "paused": False}


async def test_of_several_workers_one_samples_and_another_goes_on_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one it is may change where a process stands still for longer than its lease.

    One that dies gives nothing up, one that drains does: see the next test.
    """
    monkeypatch.setattr(bridge, "SAMPLE_S", 0.05)
    monkeypatch.setattr(bridge, "LEASE_MS", 300)
    monkeypatch.setattr(bridge, "leave_lease", dies)
    key, stream = (f"{name}:{bridge.host_name()}" for name in ("sampler", "ops"))

    async with open_test_redis(tmp_path) as redis, trio.open_nursery() as nursery:
        scopes, began = {}, trio.current_time()
        for worker in ("w0", "w1"):
            scopes[worker] = trio.CancelScope()

            async def run(worker: str = worker) -> None:
                with scopes[worker]:
                    await bridge.run_sampler(redis, worker=worker)

            nursery.start_soon(run)
            await trio.sleep(0.1)

        async def holder() -> str:
            with trio.fail_after(5):
                while (name := await redis.execute_command("GET", key)) is None:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            return str(name.decode())

        await trio.sleep(0.5)
        samples = await redis.xlen(stream)
        both = 2 * (trio.current_time() - began) / 0.05
        assert 0 < samples < both * 0.75
        dead = await holder()
        scopes[dead].cancel()
        with trio.fail_after(5):
            while await holder() == dead:  # noqa: ASYNC110  a lease runs out
                await trio.sleep(0.02)
        before = await redis.xlen(stream)
        with trio.fail_after(5):
            while await redis.xlen(stream) <= before:  # noqa: ASYNC110  the other goes on
                await trio.sleep(0.02)
        assert 0 < await redis.ttl(stream) <= bridge.TTL_S
        nursery.cancel_scope.cancel()


async def dies(*args: object) -> None:
    raise RedisError("nobody is there to say so")


async def test_a_worker_that_drains_lets_another_one_sample_at_once(tmp_path: Path) -> None:
    """Its lease would last for twelve seconds."""
    async with open_test_redis(tmp_path) as redis:
        with trio.move_on_after(0.2):
            await bridge.run_sampler(redis, worker="w0")
        assert await redis.execute_command("KEYS", "sampler:*") == []
        with trio.move_on_after(0.2):
            await bridge.run_sampler(redis, worker="w1")
        await hold_lease(redis, f"sampler:{bridge.host_name()}", "w2", 1_000)
        with trio.move_on_after(0.2):
            await bridge.run_sampler(redis, worker="w1")
        assert len(await redis.execute_command("KEYS", "sampler:*")) == 1  # another's stays
