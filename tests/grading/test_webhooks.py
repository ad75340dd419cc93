"""Webhooks: signed, told at least once whoever dies, put off while their server fails, bounded."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from coach import config
from coach.grading.desk import Desk
from coach.grading.jobs import Claim
from coach.grading.queue import Queue
from coach.grading.webhooks import (
    ALONE_S_MAX,
    Courier,
    _Receiver,
    delivery_desk,
    run_courier,
    sign,
)
from coach.store import Redis
from tests.support.cancels import cancel_at_step

from .support import GRADE, SETTINGS, essay, open_test_queue, take, until

KEY = b"k" * 32
SECRET = f"whsec_{b64encode(KEY).decode()}"
AT_S = 1_700_000_000.0


def webhook(name: str = "school", **changes: Any) -> config.Webhook:
    return config.Webhook(
        **{"name": name, "url": f"https://{name}.test/news?token=hush", "secret": SECRET} | changes
    )


def test_the_signature_is_that_of_the_standards_reference_library() -> None:
    key = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"url": "http://school.test/"}, "url must be https"),
        ({"url": "ftp://127.0.0.1/"}, "url must be https"),
        ({"secret": "whsec_c2hvcnQ="}, "24 to 64 bytes"),
        ({"secret": "not base64!"}, "24 to 64 bytes"),
        ({"previous_secret": "whsec_"}, "24 to 64 bytes"),
    ],
)
def test_a_webhook_that_cannot_be_used_is_refused_without_its_secret(
    changes: dict[str, str], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        webhook(**changes)
    assert changes.get("secret", SECRET) not in str(caught.value)


async def test_a_server_that_fails_is_left_alone_and_then_asked_by_one() -> None:
    receiver = _Receiver(webhook())
    assert receiver.alone_s(15.0) == receiver.alone_s(15.0) == 0
    receiver.answered(well=False)
    assert receiver.alone_s(15.0) == 2
    await trio.sleep(2)
    assert receiver.alone_s(15.0) == 0
    assert receiver.alone_s(15.0) == 15
    for _ in range(20):
        receiver.answered(well=False)
    assert receiver.alone_s(15.0) == ALONE_S_MAX
    receiver.answered(well=True)
    assert receiver.alone_s(15.0) == receiver.alone_s(15.0) == 0


# -- against a real Valkey ---------------------------------------------------------------------

Reply = int | tuple[int, dict[str, str]] | Exception


@attrs.define
class World:
    """Essays, their deliveries, and servers that answer as they are told."""

    redis: Redis
    queue: Queue
    settings: config.Settings
    replies: dict[str, list[Reply]] = attrs.field(factory=dict)
    """By host; used up, 200."""
    got: list[httpx.Request] = attrs.field(factory=list)

    @property
    def desk(self) -> Desk:
        return delivery_desk(self.redis, self.settings)

    def courier(self) -> Courier:
        """As of a process that has just started."""
        courier = Courier(self.redis, self.queue, self.settings, wall=lambda: AT_S)
        courier._name = "any"  # who dies keeps the lease for a while; here nobody waits for it
        return courier

    async def end(self, id_: str, how: str = "graded", **changes: Any) -> None:
        """An essay is handed in and comes to its end."""
        await self.queue.submit(essay(id_, **changes))
        claim = await take(self.queue)
        if how == "graded":
            assert await self.queue.finish(claim, GRADE) is not None
        else:
            assert await self.queue.fail(claim, reason="r", message="sorry", hopeless=True)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.got.append(request)
        replies = self.replies.get(request.url.host, [])
        reply = replies.pop(0) if replies else 200
        if isinstance(reply, Exception):
            raise reply
        status, headers = reply if isinstance(reply, tuple) else (reply, {})
        return httpx.Response(status, headers=headers, content=b"x" * 100_000)

    async def deliver_next(self, courier: Courier | None = None) -> Claim:
        """Claim the next delivery, and try it."""
        claim = await take(self.desk.queue)
        async with self.client() as client:
            await (courier or self.courier()).deliver(client, claim)
        return claim

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self.answer))

    async def deliveries(self, state: Any) -> list[str]:
        return [job.id async for job in self.desk.jobs(state)]


@asynccontextmanager
async def open_world(
    tmp_path: Path, *hooks: config.Webhook, **changes: Any
) -> AsyncIterator[World]:
    options: dict[str, Any] = {"to": hooks or (webhook(),), "attempts_max": 2} | changes
    webhooks = config.Webhooks(**options)
    async with open_test_queue(tmp_path) as (_, redis):
        queue = Queue(redis, SETTINGS, announces=webhooks.wants)
        yield World(redis, queue, config.Settings(grading=SETTINGS, webhooks=webhooks))


def verified(request: httpx.Request, key: bytes = KEY) -> Any:
    """What a receiver makes of it that checks the signature as the standard says."""
    headers = request.headers
    body = request.content
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert f"v1,{digest}" in headers["webhook-signature"].split(" ")
    return json.loads(body)


@pytest.mark.real_time
async def test_how_essays_end_is_told_signed_and_once_to_each_who_wants_to_hear(
    tmp_path: Path,
) -> None:
    old = b"o" * 24
    hooks = (
        webhook(previous_secret=b64encode(old).decode(), org="school"),
        webhook("failures", events=("submission.failed",)),
    )
    async with open_world(tmp_path, *hooks) as world:
        await world.end("s1")
        await world.end("s2", "failed")
        await world.end("s3", org="other")
        await world.end("second.s1", kind="regrade")
        assert await world.queue.outbox() == 3
        assert await world.courier().pass_on_once(0) == 3
        assert await world.queue.outbox() == 0
        for _ in range(3):
            await world.deliver_next()
        assert not isinstance(await world.desk.queue.claim(0, ("submission",)), Claim)
        told = [(request.url.host, verified(request)) for request in world.got]
        assert {(host, event["type"], event["data"]["submission"]) for host, event in told} == {
            ("school.test", "submission.graded", "s1"),
            ("school.test", "submission.failed", "s2"),
            ("failures.test", "submission.failed", "s2"),
        }
        (graded,) = [event for _, event in told if event["type"] == "submission.graded"]
        assert graded["timestamp"].endswith("Z")
        assert graded["data"] == {
            "submission": "s1",
            "org": "school",
            "user": "ann",
            "assignment": "free",
            "grade": json.loads(msgspec.json.encode(GRADE)),
        }
        (failed, *_) = [event for _, event in told if event["type"] == "submission.failed"]
        assert failed["data"]["failure"] == {
            "code": "provider_unavailable",
            "message": "sorry",
            "can_retry": False,
        }
        assert "by the sea" not in str([request.content for request in world.got])
        of_school = next(each for each in world.got if each.url.host == "school.test")
        verified(of_school, old)
        assert of_school.headers["webhook-timestamp"] == str(int(AT_S))
        assert len({request.headers["webhook-id"] for request in world.got}) == 3


@pytest.mark.real_time
async def test_an_essay_that_an_operator_drops_or_that_went_without_the_queue_is_told_too(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        await world.queue.submit(essay("s1"))
        await Desk(world.redis, SETTINGS).cancel("s1", reason="dropped")
        await world.queue.keep(essay("s2"), GRADE)
        await world.end("s3", "failed")
        await Desk(world.redis, SETTINGS).replay("s3")  # before anybody was told
        found = await world.queue.announced(0, 10)
        assert [(news.state.id, news.state.status) for news in found] == [
            ("s1", "failed"),
            ("s2", "graded"),
        ]
        assert await world.queue.outbox() == 2


@pytest.mark.real_time
async def test_what_is_refused_is_sent_again_under_its_id_until_it_is_a_dead_letter(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        world.replies["school.test"] = [(429, {"retry-after": "900"}), httpx.ConnectError("hush")]
        await world.end("s1")
        await world.courier().pass_on_once(0)
        with capture_logs() as logs:
            await world.deliver_next()
        (job,) = [job async for job in world.desk.jobs("delayed")]
        assert job.at is not None
        assert 890 < job.at - (await world.redis.time())[0] < 910
        assert (job.reason, job.failures) == ("answered 429", 1)
        await world.desk.replay(job.id)
        with capture_logs() as more:
            await world.deliver_next()
        assert [line["event"] for line in logs + more] == ["webhook_put_off", "webhook_given_up"]
        record = await world.redis.execute_command("HGETALL", f"webhook:{{0}}:{job.id}")
        for secret in ("hush", SECRET.removeprefix("whsec_")):
            assert secret not in str([logs, more, record])
        (dead,) = [job async for job in world.desk.jobs("dead")]
        assert (dead.id, dead.reason) == (job.id, "no answer: ConnectError")
        assert [each.was for each in await world.desk.replay(job.id)] == ["dead"]
        await world.deliver_next()
        assert await world.deliveries("dead") == []
        assert [request.headers["webhook-id"] for request in world.got] == [job.id] * 3
        bodies = {request.content for request in world.got}
        assert len(bodies) == 1


@pytest.mark.real_time
@pytest.mark.parametrize(("status", "dead"), [(410, True), (302, False), (500, False)])
async def test_a_server_that_is_gone_is_not_asked_again_and_redirects_are_not_followed(
    tmp_path: Path, status: int, dead: bool
) -> None:
    async with open_world(tmp_path) as world:
        world.replies["school.test"] = [(status, {"location": "https://elsewhere.test/"})]
        await world.end("s1")
        await world.courier().pass_on_once(0)
        await world.deliver_next()
        assert len(world.got) == 1
        assert len(await world.deliveries("dead" if dead else "delayed")) == 1


@pytest.mark.real_time
async def test_a_server_that_fails_keeps_nobody_elses_news_waiting(tmp_path: Path) -> None:
    async with open_world(tmp_path, webhook("a"), webhook("b"), attempts_max=9) as world:
        world.replies["a.test"] = [500] * 9
        courier = world.courier()
        for id_ in ("s1", "s2", "s3"):
            await world.end(id_)
        await courier.pass_on_once(0)
        for _ in range(6):
            await world.deliver_next(courier)
        assert [request.url.host for request in world.got].count("a.test") == 1
        assert [request.url.host for request in world.got].count("b.test") == 3
        put_off = [job async for job in world.desk.jobs("delayed")]
        assert sorted(job.failures for job in put_off) == [0, 0, 1]


@pytest.mark.real_time
async def test_news_waits_in_the_outbox_while_there_are_too_many_deliveries(tmp_path: Path) -> None:
    async with open_world(tmp_path, depth_max=1) as world:
        await world.end("s1")
        await world.end("s2")
        with pytest.raises(Exception, match="too many"):
            await world.courier().pass_on_once(0)
        assert await world.queue.outbox() == 1
        await world.deliver_next()
        assert await world.courier().pass_on_once(0) == 1
        await world.deliver_next()
        assert len({verified(request)["data"]["submission"] for request in world.got}) == 2


@pytest.mark.real_time
async def test_a_delivery_that_cannot_be_made_is_a_dead_letter_that_says_why(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        await world.end("s1")
        await world.courier().pass_on_once(0)
        without = msgspec.structs.replace(world.settings, webhooks=config.Webhooks())
        async with world.client() as client:
            claim = await take(world.desk.queue)
            courier = Courier(world.redis, world.queue, without, wall=lambda: AT_S)
            await courier.deliver(client, claim)
        (job,) = [job async for job in world.desk.jobs("dead")]
        assert "no webhook of this name" in job.reason
        await world.desk.replay(job.id)
        await world.deliver_next()
        assert len(world.got) == 1


@pytest.mark.real_time
async def test_two_couriers_and_one_that_comes_back_make_one_delivery(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.end("s1")
        (news,) = await world.queue.announced(0, 10)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(world.courier().pass_on_once, 0)
        member, at = news.member, news.at
        await world.redis.execute_command(
            "ZADD", "queue:{0}:outbox", round(at * 1000), member
        )  # as if its courier had died before it took it out
        assert await world.courier().pass_on_once(0) == 1
        assert len(await world.deliveries("ready")) == 1


@pytest.mark.real_time
async def test_cancelled_at_every_checkpoint_the_news_is_told_all_the_same(tmp_path: Path) -> None:
    """A courier that is cancelled, or dies, anywhere leaves the rest to another one."""

    async def once(world: World, courier: Courier) -> None:
        await courier.pass_on_once(0)
        await world.deliver_next(courier)

    async with open_world(tmp_path) as world:
        for step in range(1, 1_000):
            world.got.clear()
            await world.end(f"s{step}")
            with cancel_at_step(step) as scope:
                await once(world, world.courier())
            if await world.queue.outbox():
                await world.courier().pass_on_once(0)
            for id_ in await world.redis.execute_command("ZRANGE", "webhooks:{0}:leased", 0, -1):
                # a claim that was cancelled as it was made comes back with its lease
                await world.redis.execute_command("ZADD", "webhooks:{0}:leased", 1, id_)
            await world.desk.queue.promote(0)
            if await world.deliveries("ready"):
                await world.deliver_next()
            assert await world.queue.outbox() == 0
            statistics = await world.desk.queue.statistics()
            assert (statistics.leased, statistics.delayed, statistics.dead) == (0, 0, 0)
            told = {verified(request)["data"]["submission"] for request in world.got}
            assert told == {f"s{step}"}
            assert len({request.headers["webhook-id"] for request in world.got}) == 1
            if not scope.cancel_called:
                break
        assert step > 10


@pytest.mark.real_time
async def test_a_courier_tells_what_comes_and_ends_what_is_under_way_when_it_stops(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        stopping = trio.Event()
        run = partial(
            run_courier,
            world.redis,
            world.queue,
            world.settings,
            stopping=stopping,
            transport=httpx.MockTransport(world.answer),
        )
        await world.end("s1")
        nursery.start_soon(run)
        await until(lambda: world.got)
        stopping.set()
        await until(lambda: not nursery.child_tasks)
        assert await world.deliveries("leased") == []
        assert await world.deliveries("ready") == []
