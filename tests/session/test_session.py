"""A session on a real WebSocket, its surroundings scripted: what a student sees, what is kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed
from wsproto.events import Pong

from coach.errors import Overloaded, ProviderUnavailable, RateLimited
from coach.grading import Grade
from coach.providers import Completion, Prompt, Sink, Usage
from coach.session.registry import FailedMail, GradeMail
from coach.store import NotSent

from .world import Client, World, says, state


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
    assert [m["request"] for m in got if m["type"] == "done"] == ["r1", "r2"]


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
        await hello(client)
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


# -- submissions -------------------------------------------------------------------------------

GRADE = Grade(score=71, criteria=(), judges=1, degraded=False, feedback="Shorten it.")


def mail(session: str, submission: str) -> GradeMail:
    payload = {"submission": submission, "score": 71, "criteria": [], "judges": 1}
    return GradeMail(
        session=session, submission=submission, payload=msgspec.json.encode(payload).decode()
    )


async def submit(student: Client, submission: str = "s1") -> None:
    await student.send(type="submit", submission=submission, assignment="a", text="An essay.")


async def test_a_submission_is_acknowledged_then_graded_by_mail() -> None:
    world = World(says(), submit_s=0.1)
    async with world.student() as student:
        await submit(student)
        assert (await student.receive())["type"] == "grading"
        (session,) = world.sessions._by_id.values()
        session.deliver(mail(session.id, "s1"))
        grade = await student.receive()
    assert (grade["type"], grade["score"]) == ("grade", 71)
    assert (world.submitted[0].worker, world.submitted[0].session) == ("w-test", session.id)
    assert world.balanced


async def test_mail_that_overtakes_the_acknowledgement_waits_for_it() -> None:
    world = World(says(), submit_s=1.0)
    async with world.student() as student:
        await submit(student)
        await trio.sleep(0.5)
        (session,) = world.sessions._by_id.values()
        session.deliver(mail(session.id, "s1"))
        assert [m["type"] for m in await student.until("grade")] == ["grading", "grade"]


async def test_a_lost_mail_is_made_up_for_by_asking_the_queue() -> None:
    world = World(says())
    async with world.student() as student:
        await submit(student)
        await student.receive()
        world.states["s1"] = state(world.submitted[0], "graded", GRADE)
        began = trio.current_time()
        grade = await student.receive()
        assert (grade["type"], grade["score"], grade["feedback"]) == ("grade", 71, "Shorten it.")
        assert trio.current_time() - began <= 10.0


async def test_the_same_id_again_gives_the_same_grade() -> None:
    world = World(says())
    async with world.student() as student:
        await submit(student)
        await student.receive()
        world.states["s1"] = state(world.submitted[0], "graded", GRADE)
        first = await student.receive()
        await submit(student)
        _, second = await student.until("grade")
    assert {**first, "seq": 0} == {**second, "seq": 0}


async def test_a_submission_given_up_is_an_error_that_names_it() -> None:
    world = World(says())
    async with world.student() as student:
        await submit(student)
        await student.receive()
        (session,) = world.sessions._by_id.values()
        error: dict[str, Any] = {
            "code": "provider_unavailable",
            "message": "no judge could read it",
            "submission": "s1",
        }
        session.deliver(
            FailedMail(
                session=session.id, submission="s1", payload=msgspec.json.encode(error).decode()
            )
        )
        got = await student.receive()
    assert (got["type"], got["code"], got["submission"]) == ("error", "provider_unavailable", "s1")


async def test_redis_away_at_submission_asks_to_submit_again() -> None:
    world = World(says(), refuse=NotSent("no redis"))
    async with world.student() as student:
        await submit(student)
        error = await student.receive()
        assert (error["code"], error["submission"]) == ("overloaded", "s1")
        world.refuse = None
        await submit(student)
        assert (await student.receive())["type"] == "grading"


# -- the connection ----------------------------------------------------------------------------


async def hello(client: Client, user: str = "ana") -> dict[str, Any]:
    from .world import AUTHORITY

    token, _ = AUTHORITY.issue(user=user, org="school", role="student")
    await client.send(type="hello", token=token)
    return await client.receive()


async def test_a_user_has_only_so_many_connections() -> None:
    world = World(says())
    async with world.student(), world.student(), world.connected() as third:
        assert (await hello(third))["code"] == "overloaded"
        with pytest.raises(ConnectionClosed, match="1013"):
            await third.receive()
    async with world.student() as again:
        assert again.welcome["type"] == "welcome"


async def test_a_silent_student_is_pinged_and_a_dead_one_let_go() -> None:
    world = World(says())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.sessions.run_pings)
        async with world.student() as alive:
            await trio.sleep(300)  # its library answers the pings
            assert len(world.sessions) == 1
            await alive.ask("r1")
            await alive.until("done")
        async with world.connected() as client:
            await hello(client)
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


async def test_draining_does_not_wait_for_ever() -> None:
    world = World(says("a", pause_s=1000.0))
    async with world.student() as student:
        await student.ask("r1")
        await student.until("started")
        began = trio.current_time()
        world.sessions.drain()
        with pytest.raises(ConnectionClosed):
            await student.until("never said")
        assert trio.current_time() - began <= 6.0
    assert world.balanced


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
