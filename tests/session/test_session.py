"""A session on a real WebSocket, its surroundings scripted: what a student sees, what is kept."""

from __future__ import annotations

import gc
import struct
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import attrs
import jwt
import msgspec
import pytest
import trio
import trio.lowlevel
from prometheus_client import Counter
from structlog.typing import EventDict
from trio_websocket import ConnectionClosed, wrap_client_stream
from wsproto.events import Pong

from coach import config
from coach.errors import Overloaded, ProviderUnavailable, RateLimited
from coach.grading import Failure, Submission
from coach.ops import metrics
from coach.providers import Completion, Prompt, Sink, Usage
from coach.session import wire
from coach.session.essays import GRADE_POLL_S, PLACE_S, SUBMISSIONS_MAX
from coach.session.session import TURNS_MAX
from coach.store import NotSent
from tests.support.cancels import cancel_at_step
from tests.support.costs import exhaust
from tests.support.parsers import request_parsers

from .world import GRADE, Client, World, open_client, says, state, wire_pair


async def test_a_turn_is_started_streamed_and_done() -> None:
    world = World(says("Good ", "start.", pause_s=0.1))
    async with world.student() as student:
        await student.ask("r1")
        started, *deltas, done = await student.until("done", "error")
    assert (started["type"], started["provider"], started["model"]) == (
        "started",
        "scripted",
        "script-1",
    )
    assert [delta["text"] for delta in deltas] == ["Good ", "start."]
    assert done["usage"] == {"input": 50, "cached": 10, "output": 2}
    assert world.limits.ended == [62]
    assert world.balanced


async def test_an_open_connection_keeps_no_parser_of_its_request() -> None:
    """4 KB of each student's connection."""
    before = len(request_parsers())
    async with World(says("x")).student():
        assert len(request_parsers()) == before


@pytest.mark.parametrize("goodbye", [True, False], ids=["closed", "lost"])
async def test_a_connection_that_has_ended_leaves_nothing_to_the_garbage_collector(
    goodbye: bool,
) -> None:
    """Which looks at those who were here for hours seldom, and stops everybody meanwhile."""
    world = World(says("x"))
    gc.collect()
    gc.disable()
    try:
        async with world.at_home():
            async with world.student() as student:
                (session,) = world.sessions._by_id.values()
                link = weakref.ref(session.link)
                of_session = weakref.ref(session)
                del session
                if goodbye:
                    await student.websocket.aclose()
            with trio.fail_after(5):
                while of_session() is not None or link() is not None:  # noqa: ASYNC110
                    await trio.sleep(0.1)
    finally:
        gc.enable()


async def test_the_line_is_shown_before_the_start() -> None:
    world = World(says("x"), line=[(4, 2.0), (1, 0.5)])
    async with world.student() as student:
        await student.ask("r1")
        got = await student.until("done")
    assert [(m["type"], m.get("position"), m.get("eta_ms")) for m in got[:3]] == [
        ("queued", 4, 2000),
        ("queued", 1, 500),
        ("started", None, None),
    ]


async def test_a_newer_turn_replaces_the_older_at_once() -> None:
    """The old turn is told off before the new one starts, and not a word of it comes after."""
    world = World(says(*"abcdefgh", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("delta")
        await student.ask("r2")
        got = await student.until("done")
    cancelled = [m for m in got if m["type"] == "error"]
    assert [(m["request"], m["code"]) for m in cancelled] == [("r1", "cancelled")]
    after = got[got.index(cancelled[0]) + 1 :]
    assert {m["request"] for m in after} == {"r2"}
    assert after[-1]["type"] == "done"
    assert world.balanced
    assert len(world.limits.ended) == 2
    assert None not in world.limits.ended, "what the old turn used is charged"


async def test_turns_of_two_drafts_run_side_by_side() -> None:
    world = World(says("one", "two", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1", draft="a")
        await student.ask("r2", draft="b")
        got = await student.until("done") + await student.until("done")
    assert {m["request"] for m in got if m["type"] == "done"} == {"r1", "r2"}


@pytest.mark.parametrize(
    ("error", "code", "retry_after_ms"),
    [
        (RateLimited("30 requests a minute", retry_after_s=1.25), "rate_limited", 1250),
        (Overloaded("full", retry_after_s=2), "overloaded", 2000),
        (NotSent("no redis"), "overloaded", 2000),
        (ProviderUnavailable("down"), "provider_unavailable", None),
        (ZeroDivisionError("a bug"), "internal", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_goes_wrong_before_the_stream_is_one_typed_error(
    error: Exception, code: str, retry_after_ms: int | None
) -> None:
    world = World(says("x"), refuse=error)
    async with world.student() as student:
        await student.ask("r1")
        (message,) = await student.until("done", "error")
        assert (message["code"], message.get("retry_after_ms")) == (code, retry_after_ms)
        assert message["request"] == "r1"
        world.refuse = None
        await student.ask("r2")
        assert (await student.until("done", "error"))[-1]["type"] == "done"
    assert world.balanced


async def test_a_provider_that_fails_mid_answer_is_charged_for_what_it_said() -> None:
    async def script(_prompt: Prompt, sink: Sink) -> Completion:
        sink.on_start("script-1", Usage(input=80, cache_write=0, cache_read=0, output=1))
        sink.on_delta("x" * 70)
        await trio.sleep(1)
        raise ProviderUnavailable("cut")

    world = World(script)
    async with world.student() as student:
        await student.ask("r1")
        got = await student.until("done", "error")
    assert [m["type"] for m in got] == ["started", "delta", "error"]
    assert world.limits.ended == [80 + 36]  # 70 characters are about 36 tokens


async def test_cancel_stops_the_stream_and_says_so_once() -> None:
    world = World(says(*"abcdefgh", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("delta")
        await student.send(type="cancel", request="r1")
        await student.send(type="cancel", request="r1")
        got = await student.until("error")
        assert got[-1]["code"] == "cancelled"
        await trio.sleep(20)
        assert world.balanced is False  # the session itself is still there
        assert world.streams_open == world.limits.open == world.budget.open == 0
        await student.ask("r2")
        assert {m["request"] for m in await student.until("done")} == {"r2"}


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 9.0])
async def test_a_student_who_vanishes_leaves_nothing_behind(after_s: float) -> None:
    """In line, before the first token, mid-answer, after the end."""
    world = World(says(*"abc", pause_s=1.0), line=[(2, 1.0), (1, 1.0)])
    async with world.connected() as client:
        await client.hello()
        await client.ask("r1")
        await trio.sleep(after_s)
        await trio.aclose_forcefully(client.stream)
        await trio.sleep(10)
        assert world.balanced


async def test_history_goes_into_the_next_prompt() -> None:
    prompts: list[Prompt] = []

    async def script(prompt: Prompt, sink: Sink) -> Completion:
        prompts.append(prompt)
        return await says("Remember the sea.")(prompt, sink)

    world = World(script)
    async with world.student() as student:
        for request in ("r1", "r2"):
            await student.ask(request)
            await student.until("done")
    first, second = (msgspec.json.encode(str(prompt)).decode() for prompt in prompts)
    assert "Remember the sea." not in first
    assert "Remember the sea." in second


CALM = (
    "The sea was calm that day. We had come by the early train, with bread and a melon. "
    "Nobody who saw it could stay on the beach."
)


@attrs.define
class Reader:
    """A provider that remembers what it was asked."""

    prompts: list[Prompt] = attrs.field(factory=list)
    said: str = "Remember the sea."

    async def __call__(self, prompt: Prompt, sink: Sink) -> Completion:
        self.prompts.append(prompt)
        return await says(self.said, pause_s=0.1)(prompt, sink)

    def told(self, number: int) -> list[str]:
        """The messages of a prompt."""
        messages = self.prompts[number].messages
        return ["".join(block.text for block in message.blocks) for message in messages]


async def test_a_later_question_tells_what_has_changed_and_its_answer_adds() -> None:
    reader = Reader()
    world = World(reader, caches=True)
    async with world.student() as student:
        await student.ask("r1", text=CALM)
        first = (await student.until("done"))[-3]
        await student.ask("r2", text=f"{CALM} I did.")
        second = (await student.until("done"))[-3]
    assert (first["type"], "adds" in first, second["adds"]) == ("started", False, True)
    assert reader.told(1)[:2] == [reader.told(0)[0], "Remember the sea."]
    assert "I did." in reader.told(1)[2]
    assert "The sea was calm" not in reader.told(1)[2]


async def test_a_question_that_was_cut_short_is_as_if_it_had_not_been_asked() -> None:
    reader = Reader()
    world = World(reader, caches=True)
    async with world.student() as student:
        await student.ask("r1", text=CALM)
        await student.until("done")
        await student.ask("r2", text=f"{CALM} I did.")
        await student.until("started")
        await student.ask("r3", text=f"{CALM} I drowned.")
        await student.until("done")
    assert reader.told(2)[:2] == reader.told(1)[:2]
    assert "I drowned." in reader.told(2)[2]
    assert len(reader.told(2)) == 3


async def test_each_draft_has_a_conversation_of_its_own() -> None:
    reader = Reader()
    world = World(reader, caches=True)
    async with world.student() as student:
        for request, draft in (("r1", "one"), ("r2", "other")):
            await student.ask(request, draft=draft)
            await student.until("done")
    assert len(reader.told(1)) == 1


# -- submissions -------------------------------------------------------------------------------


def grade() -> wire.Grade:
    return wire.Grade(
        submission="s1", score=GRADE.score, criteria=(), judges=1, feedback=GRADE.feedback
    )


def deliver(world: World, answer: wire.Grade | wire.Error) -> None:
    (session,) = world.sessions._by_id.values()
    session.essays.deliver("s1", answer)


async def test_a_submission_is_acknowledged_then_graded_by_mail() -> None:
    world = World(says(), submit_s=0.1)
    async with world.student() as student:
        await student.submit()
        assert (await student.receive())["type"] == "grading"
        deliver(world, grade())
        answer = await student.receive()
        assert (world.submitted[0].worker, world.submitted[0].session) == (
            "w-test",
            world.session_id,
        )
    assert (answer["type"], answer["score"]) == ("grade", 71)
    assert world.limits.ended == [0], "a request, and no tokens"
    assert world.balanced


async def test_the_acknowledgement_does_not_wait_for_the_settlement() -> None:
    world = World(says(), settle_s=1.0)
    async with world.student() as student:
        began = trio.current_time()
        await student.submit()
        assert (await student.receive())["type"] == "grading"
        assert trio.current_time() == began


async def test_mail_that_overtakes_the_acknowledgement_waits_for_it() -> None:
    world = World(says(), submit_s=1.0)
    async with world.student() as student:
        await student.submit()
        await trio.sleep(0.5)
        deliver(world, grade())
        assert [m["type"] for m in await student.until("grade")] == ["grading", "grade"]


async def test_a_lost_mail_is_made_up_for_by_asking_the_queue() -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        began = trio.current_time()
        answer = await student.receive()
        assert (answer["type"], answer["score"], answer["feedback"]) == ("grade", 71, "Shorten it.")
        assert trio.current_time() - began <= 10.0


async def test_an_essay_in_line_is_told_its_place_until_a_grader_has_it() -> None:
    """When it has changed; who is graded soon hears of no place."""
    world = World(says())
    async with world.student() as student:
        await student.submit()
        assert (await student.receive())["type"] == "grading"
        waits = state(world.submitted[0])
        for place in (3, 3, 1):
            world.states["s1"] = attrs.evolve(waits, place=place)
            await trio.sleep(PLACE_S)
        world.states["s1"] = attrs.evolve(waits, status="grading")
        await trio.sleep(PLACE_S)
        deliver(world, grade())
        told = await student.until("grade")
        assert [(m["type"], m.get("position")) for m in told] == [
            ("queued", 3),
            ("queued", 1),
            ("grading", None),
            ("grade", None),
        ]
        assert all("eta_ms" not in m for m in told)


async def test_mail_that_comes_while_the_queue_is_asked_is_one_answer() -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        await trio.sleep(GRADE_POLL_S)
        deliver(world, grade())
        assert (await student.receive())["type"] == "grade"
        await student.ask("r1")
        assert {m["type"] for m in await student.until("done")} == {"started", "done"}


async def test_redis_away_while_a_grade_is_awaited_is_waited_out() -> None:
    """It was acknowledged: it is on disk, and the student need not know."""
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        world.away = NotSent("no redis")
        await trio.sleep(100)
        world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        world.away = None
        assert (await student.receive())["type"] == "grade"


def token_of(user: str, expires_at: float) -> str:
    claims = {"sub": user, "org": "school", "role": "student", "exp": expires_at}
    return jwt.encode(claims, "k" * 32, algorithm="HS256")


async def test_a_newer_token_on_the_same_connection_prolongs_it() -> None:
    """Said without an answer; one that is no use, or somebody else's, changes nothing."""
    world, until = World(says()), float(int(time.time()) + 7_200)
    async with world.student() as student:
        (session,) = world.sessions._by_id.values()
        link = session.link
        assert link is not None
        first = link.expires_at
        assert time.time() < first < until
        for bad in ("x.y.z", token_of("ana", time.time() - 60), token_of("eve", until)):
            await student.send(type="hello", token=bad)
            refused = await student.receive()
            assert (refused["type"], refused["code"]) == ("error", "unauthenticated")
            assert link.expires_at == first
        await student.send(type="hello", token=token_of("ana", until), resume="x")
        assert (await student.receive())["code"] == "bad_message"
        await student.send(type="hello", token=token_of("ana", until))
        await student.ask("r1")
        assert {m["type"] for m in await student.until("done")} == {"started", "done"}
        assert link.expires_at == until


async def test_an_expired_token_ends_the_connection_and_not_the_session() -> None:
    world = World(says("late"), session=config.Session(detached_s=60))
    async with world.at_home():
        async with world.student() as student:
            (session,) = world.sessions._by_id.values()
            assert session.link is not None
            session.link.expire()
            told, code = await student.until_closed()
            assert [m.get("code") for m in told] == ["unauthenticated"]
            assert code == 1008
        async with world.connected() as again:
            await again.hello(resume=student.welcome["resume"], last_seq=student.seq)
            assert again.welcome["session"] == session.id


async def test_a_grade_is_told_in_every_session_of_its_author_once() -> None:
    """And nowhere else; the letter may come twice."""
    world, elsewhere = World(says()), World(says(), worker="w-other")
    elsewhere.records, elsewhere.inbox = world.records, world.inbox
    letter = {"kind": "grade", "session": "", "user": "ana", "org": "school", "submission": "s1"}
    fields = {name.encode(): text.encode() for name, text in letter.items()}
    fields[b"payload"] = msgspec.json.encode(grade())
    async with (
        world.student() as submitter,
        world.student() as second_tab,
        world.student("eve") as other,
        elsewhere.student() as phone,
    ):
        await submitter.submit()
        await submitter.until("grading")
        assert world.inbox.places["school", "ana"] == {"w-test", "w-other"}
        assert world.inbox.essays == {("school", "ana"): ["s1"]}
        for _ in range(2):
            world.sessions._deliver(fields)
            elsewhere.sessions._deliver(fields)
            for client in (submitter, second_tab, phone):
                with trio.move_on_after(1):
                    assert (await client.receive())["score"] == 71
        await other.ask("r1")
        assert {m["type"] for m in await other.until("done")} == {"started", "done"}
        assert [client.seq for client in (submitter, second_tab, phone)] == [2, 1, 1]
        assert world.inbox.essays == {("school", "ana"): []}


async def test_a_result_that_came_while_nobody_was_there_is_told_at_the_next_hello() -> None:
    """The grade, and that it failed; what is not over yet, or not known any more, is not."""
    world = World(says())
    who = ("school", "ana")
    world.inbox.essays[who] = ["graded", "failed", "waits", "gone"]
    essay = Submission(id="x", user="ana", org="school", assignment="a", text="t")
    for status, answer in (
        ("graded", {"grade": GRADE}),
        ("failed", {"failure": Failure(code="internal", message="m", reason="r", attempts=5)}),
        ("queued", {}),
    ):
        name = "waits" if status == "queued" else status
        named = attrs.evolve(essay, id=name)
        world.states[name] = state(named, cast("Any", status), **cast("Any", answer))
    async with world.student() as student:
        told = [await student.receive() for _ in range(2)]
        assert [(m["type"], m["submission"]) for m in told] == [
            ("grade", "graded"),
            ("error", "failed"),
        ]
        await trio.lowlevel.checkpoint()
    assert world.inbox.essays[who] == ["waits"]
    async with world.student() as student:
        await student.ask("r1")
        assert {m["type"] for m in await student.until("done")} == {"started", "done"}


async def test_a_result_told_to_somebody_who_is_away_is_told_again_elsewhere() -> None:
    """It is in the session for whoever goes on with it; who begins anew hears it as well."""
    world = World(says(), session=config.Session(detached_s=60))
    async with world.at_home():
        async with world.student() as student:
            await student.submit()
            await student.until("grading")
        await trio.sleep(1)
        deliver(world, grade())
        await trio.sleep(1)
        assert world.inbox.essays == {("school", "ana"): ["s1"]}
        world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        async with world.connected() as again:
            await again.hello(resume=student.welcome["resume"], last_seq=student.seq)
            again.seq = student.seq
            assert (await again.receive())["type"] == "grade"
            await trio.sleep(0.1)
            assert world.inbox.essays == {("school", "ana"): []}


async def test_cancelled_at_every_step_of_a_look_into_the_inbox_no_result_is_lost() -> None:
    """It was said to the student, or it is there at the next hello."""
    world, who, outcomes = World(says()), ("school", "ana"), set()
    async with world.student():
        (session,) = world.sessions._by_id.values()
        for step in range(1, 50):
            name = f"s{step}"
            essay = Submission(id=name, user="ana", org="school", assignment="a", text="t")
            world.states[name] = state(essay, "graded", grade=GRADE)
            world.inbox.essays[who] = [name]
            with cancel_at_step(step) as scope:
                await world.sessions._look_into_inbox(session)
            await trio.sleep(0.1)
            is_told = name in session.essays._told
            assert is_told == (name not in world.inbox.essays[who])
            outcomes.add(is_told)
            if not scope.cancel_called:
                break
        else:
            pytest.fail("it never came to its end")
        assert outcomes == {True, False}


async def test_redis_away_costs_the_inbox_only_until_the_next_hello() -> None:
    world = World(says())
    world.inbox.essays["school", "ana"] = ["s1"]
    world.inbox.away = NotSent("no redis")
    async with world.student() as student:
        await student.ask("r1")
        assert {m["type"] for m in await student.until("done")} == {"started", "done"}
    assert world.inbox.essays["school", "ana"] == ["s1"]


async def test_a_submission_that_nobody_knows_any_more_is_asked_for_again() -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        world.submitted.clear()
        error = await student.receive()
    assert (error["code"], error["submission"]) == ("interrupted", "s1")
    assert error["retry_after_ms"] == 1000


@pytest.mark.parametrize("by_mail", [False, True])
async def test_the_same_id_again_gives_the_same_grade(by_mail: bool) -> None:
    """Also from another connection, as after a reconnect."""
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        if by_mail:
            deliver(world, grade())
        else:
            world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        first = await student.receive()
        world.states["s1"] = state(world.submitted[0], "graded", grade=GRADE)
        await student.submit()
        _, second = await student.until("grade")
    async with world.student() as student:
        await student.submit()
        _, third = await student.until("grade")
    assert {**first, "seq": 0} == {**second, "seq": 0} == {**third, "seq": 0}


async def test_a_submission_sent_twice_is_one_submission() -> None:
    """A client that is not sure may repeat itself, before and after the acknowledgement."""
    world = World(says(), submit_s=1.0)
    async with world.student() as student:
        for _ in range(3):
            await student.submit()
        assert (await student.receive())["type"] == "grading"
        await student.submit()
        assert (await student.receive())["type"] == "grading"
        deliver(world, grade())
        assert (await student.receive())["type"] == "grade"
        assert len(world.submitted) == 1


@pytest.mark.parametrize("under_way", [False, True])
async def test_other_text_under_the_same_id_is_a_conflict(under_way: bool) -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        if not under_way:
            deliver(world, grade())
            await student.receive()
        await student.submit(text="Another essay.")
        error = await student.receive()
        assert (error["code"], error["submission"]) == ("conflict", "s1")
        if under_way:
            deliver(world, grade())
            assert (await student.receive())["type"] == "grade"


@pytest.mark.parametrize("by_mail", [False, True])
async def test_a_submission_given_up_is_an_error_that_names_it(by_mail: bool) -> None:
    world = World(says())
    async with world.student() as student:
        await student.submit()
        await student.receive()
        failure = Failure(
            code="provider_unavailable", message="no judge could read it", reason="", attempts=5
        )
        world.states["s1"] = state(world.submitted[0], "failed", failure=failure)
        if by_mail:
            deliver(
                world,
                wire.Error(code="provider_unavailable", message=failure.message, submission="s1"),
            )
        got = await student.receive()
    assert (got["type"], got["code"], got["submission"], got["message"]) == (
        "error",
        "provider_unavailable",
        "s1",
        "no judge could read it",
    )


async def test_redis_away_at_submission_asks_to_submit_again() -> None:
    world = World(says(), refuse=NotSent("no redis"))
    async with world.student() as student:
        await student.submit()
        error = await student.receive()
        assert (error["code"], error["submission"]) == ("overloaded", "s1")
        world.refuse = None
        await student.submit()
        assert (await student.receive())["type"] == "grading"


async def test_submissions_that_are_none() -> None:
    world = World(says())
    async with world.student(draft_chars_max=50) as student:
        for index, (text, code) in enumerate(
            [(" \n", "bad_message"), ("x" * 51, "too_large")], start=1
        ):
            await student.submit(f"s{index}", text=text)
            error = await student.receive()
            assert (error["code"], error["submission"]) == (code, f"s{index}")
        for index in range(SUBMISSIONS_MAX):
            await student.submit(f"t{index}")
            assert (await student.receive())["type"] == "grading"
        await student.submit("u")
        assert (await student.receive())["code"] == "overloaded"
    assert world.balanced


# -- figures -----------------------------------------------------------------------------------


def count(metric: Counter, *labels: str) -> float:
    (family,) = metric.labels(*labels).collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))


async def test_every_error_and_every_ending_is_counted_once() -> None:
    async def script(_prompt: Prompt, sink: Sink) -> Completion:
        sink.on_start("script-1", Usage(input=10, cache_write=0, cache_read=0, output=1))
        sink.on_delta("x" * 70)
        await trio.sleep(1)
        raise ProviderUnavailable("cut")

    code = "provider_unavailable"
    errors = count(metrics.client_errors_total, code)
    turns = count(metrics.turns_total, code)
    tokens = count(metrics.tokens_total, "scripted", "output")
    async with World(script).student() as student:
        await student.ask("r1")
        await student.until("error")
    assert count(metrics.client_errors_total, code) == errors + 1
    assert count(metrics.turns_total, code) == turns + 1
    assert count(metrics.tokens_total, "scripted", "output") == tokens + 36


async def test_a_student_who_leaves_before_the_grade_was_not_graded() -> None:
    graded = count(metrics.submissions_total, "graded")
    async with World(says()).student() as student:
        await student.submit()
        await student.receive()
    assert count(metrics.submissions_total, "graded") == graded


# -- the protocol ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"type": "edit", "dra', "bad_message"),
        ('"hello"', "bad_message"),
        ("", "bad_message"),
        ('{"type": "shout"}', "bad_message"),
        ('{"type": "hello", "token": "x"}', "unauthenticated"),
        ('{"type": "draft", "draft": "d{x}", "rev": 1, "text": "t"}', "bad_message"),
        ('{"type": "ack", "seq": 1, "x": %s}' % ("[" * 20_000 + "]" * 20_000), "bad_message"),
        ('{"type": "edit", "draft": "d", "rev": 1, "splices": [[5, 1, "x"]]}', "bad_message"),
        ('{"type": "edit", "draft": "d", "rev": 9, "splices": []}', "conflict"),
        ('{"type": "draft", "draft": "d", "rev": 1, "text": "%s"}' % ("x" * 101), "too_large"),
        ('{"type": "feedback", "request": "r1", "draft": "none"}', "bad_message"),
    ],
    ids=lambda value: value[:40] if len(value) > 12 else value,
)
async def test_a_wrong_message_is_a_typed_error_and_moves_nothing(text: str, code: str) -> None:
    world = World(says("x"))
    async with world.student(draft_chars_max=100) as student:
        await student.websocket.send_message(text)
        assert (await student.receive())["code"] == code
        await student.ask("r1")
        assert (await student.until("done", "error"))[-1]["type"] == "done"


async def test_what_needs_no_answer_gets_none() -> None:
    world = World(says("x"))
    async with world.student() as student:
        await student.send(type="ack", seq=0, colour="red")
        await student.send(type="cancel", request="never-asked")
        await student.send(type="edit", draft="d", rev=1, splices=[[0, 0, "Calm."]])
        await student.send(type="feedback", request="r1", draft="d")
        assert [m["type"] for m in await student.until("done")] == ["started", "delta", "done"]


async def test_drafts_of_a_session_are_counted() -> None:
    world = World(says())
    async with world.student(drafts_max=2) as student:
        for index in range(3):
            await student.send(type="draft", draft=f"d{index}", rev=1, text="x")
        assert (await student.receive())["code"] == "too_large"


async def test_a_request_id_under_way_is_a_conflict_that_ends_nothing() -> None:
    world = World(says("x", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.send(type="feedback", request="r1", draft="d")
        got = await student.until("done")
        (error,) = [m for m in got if m["type"] == "error"]
        assert (error["code"], error.get("request")) == ("conflict", None)


async def test_turns_of_a_session_are_counted_ending_ones_included() -> None:
    world = World(says("x", pause_s=1.0), settle_s=1.0)
    async with world.student() as student:
        for index in range(TURNS_MAX + 1):
            await student.ask(f"r{index + 1}")
        codes = [(await student.until("error"))[-1]["code"] for _ in range(TURNS_MAX + 1)]
        assert codes == ["cancelled"] * TURNS_MAX + ["overloaded"]
    assert world.balanced


"""What ends a connection: what the client does, the error it gets, the close code."""
ENDINGS: dict[str, tuple[Callable[[Client], Awaitable[object]], str, int]] = {
    "binary": (lambda c: c.websocket.send_message(b"\0"), "bad_message", 1003),
    "not UTF-8": (lambda c: c.stream.send_all(masked(0x81, b"\xff\xfe")), "", 1007),
    "no frame": (lambda c: c.stream.send_all(b"\xff\xff"), "", 1002),
    "unmasked": (lambda c: c.stream.send_all(b"\x81\x01x"), "", 1002),
    "oversize": (lambda c: c.websocket.send_message("x" * 2000), "too_large", 1009),
    "oversize, then silence": (
        lambda c: c.stream.send_all(masked(0x01, b"x" * 2000)),
        "too_large",
        1009,
    ),
}


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame with the first byte `first`; the mask is zero."""
    size = len(payload)
    head = (
        struct.pack("!BB", first, 0x80 | size)
        if size < 126
        else struct.pack("!BBH", first, 254, size)
    )
    return head + bytes(4) + payload


@pytest.mark.parametrize("greeted", [False, True], ids=["before hello", "after hello"])
@pytest.mark.parametrize("name", ENDINGS)
async def test_what_closes_a_connection(name: str, greeted: bool) -> None:
    act, code, close_code = ENDINGS[name]
    world = World(says())
    async with world.connected(message_bytes_max=1000) as client:
        if greeted:
            await client.hello()
        await act(client)
        got, closed = await client.until_closed()
    assert [m["code"] for m in got] == [code] * bool(code)
    assert closed == close_code
    assert world.balanced


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"type": "feedback", "request": "r", "draft": "d"}, "unauthenticated"),
        ({"type": "hello", "token": "x"}, "unauthenticated"),
        ({"type": "hello", "token": "x" * 9000}, "bad_message"),
        ({"type": "hello"}, "bad_message"),
        (None, "unauthenticated"),
    ],
    ids=["feedback", "no token", "endless token", "nothing", "silence"],
)
async def test_who_does_not_say_hello_is_let_go(first: dict[str, object] | None, code: str) -> None:
    world = World(says())
    async with world.connected() as client:
        began = trio.current_time()
        if first is not None:
            await client.send(**first)
        got, closed = await client.until_closed()
        assert trio.current_time() - began == (0.0 if first else 5.0)
    assert [m["code"] for m in got] == [code]
    assert closed == 1008


async def test_too_many_bad_messages_end_the_connection() -> None:
    world = World(says())
    async with world.student(bad_messages_max=3) as student:
        for _ in range(10):
            await student.websocket.send_message("nonsense")
        got, closed = await student.until_closed()
    assert [m["code"] for m in got] == ["bad_message"] * 4
    assert closed == 1008


async def test_a_ping_after_our_close_frame_is_not_a_failure() -> None:
    world = World(says())
    near, far = wire_pair()
    async with trio.open_nursery() as served:
        served.start_soon(world.serve, far)
        await near.send_all(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await near.receive_some()
        await near.send_all(masked(0x82, b"\0"))
        while b"binary message" not in await near.receive_some():
            pass
        await near.send_all(masked(0x89, b""))
        with suppress(trio.BrokenResourceError):
            while await near.receive_some():
                pass
    await near.aclose()


async def test_a_connection_that_says_nothing_at_all_ends() -> None:
    world = World(says())
    near, far = wire_pair()
    await world.serve(far)
    assert trio.current_time() <= 7.0
    assert await near.receive_some() == b""
    await near.aclose()


async def test_the_subprotocol_is_taken_up_where_it_is_offered() -> None:
    world = World(says())
    near, far = wire_pair()
    async with trio.open_nursery() as served:
        served.start_soon(world.serve, far)
        async with trio.open_nursery() as nursery:
            websocket = await wrap_client_stream(
                nursery, near, "localhost", "/ws", subprotocols=["other", "coach.v1"]
            )
            assert websocket.subprotocol == "coach.v1"
            await trio.aclose_forcefully(near)


# -- the connection ----------------------------------------------------------------------------


async def test_a_user_has_only_so_many_connections() -> None:
    world = World(says())
    async with world.student(), world.student(), world.connected() as third:
        assert (await third.hello())["code"] == "overloaded"
        with pytest.raises(ConnectionClosed, match="1013"):
            await third.receive()
    async with world.student() as again:
        assert again.welcome["type"] == "welcome"


async def test_a_silent_student_is_pinged_and_a_dead_one_let_go() -> None:
    world = World(says())
    async with world.at_home() as sessions, trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run_pings)
        async with world.student() as alive:
            await trio.sleep(300)  # its library answers the pings
            assert len(world.sessions) == 1
            await alive.ask("r1")
            await alive.until("done")
        async with world.connected() as client:
            await client.hello()
            client.websocket._reader_running = False  # from here on it answers nothing
            await client.websocket._send(Pong())  # wakes its reader, which then stops
            await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert world.balanced


async def test_draining_lets_the_turn_finish_and_closes_with_1012() -> None:
    world = World(says("a", "b", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("delta")
        world.sessions.drain()
        got = await student.until("done")
        assert [m["type"] for m in got] == ["draining", "delta", "done"]
        with pytest.raises(ConnectionClosed, match="1012"):
            await student.receive()
    assert world.balanced


async def test_draining_interrupts_what_does_not_end_in_time() -> None:
    world = World(says("a", pause_s=1000.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("started")
        began = trio.current_time()
        world.sessions.drain()
        got, closed = await student.until_closed()
        assert [(m["type"], m.get("code")) for m in got] == [
            ("draining", None),
            ("error", "interrupted"),
        ]
        assert closed == 1012
        assert trio.current_time() - began == 3.5
    assert world.balanced


async def test_a_draining_session_takes_no_new_turns_and_ends_the_old() -> None:
    world = World(says("a", "b", pause_s=1.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("delta")
        world.sessions.drain()
        await student.send(type="feedback", request="r2", draft="d")
        got, closed = await student.until_closed()
    ends = [(m["type"], m["request"], m.get("code")) for m in got if "request" in m]
    assert ends == [
        ("error", "r2", "overloaded"),
        ("delta", "r1", None),
        ("done", "r1", None),
    ]
    assert closed == 1012


async def test_draining_tells_a_student_who_goes_on_typing() -> None:
    """What the student sends meanwhile does not turn the close frame into a reset."""
    world = World(says())
    async with world.student() as student:
        world.sessions.drain()
        for rev in range(1, 200):
            with suppress(ConnectionClosed):
                await student.send(type="draft", draft="d", rev=rev, text="x" * 500)
        got, closed = await student.until_closed()
    assert [m["type"] for m in got] == ["draining"]
    assert closed == 1012


async def test_draining_does_not_wait_for_who_reads_nothing() -> None:
    """The student's socket is full and never read: the worker's end is not held up."""
    world = World(says(*["x" * 2000] * 300, pause_s=0.0))
    near, far = wire_pair()
    async with trio.open_nursery() as served:
        served.start_soon(partial(world.serve, far, outbox_bytes_max=10_000_000))
        async with open_client(near) as student:
            await student.hello()
            student.websocket._recv_channel.close()  # reads, until its socket stands still
            student.websocket._reader_running = False
            await student.ask("r1")
            await trio.sleep(1)
            began = trio.current_time()
            world.sessions.drain()
            with suppress(ConnectionClosed, trio.ClosedResourceError):
                await student.until("never said")
            assert trio.current_time() - began <= 3.0
    assert world.balanced


async def test_a_slow_reader_is_shed_and_nobody_else_notices(logs: list[EventDict]) -> None:
    async def script(prompt: Prompt, sink: Sink) -> Completion:
        if "endless" in str(prompt):
            sink.on_start("script-1", Usage(1, 0, 0, 0))
            while True:
                sink.on_delta("x" * 1000)
                await trio.sleep(0.01)
        return await says(*"abc", pause_s=1.0)(prompt, sink)

    world = World(script)
    near, far = wire_pair()
    async with world.student("bo") as other, trio.open_nursery() as served:
        served.start_soon(world.serve, far)
        async with open_client(near) as slow:
            await slow.hello()
            slow.websocket._reader_running = False
            await slow.ask("r1", text="an endless essay")
            await other.ask("r1")
            began = trio.current_time()
            await other.until("done")
            assert trio.current_time() - began == 4.0
            await trio.sleep(60)
            assert len(world.sessions) == 1
            assert world.streams_open == world.limits.open == world.budget.open == 0
    assert [entry["reason"] for entry in logs if entry["event"] == "link_broken"] == ["slow_reader"]
    assert world.balanced


@pytest.mark.parametrize(("settle_s", "queue"), [(0.0, 100), (0.5, 100), (0.5, 0)])
async def test_cancelled_at_every_step_a_session_gives_everything_back(
    settle_s: float, queue: int
) -> None:
    """A session with a running turn, one that is replaced, and a submission, queued or not."""
    steps = 0
    while True:
        steps += 1
        world = World(
            says("a", "b", pause_s=0.5),
            line=[(2, 0.3)],
            submit_s=0.2,
            settle_s=settle_s,
            rollout=config.Rollout(queue=queue),
        )
        near, far = wire_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act, near)
            with cancel_at_step(steps) as scope:
                await world.serve(far)
            assert world.balanced, steps
            assert far.socket.fileno() == -1, steps
            nursery.cancel_scope.cancel()
        if not scope.cancel_called:
            break
    assert steps > 20, "the sweep did not reach into the turns"


async def act(stream: trio.SocketStream) -> None:
    """A student who types, asks, asks again, hands in, and goes."""
    await trio.lowlevel.checkpoint()
    try:
        async with open_client(stream) as student:
            await student.hello()
            await student.ask("r1")
            await student.until("delta")
            await student.ask("r2")
            await student.submit()
            await student.until("done")
    except* (ConnectionClosed, trio.BrokenResourceError):
        pass


async def test_a_bug_in_one_turn_is_that_turns_alone() -> None:
    async def script(prompt: Prompt, sink: Sink) -> Completion:
        if "broken" in str(prompt):
            raise RuntimeError("a bug")
        return await says("fine", pause_s=1.0)(prompt, sink)

    world = World(script)
    async with world.student() as student:
        await student.ask("r1", draft="a", text="whole")
        await student.ask("r2", draft="b", text="broken")
        got = await student.until("done")
    assert [(m["type"], m["request"]) for m in got if m["type"] in {"done", "error"}] == [
        ("error", "r2"),
        ("done", "r1"),
    ]


async def test_an_essay_of_an_org_without_money_is_taken_in_and_its_grade_waits() -> None:
    world = World(says("a"))
    exhaust(world.costs)
    async with world.student() as student:
        await student.submit("s1")
        grading, error = await student.until("error")
    assert grading["type"] == "grading"
    assert (error["submission"], error["code"]) == ("s1", "rate_limited")
    assert error["retry_after_ms"] == 600_000
    assert [submission.id for submission in world.submitted] == ["s1"]
    assert world.balanced
