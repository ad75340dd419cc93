"""One request of a prefix leads, the others follow: in one worker, and between two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio

from coach import config
from coach.providers import Block, Interest, Message, Prompt, Usage, Warmth, open_warmth, terms_of
from coach.providers.warmth import PLAIN_S
from coach.store import ConnectionLost, Redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

ENDPOINT = config.Provider(name="a", base_url="https://a", model="m", api_key="k")
SETTINGS = config.Cache()
WRITE, READ = Usage(5, 1_500, 0, 0), Usage(5, 0, 1_500, 0)
PLAIN = Usage(1_505, 0, 0, 0)
PROMPT = Prompt(
    system=(Block("x" * 6_000, cache=True),),
    messages=(Message("user", (Block("hello"),)),),
    output_tokens_max=10,
)


@attrs.define
class NoRedis:
    """Redis that is away: each worker has a leader of its own."""

    asked: int = 0

    async def execute_command(self, *_: object) -> object:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        raise ConnectionLost("away")


@asynccontextmanager
async def opened(
    redis: object, worker: str = "w1", *, settings: config.Cache = SETTINGS, ttl_s: float = 300.0
) -> AsyncIterator[Warmth]:
    terms = terms_of(ENDPOINT, settings)
    assert terms is not None
    async with open_warmth(
        cast("Redis", redis),
        endpoint="a",
        model="m",
        terms=attrs.evolve(terms, ttl_s=ttl_s),
        settings=settings,
        worker=worker,
    ) as warmth:
        yield warmth


@attrs.define
class Class:
    """Students who ask; a provider that begins to answer after a while, by what it has cached."""

    head_s: float = 0.4
    cached: bool = False
    usages: list[Usage] = attrs.field(factory=list)
    sent_at: list[float] = attrs.field(factory=list)

    async def ask(self, warmth: Warmth, prompt: Prompt = PROMPT) -> None:
        async with warmth.visit(prompt) as visit:
            self.sent_at.append(trio.current_time())
            usage = READ if self.cached else WRITE
            await trio.sleep(self.head_s)
            self.cached = True
            self.usages.append(usage)
            visit.began(usage)
            await trio.sleep(self.head_s)

    async def all_ask(self, *warmths: Warmth, each: int) -> None:
        async with trio.open_nursery() as nursery:
            for warmth in warmths:
                for _ in range(each):
                    nursery.start_soon(self.ask, warmth)


async def test_a_class_that_starts_together_pays_one_write() -> None:
    async with opened(NoRedis()) as warmth:
        students = Class()
        await students.all_ask(warmth, each=30)
    assert students.usages == [WRITE] + [READ] * 29


async def test_without_single_flight_it_pays_thirty() -> None:
    async with opened(NoRedis(), settings=config.Cache(single_flight=False)) as warmth:
        students = Class()
        await students.all_ask(warmth, each=30)
    assert students.usages == [WRITE] * 30


async def test_a_warm_prefix_costs_no_round_trip_and_no_wait_until_its_life_ends() -> None:
    redis = NoRedis()
    async with opened(redis) as warmth:
        students = Class()
        await students.ask(warmth)
        await trio.sleep(1)
        asked, began_at = redis.asked, trio.current_time()
        await students.all_ask(warmth, each=30)
        assert (redis.asked, students.sent_at[1:]) == (asked, [began_at] * 30)
        await trio.sleep(301)
        students.cached = False
        await students.all_ask(warmth, each=3)
    assert students.usages[-3:] == [WRITE, READ, READ]


async def test_followers_go_after_the_longest_wait() -> None:
    async with opened(NoRedis()) as warmth:
        students = Class(head_s=4.0)
        await students.all_ask(warmth, each=3)
    assert students.sent_at == [0.0, SETTINGS.lead_s_max, SETTINGS.lead_s_max]


async def test_when_the_leader_fails_nobody_waits_for_another_one() -> None:
    async with opened(NoRedis()) as warmth, trio.open_nursery() as nursery:
        students = Class(head_s=0.0)
        async with warmth.visit(PROMPT) as visit:
            for _ in range(3):
                nursery.start_soon(students.ask, warmth)
            await trio.sleep(0.5)
            assert students.sent_at == []
            visit.failed()
            await trio.sleep(0.1)
            assert students.sent_at == [0.5] * 3


async def test_when_the_leader_hangs_up_a_follower_leads_at_once() -> None:
    async with opened(NoRedis()) as warmth, trio.open_nursery() as nursery:
        students = Class()
        async with warmth.visit(PROMPT):
            for _ in range(3):
                nursery.start_soon(students.ask, warmth)
            await trio.sleep(0.5)
        await trio.sleep(2)
    assert students.sent_at == [0.5, 0.9, 0.9]
    assert students.usages == [WRITE, READ, READ]


async def test_a_prefix_that_is_not_cached_is_not_waited_for_again() -> None:
    async with opened(NoRedis()) as warmth:
        async with warmth.visit(PROMPT) as visit:
            visit.began(PLAIN)
        students, began_at = Class(), trio.current_time()
        students.usages.clear()
        async with warmth.visit(PROMPT) as first, warmth.visit(PROMPT) as second:
            assert trio.current_time() == began_at
            assert not first.leads
            assert not second.leads
        await trio.sleep(PLAIN_S + 1)
        async with warmth.visit(PROMPT) as later:
            assert later.leads


async def test_a_prefix_below_the_models_minimum_is_never_waited_for() -> None:
    short = attrs.evolve(PROMPT, system=(Block("x" * 3_000, cache=True),))
    async with opened(NoRedis()) as warmth:
        async with warmth.visit(short) as one, warmth.visit(short) as other:
            assert not one.leads
            assert not other.leads
        assert warmth.statistics().prefixes == 0


async def test_what_will_be_read_is_counted_on_only_as_counted_and_only_while_it_is_sure() -> None:
    async with opened(NoRedis()) as warmth:
        assert warmth.expected_read(PROMPT) == 0
        history = (*PROMPT.messages, Message("assistant", (Block("a", cache=True),)))
        async with warmth.visit(attrs.evolve(PROMPT, messages=history)) as visit:
            visit.began(Usage(5, 2_000, 0, 0))
        assert warmth.expected_read(PROMPT) == 0  # a history's share is not known
        essay = (Message("user", (Block("e", cache=True),)),)
        async with warmth.visit(attrs.evolve(PROMPT, messages=essay)) as visit:
            visit.began(Usage(0, 1_800, 0, 0))
        assert warmth.expected_read(PROMPT) == 0  # nor an essay's
        async with warmth.visit(attrs.evolve(PROMPT, messages=essay)) as visit:
            visit.began(Usage(0, 300, 1_500, 0))
        assert warmth.expected_read(PROMPT) == 1_500  # what was written was the essay
        async with warmth.visit(PROMPT) as visit:
            visit.began(READ)
        assert warmth.expected_read(PROMPT) == 1_500
        await trio.sleep(240)
        assert warmth.expected_read(PROMPT) == 0
        async with warmth.visit(PROMPT) as visit:
            visit.began(PLAIN)
        assert warmth.expected_read(PROMPT) == 0


async def test_it_forgets_the_longest_unused_and_none_that_somebody_may_come_back_to() -> None:
    async with opened(NoRedis(), settings=config.Cache(prefixes_max=2)) as warmth:
        interest = Interest("school")

        def prompt(letter: str) -> Prompt:
            return attrs.evolve(PROMPT, system=(Block(letter * 6_000, cache=True),))

        for letter in "abc":
            async with warmth.visit(prompt(letter), interest if letter == "a" else None) as visit:
                visit.began(WRITE)
            await trio.sleep(5)
        known = [warmth.expected_read(prompt(letter)) for letter in "abc"]
        assert known == [1_500, 0, 1_500]
        interest.close()
        interest.close()


@pytest.mark.real_time
async def test_two_workers_pay_one_write_and_then_ask_nobody(tmp_path: Path) -> None:
    async with (
        open_test_redis(tmp_path) as redis,
        opened(redis) as one,
        opened(redis, "w2") as other,
    ):
        students = Class(head_s=0.2)
        await students.all_ask(one, other, each=15)
        assert sorted(usage.cache_write for usage in students.usages) == [0] * 29 + [1_500]
        assert one.statistics().warm == other.statistics().warm == 1


@pytest.mark.real_time
async def test_a_worker_that_dies_as_leader_is_followed_no_longer_than_its_lease(
    tmp_path: Path,
) -> None:
    settings = config.Cache(lead_s_max=0.2)
    async with (
        open_test_redis(tmp_path) as redis,
        opened(redis, settings=settings) as dead,
        opened(redis, "w2", settings=settings) as other,
    ):
        visit = dead.visit(PROMPT)
        assert (await visit.__aenter__()).leads
        async with other.visit(PROMPT) as late:
            assert not late.leads
        await trio.sleep(0.5)
        async with other.visit(PROMPT) as next_one:
            assert next_one.leads
        await visit.__aexit__(None, None, None)


@pytest.mark.real_time
@pytest.mark.parametrize("how", ["hangs up", "fails"])
async def test_another_workers_followers_hear_how_a_leader_ends(tmp_path: Path, how: str) -> None:
    async with (
        open_test_redis(tmp_path) as redis,
        opened(redis) as one,
        opened(redis, "w2") as other,
        trio.open_nursery() as nursery,
    ):
        students = Class(head_s=0.05)
        async with one.visit(PROMPT) as visit:
            nursery.start_soon(students.ask, other)
            nursery.start_soon(students.ask, other)
            await trio.sleep(0.2)
            assert students.sent_at == []
            if how == "fails":
                visit.failed()
        ended_at = trio.current_time()
        with trio.fail_after(1):
            while len(students.usages) < 2:  # noqa: ASYNC110  it has no event
                await trio.sleep(0.01)
        assert students.sent_at[0] - ended_at < 0.5
        writes = sum(usage.cache_write > 0 for usage in students.usages)
        assert writes == (2 if how == "fails" else 1)


@pytest.mark.real_time
async def test_cancelled_at_every_checkpoint_a_leader_or_follower_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    settings = config.Cache(lead_s_max=5.0)
    async with (
        open_test_redis(tmp_path) as redis,
        opened(redis, settings=settings) as one,
        opened(redis, "w2", settings=settings) as other,
    ):
        for is_led in (False, True):
            n, ends = 0, set[bool]()
            while True:
                n += 1
                prompt = attrs.evolve(PROMPT, system=(Block(f"{is_led}{n:05}" * 900, cache=True),))
                entered = False
                async with trio.open_nursery() as nursery:
                    if is_led:
                        ended = await nursery.start(_lead, other, prompt)
                        nursery.start_soon(_end_soon, ended)
                    with cancel_at_step(n) as scope:
                        async with one.visit(prompt) as visit:
                            entered = True
                            await trio.lowlevel.checkpoint()
                            visit.began(WRITE)
                ends.add(entered)
                with trio.fail_after(1):  # far less than a lease
                    for warmth in (one, other):
                        async with warmth.visit(prompt) as visit:
                            visit.left()
                assert one.statistics().waiting == 0
                if not scope.cancel_called:
                    break
            assert ends == {False, True}
            assert n > 3


async def _lead(
    warmth: Warmth, prompt: Prompt, *, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    ended = trio.Event()
    async with warmth.visit(prompt) as visit:
        task_status.started(ended)
        await ended.wait()
        visit.began(WRITE)


async def _end_soon(ended: trio.Event) -> None:
    await trio.sleep(0.01)
    ended.set()
