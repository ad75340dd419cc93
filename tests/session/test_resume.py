"""Sessions that outlive their connections: on the same worker, on another one, after a crash.

Two worlds that share `FakeRecords` are two workers. `Client` checks that the numbers of messages go
up one by one, so that nothing is lost or doubled wherever these tests go on.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from prometheus_client import Counter

from coach import config
from coach.errors import ProviderUnavailable
from coach.incarnation import new_name
from coach.ops import metrics
from coach.session.registry import HANDOVER_S_MAX, SILENCE_S_MAX
from coach.session.resume import split_token
from tests.support.cancels import cancel_at_step

from .world import GRADE, Client, FakeRecords, World, says, state

SURVIVING = config.Session(detached_s=30.0)
WORDS = [f"w{index} " for index in range(10)]


def world(**more: Any) -> World:
    return World(**{"script": says(*WORDS, pause_s=1.0), "session": SURVIVING, **more})


def two_worlds(**more: Any) -> tuple[World, World]:
    records = FakeRecords()
    one, two = (world(records=records, worker=name, **more) for name in ("w-1", "w-2"))
    return one, two


async def drop(client: Client) -> None:
    """The network is gone: no close frame."""
    await trio.aclose_forcefully(client.stream)
    await trio.sleep(0.001)


def token_of(client: Client) -> dict[str, Any]:
    """What a client says that comes back."""
    return {"resume": client.welcome["resume"], "last_seq": client.seq}


def text_of(messages: list[dict[str, Any]]) -> str:
    text = ""
    for message in messages:
        if message["type"] == "restarted":
            text = ""
        text += message.get("text", "")
    return text


async def begin(home: World, client: Client, *, words: int) -> list[dict[str, Any]]:
    """Ask, hear a few words, and lose the network."""
    await client.hello()
    await client.ask("r1")
    got = await client.until("started")
    for _ in range(words):
        got.append(await client.receive())
    await drop(client)
    assert home.streams_open == 1, "the turn goes on"
    return got


@pytest.mark.parametrize("away_s", [0.0, 2.5, 12.0])
async def test_on_the_same_worker_the_text_continues_where_it_stopped(away_s: float) -> None:
    home = world()
    async with home.at_home(), home.connected() as first:
        got = await begin(home, first, words=2)
        await trio.sleep(away_s)
        async with home.connected() as again:
            trips = home.records.trips
            welcome = await again.hello(**token_of(first))
            assert home.records.trips == trips, "nothing is asked of Redis"
            assert welcome["session"] == first.welcome["session"]
            assert welcome["seq"] == first.seq
            assert welcome["replayed"] == (0, 2, 9)[(away_s > 0) + (away_s > 10)]
            got += await again.until("done")
            await again.websocket.aclose()
    assert text_of(got) == "".join(WORDS)
    assert home.streams == 1, "no provider call"
    assert home.balanced


@pytest.mark.parametrize("away_s", [0.0, 2.5, 12.0, 29.0, 200.0])
async def test_on_another_worker_too(away_s: float) -> None:
    """While the turn runs, after its end, after the session was put away."""
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        got = await begin(one, first, words=2)
        await trio.sleep(away_s)
        async with two.connected() as again:
            trips, began = one.records.trips, trio.current_time()
            welcome = await again.hello(**token_of(first))
            assert trio.current_time() - began < 0.1
            assert one.records.trips - trips <= 3
            assert "snapshot" not in welcome
            got += await again.until("done")
            await again.ask("r2")
            assert text_of(await again.until("done")) == "".join(WORDS)
            await again.websocket.aclose()
    assert text_of(got) == "".join(WORDS)
    assert (one.streams, two.streams) == (1, 1)
    assert one.balanced
    assert two.balanced


async def test_there_and_back_and_there_again() -> None:
    """Each worker tells the next what the one before tells it."""
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        got, client = await begin(one, first, words=1), first
        for place in (two, one, two):
            async with place.connected() as again:
                await again.hello(**token_of(client))
                got += [await again.receive(), await again.receive()]
                await drop(again)
                client = again
        async with two.connected() as last:
            await last.hello(**token_of(client))
            got += await last.until("done")
            await last.websocket.aclose()
    assert text_of(got) == "".join(WORDS)
    assert one.streams == 1
    assert one.balanced
    assert two.balanced


async def test_a_connection_that_only_seems_open_is_given_up() -> None:
    """The phone has another address; the worker has not heard yet that the old one is dead."""
    one, two = two_worlds()
    async with one.student() as first:
        await first.ask("r1")
        got = await first.until("delta")
        last = first
        for place in (one, two):
            async with place.connected() as again:
                await again.hello(**token_of(last))
                got += [await again.receive()]
                last = again
    assert text_of(got) == "".join(WORDS[:3])


async def test_a_turn_on_another_worker_is_stopped_there() -> None:
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        await begin(one, first, words=1)
        async with two.connected() as again:
            await again.hello(**token_of(first))
            await again.ask("r2")
            got = await again.until("done")
            assert one.streams_open == 0
            await again.websocket.aclose()
    ends = [(m["request"], m["type"]) for m in got if m["type"] in {"error", "done"}]
    assert ends == [("r1", "error"), ("r2", "done")]
    assert not [
        m
        for m in got[got.index(next(m for m in got if m["type"] == "error")) + 1 :]
        if m["request"] == "r1"
    ]
    assert one.balanced


async def test_who_stays_away_too_long_is_told_at_the_next_hello() -> None:
    home = world(script=says("a", pause_s=100.0))
    async with home.at_home():
        async with home.connected() as first:
            await begin(home, first, words=0)
        await trio.sleep(29.0)
        assert home.streams_open == 1
        await trio.sleep(2.0)
        assert home.streams_open == home.limits.open == home.budget.open == 0
        async with home.connected() as again:
            await again.hello(**token_of(first))
            (error,) = await again.until("error")
            assert (error["request"], error["code"]) == ("r1", "interrupted")


async def test_a_killed_worker_s_turn_is_interrupted_and_can_be_asked_again() -> None:
    """Its client was connected: what it has said at last is not known, and a snapshot says so."""
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.student() as first:
        await first.ask("r1")
        await first.until("done")
        await first.ask("r2", text="The sea was calm. And then?")
        await first.until("delta")
        await trio.sleep(2.0)
        one.records.dead.add("w-1")
        async with two.connected() as again:
            began = trio.current_time()
            welcome = await again.hello(**token_of(first))
            assert trio.current_time() - began <= HANDOVER_S_MAX + 0.1
            snapshot = welcome["snapshot"]
            assert [d["text"] for d in snapshot["drafts"]] == ["The sea was calm. And then?"]
            assert [(f["request"], f["text"]) for f in snapshot["feedback"]] == [
                ("r1", "".join(WORDS))
            ]
            assert snapshot["running"] == []
            await again.send(type="feedback", request="r2", draft="d")
            assert text_of(await again.until("done")) == "".join(WORDS)


@contextmanager
def a_process() -> Iterator[tuple[str, Callable[[], None]]]:
    """A name for a worker, of a process that runs, and what kills it."""
    process = subprocess.Popen(["sleep", "600"])

    def kill() -> None:
        process.kill()
        process.wait()

    try:
        yield new_name("w1", process.pid), kill
    finally:
        kill()


async def test_a_worker_that_was_killed_on_this_machine_is_not_waited_for() -> None:
    """Its name tells where to look, so no letter is written to it: one round trip in all."""
    one, two = two_worlds()
    with a_process() as (one.worker, kill):
        async with one.at_home(), two.at_home(), one.student() as first:
            await first.ask("r1")
            await first.until("done")
            await trio.sleep(1.0)
            kill()
            one.records.dead.add(one.worker)
            async with two.connected() as again:
                trips, began = one.records.trips, trio.current_time()
                welcome = await again.hello(**token_of(first))
                assert trio.current_time() - began < 0.01
                assert one.records.trips - trips == 1
                assert [f["request"] for f in welcome["snapshot"]["feedback"]] == ["r1"]


async def test_a_worker_that_is_killed_before_it_answers_is_not_waited_for() -> None:
    one, two = two_worlds()
    with a_process() as (one.worker, kill):

        async def die(kind: str) -> None:
            one.records.dead.add(one.worker)
            kill()

        one.records.on_post = die
        async with one.at_home(), two.at_home(), one.student() as first:
            await first.ask("r1")
            await first.until("done")
            await trio.sleep(1.0)
            async with two.connected() as again:
                began = trio.current_time()
                await again.hello(**token_of(first))
                assert trio.current_time() - began < HANDOVER_S_MAX / 2


async def test_a_worker_that_is_killed_after_it_has_handed_over_is_missed_soon() -> None:
    """The turn that it still told of is interrupted, long before its silence would say so."""
    one, two = two_worlds()
    with a_process() as (one.worker, kill):
        async with one.at_home(), two.at_home(), one.connected() as first:
            await begin(one, first, words=1)
            async with two.connected() as again:
                await again.hello(**token_of(first))
                await again.until("delta")
                began = trio.current_time()
                one.records.dead.add("w-2")
                kill()
                error = (await again.until("error"))[-1]
                assert (error["code"], error["request"]) == ("interrupted", "r1")
                assert trio.current_time() - began < SILENCE_S_MAX / 2


async def test_killed_while_its_client_was_away_nothing_that_was_said_is_lost() -> None:
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        got = await begin(one, first, words=1)
        await trio.sleep(3.2)
        one.records.dead.add("w-1")
        async with two.connected() as again:
            assert "snapshot" not in await again.hello(**token_of(first))
            got += await again.until("error")
    assert text_of(got[:-1]) == "".join(WORDS[:4])
    assert (got[-1]["code"], got[-1]["request"]) == ("interrupted", "r1")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_is_not_kept_any_more_is_told_from_the_beginning(elsewhere: bool) -> None:
    session = config.Session(detached_s=30.0, unacked_bytes_max=4_096)
    long = [f"{index:03}" + "x" * 300 for index in range(40)]
    one, two = two_worlds(script=says(*long, pause_s=0.5), session=session)
    async with one.at_home(), two.at_home(), one.connected() as first:
        await begin(one, first, words=1)
        await trio.sleep(15.1)
        async with (two if elsewhere else one).connected() as again:
            welcome = await again.hello(**token_of(first))
            assert welcome["snapshot"]["running"] == ["r1"]
            got = await again.until("done")
    assert got[0]["type"] == "restarted"
    assert text_of(got) == "".join(long)


async def test_an_essay_is_graded_once_wherever_its_student_is() -> None:
    one, two = two_worlds()
    async with one.at_home() as sessions, two.at_home(), one.connected() as first:
        await first.hello()
        await first.submit()
        await first.until("grading")
        await trio.sleep(0.1)  # a session that has only begun is not known elsewhere yet
        await drop(first)
        async with two.connected() as again:
            await again.hello(**token_of(first))
            two.states["s1"] = state(one.submitted[0], "graded", grade=GRADE)
            assert (await again.receive())["type"] == "grade"
            await again.submit("s2")
            assert (await again.receive())["type"] == "grading"
            assert len(sessions) == 0


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_token_is_honoured_until_the_client_has_spoken_with_the_next(
    elsewhere: bool,
) -> None:
    one, two = two_worlds()
    place = two if elsewhere else one
    async with one.at_home(), two.at_home(), one.connected() as first:
        await first.hello()
        await drop(first)
        await trio.sleep(1)
        sessions, welcome = [], first.welcome
        for speaks in (False, False, True, False):
            async with place.connected() as again:
                welcome = await again.hello(**token_of(first))
                sessions.append(welcome["session"] == first.welcome["session"])
                if speaks:
                    await again.send(type="ack", seq=0)
                    await trio.sleep(1)
                await drop(again)
        assert sessions == [True, True, True, False]
        assert welcome["session"] != first.welcome["session"]


@pytest.mark.parametrize("resume", ["", "x", ".x", "x.", "a.b.c", "a{b}.c", "ü.x", "s" * 9 + ".y"])
async def test_what_is_no_token_begins_a_new_session(resume: str) -> None:
    home = world()
    async with home.connected() as client:
        welcome = await client.hello(resume=resume, last_seq=7)
        assert (welcome["type"], welcome["seq"], welcome["replayed"]) == ("welcome", 0, 0)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_stolen_token_is_worth_nothing_to_another_user(elsewhere: bool) -> None:
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        await begin(one, first, words=1)
        await trio.sleep(0.5)
        async with (two if elsewhere else one).connected() as thief:
            welcome = await thief.hello("eve", **token_of(first))
            assert welcome["session"] != first.welcome["session"]
        async with one.connected() as again:
            await again.hello(**token_of(first))
            await again.until("done")


@pytest.mark.parametrize("required", [False, True])
async def test_a_token_alone_is_enough_only_where_the_operator_says_so(required: bool) -> None:
    home = world(session=config.Session(require_jwt_on_resume=required))
    async with home.at_home(), home.connected() as first:
        await first.hello()
        await drop(first)
        async with home.connected() as again:
            await again.send(type="hello", token="", **token_of(first))
            assert (await again.receive()).get("code") == ("unauthenticated" if required else None)


async def test_only_digests_are_stored() -> None:
    home = world()
    async with home.connected() as client:
        await client.hello()
        await trio.sleep(1)
        token = str(client.welcome["resume"])
        parts = split_token(token)
        assert parts is not None
        (record,) = home.records.sessions.values()
        assert record["token"] == parts[1].encode()
        assert token.partition(".")[2] not in str(record)


# -- limits, and what is given back ----------------------------------------------------------------


async def test_who_has_left_for_good_leaves_nothing_running() -> None:
    home = world()
    async with home.at_home():
        async with home.connected() as client:
            await client.hello()
            await client.ask("r1")
            await client.until("delta")
            await client.websocket.aclose(1001)
            await trio.sleep(0.1)
            assert home.streams_open == home.limits.open == home.budget.open == 0
        async with home.connected() as again:
            assert (await again.hello(**token_of(client)))["session"] != client.welcome["session"]


async def test_more_than_may_be_away_are_put_away_the_oldest_first() -> None:
    home = world(session=config.Session(detached_max=2))
    async with home.at_home() as sessions:
        clients = []
        for name in "abcd":
            async with home.connected() as client:
                await client.hello(name)
                await drop(client)
                clients.append(client)
        await trio.sleep(1)
        assert len(sessions) == sessions.away == 2
        for name, client in zip("abcd", clients, strict=True):
            async with home.connected() as again:
                welcome = await again.hello(name, **token_of(client))
                assert welcome["session"] == client.welcome["session"]


async def test_a_listening_client_costs_redis_nothing() -> None:
    home = world(script=says(*WORDS * 10, pause_s=0.1))
    async with home.student() as client:
        await client.ask("r1")
        await client.until("delta")
        await trio.sleep(2)
        trips = home.records.trips
        while (await client.receive())["text"] != WORDS[8]:
            pass
        await trio.sleep(1)
        assert home.records.trips == trips


async def test_a_draft_is_kept_within_two_seconds_of_the_last_edit() -> None:
    home = world()
    async with home.student() as client:
        for rev in range(1, 40):
            await client.send(type="draft", draft="d", rev=rev, text="x" * rev)
            await trio.sleep(0.1)
        await trio.sleep(1.9)
        (record,) = home.records.sessions.values()
        assert b'"rev":39' in record["draft:d"]
        assert home.records.trips < 8


async def test_without_redis_a_client_comes_back_to_its_worker_and_is_put_off_elsewhere() -> None:
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        got = await begin(one, first, words=1)
        await trio.sleep(1)
        one.records.away = True
        async with two.connected() as other:
            assert (await other.hello(**token_of(first)))["code"] == "overloaded"
        async with one.connected() as again:
            await again.hello(**token_of(first))
            got += await again.until("done")
        one.records.away = False
    assert text_of(got) == "".join(WORDS)


async def test_draining_the_turn_goes_on_into_what_redis_keeps() -> None:
    one, two = two_worlds()
    async with two.at_home():
        async with one.at_home(drain_s=12.0) as sessions, one.connected() as first:
            await first.hello()
            await first.ask("r1")
            got = await first.until("delta")
            sessions.drain()
            began = trio.current_time()
            got += (await first.until_closed())[0]
            assert trio.current_time() - began < 9.0
            await sessions.settle(0.9)
            assert len(sessions) == 0
        assert one.balanced
        async with two.connected() as again:
            assert "snapshot" not in await again.hello(**token_of(first))
            got += await again.until("done")
    assert text_of(got) == "".join(WORDS)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_cancelled_at_every_step_a_return_leaves_nothing_behind(elsewhere: bool) -> None:
    """Whatever becomes of the returning link, the session can be gone on with, and ends."""
    steps = 0
    while True:
        steps += 1
        one, two = two_worlds(script=says(*WORDS[:4], pause_s=0.5))
        place = two if elsewhere else one
        async with one.at_home(), two.at_home():
            async with one.connected() as first:
                got = await begin(one, first, words=1)
            with cancel_at_step(steps) as scope:
                async with place.connected() as again:
                    await again.hello(**token_of(first))
                    await again.receive()
            async with place.connected() as last:
                welcome = await last.hello(**token_of(first))
                assert welcome["session"] == first.welcome["session"], steps
                got += await last.until("done")
                await last.websocket.aclose()
            await trio.sleep(10)
        assert text_of(got) == "".join(WORDS[:4]), steps
        assert one.balanced, steps
        assert two.balanced, steps
        if not scope.cancel_called:
            break
    assert steps > 10


def count(metric: Counter, *labels: str) -> float:
    (family,) = metric.labels(*labels).collect() if labels else metric.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))


async def test_returns_are_counted() -> None:
    before = [count(metrics.resumes_total, how) for how in ("here", "elsewhere", "expired")]
    replayed = count(metrics.replayed_total)
    one, two = two_worlds()
    async with one.at_home(), two.at_home(), one.connected() as first:
        await begin(one, first, words=1)
        await trio.sleep(2)
        for place in (one, two):
            async with place.connected() as again:
                await again.hello(**token_of(first))
                await drop(again)
        async with one.connected() as again:
            await again.hello(resume="no.token")
    after = [count(metrics.resumes_total, how) for how in ("here", "elsewhere", "expired")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]
    assert count(metrics.replayed_total) - replayed == 4


async def test_a_worker_that_writes_before_the_letter_comes_hands_over_all_the_same() -> None:
    """Redis says that the session has moved; what was said here is not lost with it."""
    one, two = two_worlds()
    async with one.at_home() as sessions, two.at_home(), one.connected() as first:
        got = await begin(one, first, words=2)
        await trio.sleep(1)
        (session,) = sessions._by_id.values()
        kinds = []

        async def before(kind: str) -> None:
            kinds.append(kind)
            if kind == "claim":
                await sessions.keeper.keep(session, parted=False)

        one.records.on_post = before
        async with two.connected() as again:
            assert "snapshot" not in await again.hello(**token_of(first))
            got += await again.until("done")
        assert kinds[:2] == ["claim", "handover"]
    assert text_of(got) == "".join(WORDS)


async def test_a_place_in_the_line_is_kept_while_the_phone_is_away() -> None:
    """The ticket is the turn's: nothing is given back, and the place counts down meanwhile."""
    one, two = two_worlds(line=[(3, 2.0), (2, 2.0), (1, 4.0)])
    for place in (one, two):
        async with one.at_home(), two.at_home(), one.connected() as first:
            await first.hello()
            await first.ask("r1")
            assert (await first.until("queued"))[-1]["position"] == 3
            await trio.sleep(0.2)
            await drop(first)
            await trio.sleep(2.5)
            assert one.limits.open == 1
            async with place.connected() as again:
                await again.hello(**token_of(first))
                told = [await again.receive(), await again.receive()]
                assert [message["position"] for message in told] == [2, 1]
                assert text_of(await again.until("done")) == "".join(WORDS)
                await again.websocket.aclose()
    assert len(one.patiences) == 2, "each turn has asked for its place once"
    assert not two.patiences


async def moved_while_graded(
    one: World, two: World, *, then: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """What a student hears who hands in at `one`, without the queue, and comes back to `two`."""
    async with one.at_home(), two.at_home(), one.student() as first:
        await first.submit("s1")
        await first.until("grading")
        await trio.sleep(0.1)
        await drop(first)
        async with two.connected() as again:
            await again.hello(**token_of(first))
            then()
            got = await again.until("grade", "error")
            await again.websocket.aclose()
    assert (len(one.graded_at_once), len(two.graded_at_once)) == (1, 0)
    assert one.grading_open == 0
    return got


AT_ONCE = config.Rollout(queue=0)


@pytest.mark.parametrize("grade_s", [0.2, 5.0, 9.0])
async def test_an_essay_that_is_graded_at_once_is_told_where_its_author_is_then(
    grade_s: float,
) -> None:
    """It is in no queue: the worker that has it grades it to the end, as it does with turns."""
    *before, grade = await moved_while_graded(*two_worlds(rollout=AT_ONCE, grade_s=grade_s))
    assert (grade["type"], grade["submission"], grade["score"]) == ("grade", "s1", GRADE.score)
    assert [message.get("delayed") for message in before] == [True] * (grade_s > 8)


async def test_why_it_could_not_be_graded_is_told_there_too() -> None:
    away = ProviderUnavailable("the essay could not be graded", retry_after_s=3.0)
    worlds = two_worlds(rollout=AT_ONCE, grade_s=2.0, no_grade=away)
    (error,) = await moved_while_graded(*worlds)
    assert (error["submission"], error["code"]) == ("s1", "provider_unavailable")


async def test_an_essay_that_its_worker_has_lost_may_be_handed_in_again() -> None:
    one, two = two_worlds(rollout=AT_ONCE, grade_s=7.0)
    (error,) = await moved_while_graded(one, two, then=lambda: one.records.dead.add("w-2"))
    assert (error["submission"], error["code"]) == ("s1", "interrupted")


async def test_an_essay_that_is_graded_at_once_is_graded_while_its_author_is_away() -> None:
    one, _ = two_worlds(rollout=AT_ONCE, grade_s=7.0)
    async with one.at_home(), one.student() as first:
        await first.submit("s1")
        await first.until("grading")
        await drop(first)
        await trio.sleep(20)
        assert len(one.sessions) == 0, "put away once there was nothing to do"
        assert one.grading_open == 0
        assert len(one.mailed) == 1, "graded, and told to all of theirs"


async def test_a_worker_that_drains_grades_to_the_end_what_is_in_no_queue() -> None:
    one, two = two_worlds(rollout=AT_ONCE, grade_s=2.0)
    async with two.at_home(), one.at_home(), one.student() as first:
        await first.submit("s1")
        await first.until("grading")
        one.sessions.drain()
        *_, grade = await first.until("grade", "error")
        assert grade["type"] == "grade"
        await one.sessions.settle(0.75)
    assert one.grading_open == 0
