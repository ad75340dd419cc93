"""The sessions of a worker: their number, their mail, pings, and the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any, cast

import attrs
import msgspec
import pytest
import trio
from structlog.typing import EventDict
from trio.testing import wait_all_tasks_blocked

from coach.errors import Overloaded
from coach.session import Sessions, wire
from coach.session.registry import MAIL_BATCH, PINGS_AT_ONCE, _entries

from .world import Mailbox, World, says

GRADE = msgspec.json.encode({"submission": "s1", "score": 71, "criteria": [], "judges": 1})
ERROR = msgspec.json.encode({"submission": "s1", "code": "internal", "message": "lost"})


@attrs.define(eq=False)
class Fake:
    """In place of a session."""

    id: str
    mail: list[tuple[str, object]] = attrs.field(factory=list)
    pings: list[float] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)
    drained: list[float] = attrs.field(factory=list)
    received_at: float = 0.0
    kept_at: float = inf
    expires_at: float = inf
    turns_running: int = 1
    works_here: bool = True
    on_expire: Callable[[], None] = lambda: None

    org: str = "school"
    is_over: bool = False

    @property
    def user(self) -> str:
        return self.id

    @property
    def identity(self) -> Fake:
        return self

    @property
    def essays(self) -> Fake:
        return self

    @property
    def link(self) -> Fake:
        return self

    @property
    def writer(self) -> Fake:
        return self

    def ping(self) -> None:
        self.pings.append(trio.current_time())

    def deliver(self, submission: str, answer: object) -> None:
        self.mail.append((submission, answer))

    def expire(self) -> None:
        self.ended.append("expired")
        self.on_expire()

    def cut(self, reason: str) -> None:
        self.ended.append(reason)

    def drain(self, *, begin_s: float, close_s: float) -> None:
        self.drained += [begin_s, close_s]


def registry(*names: str) -> tuple[Sessions, list[Any]]:
    services = World(says()).services()
    sessions = Sessions(services, cast("Any", None), services.settings, cast("Any", None))
    fakes = [Fake(name) for name in names]
    for fake in fakes:
        sessions._add(cast("Any", fake))
        sessions.enter(cast("Any", fake))
    return sessions, fakes


async def test_connections_are_counted_per_user_of_an_org() -> None:
    sessions, _ = registry("ana")
    second, third = (cast("Any", Fake("ana")) for _ in range(2))
    sessions.enter(second)
    with pytest.raises(Overloaded, match="2 connections") as refused:
        sessions.enter(third)
    assert refused.value.retry_after_s
    other = cast("Any", Fake("ana", org="other school"))
    sessions.enter(other)
    for session in (second, other, sessions._by_id["ana"]):
        sessions.leave(session)
    assert not sessions._by_user


async def test_draining_is_told_to_one_after_the_other_once_and_takes_nobody_in() -> None:
    sessions, fakes = registry("ana", "bo")
    terminated = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(3):  # every connection brings the event
            sessions.watch(terminated, nursery)
        await wait_all_tasks_blocked()
        assert not sessions.draining
        terminated.set()
    assert [fake.drained for fake in fakes] == [[0.0, 3.5], [1.25, 3.5]]
    with pytest.raises(Overloaded):
        sessions.enter(cast("Any", Fake("late")))


async def test_the_silent_are_pinged_and_the_dead_let_go() -> None:
    sessions, (silent, dead) = registry("silent", "dead")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run_pings)
        for _ in range(30):
            await trio.sleep(10)
            if silent.pings and silent.received_at < silent.pings[-1]:
                silent.received_at = trio.current_time()  # its pong
        nursery.cancel_scope.cancel()
    assert len(silent.pings) >= 8
    assert not silent.ended
    assert dead.ended[0] == "no answer to pings"
    assert dead.pings == [30.0, 40.0]


async def test_who_shows_no_newer_token_in_time_is_sent_away() -> None:
    """Within half of `server.ping_s` after the token has run out, the leeway of clocks apart."""
    sessions, (early, late) = registry("early", "late")
    early.expires_at = time.time() - 60
    late.expires_at = time.time() + 60
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run_pings)
        await trio.sleep(10.1)
        nursery.cancel_scope.cancel()
    assert (early.ended, late.ended) == (["expired"], [])


async def test_many_pings_let_feedback_through() -> None:
    """A ping is a system call: thousands in one go would hold up every student's next word."""
    sessions, fakes = registry(*(f"u{index}" for index in range(10 * PINGS_AT_ONCE)))
    pinged: list[int] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run_pings)
        await trio.sleep(29.9)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(0.2)
        while not pinged or pinged[-1] < len(fakes):
            await trio.lowlevel.checkpoint()
            pinged.append(sum(len(fake.pings) for fake in fakes))
        nursery.cancel_scope.cancel()
    at_once = max(after - before for before, after in pairwise(pinged))
    assert at_once <= 2 * PINGS_AT_ONCE, "the end of one round of tasks, the start of the next"


async def test_those_who_leave_during_a_round_of_pings_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A class that handed in and left took its worker along once."""

    async def say_gone(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    sessions, fakes = registry("ana", *(f"u{index}" for index in range(2 * PINGS_AT_ONCE)))
    ana, others = fakes[0], fakes[1:]

    def leave() -> None:
        for fake in others:
            sessions._remove(fake)

    ana.expires_at, ana.on_expire = -inf, leave
    monkeypatch.setattr(sessions, "_say_gone", say_gone)
    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(sessions, "_nursery", nursery)
        nursery.start_soon(sessions.run_pings)
        await trio.sleep(10.1)
        nursery.cancel_scope.cancel()
    assert ana.ended == ["expired"]
    assert list(sessions._by_id) == ["ana"]
    assert not any(fake.pings for fake in others)


# -- the mailbox -------------------------------------------------------------------------------


async def deliver(mailbox: Mailbox, sessions: Sessions, seconds: float = 1.0) -> None:
    with trio.move_on_after(seconds):
        await sessions.run_mailbox(cast("Any", mailbox), "w-test")


async def test_mail_reaches_its_session_whether_it_was_there_before_or_comes_later() -> None:
    sessions, (ana, bo) = registry("ana", "bo")
    mailbox = Mailbox()
    mailbox.post(kind="grade", session="ana", user="ana", submission="s1", payload=GRADE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver, mailbox, sessions, 100.0)
        await trio.sleep(50)
        assert [name for name, _ in ana.mail] == ["s1"]
        assert not bo.mail
        mailbox.post(kind="failed", session="bo", user="bo", submission="s1", payload=ERROR)
        await trio.sleep(1)
    ((_, grade),), ((_, error),) = ana.mail, bo.mail
    assert isinstance(grade, wire.Grade)
    assert grade.score == 71
    assert isinstance(error, wire.Error)
    assert error.code == "internal"


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "surprise"},
        {"kind": None},
        {"session": None},
        {"submission": None},
        {"payload": None},
        {"payload": b"{"},
        {"payload": b"[]"},
        {"payload": b'{"submission": "s1", "score": "much", "criteria": [], "judges": 1}'},
        {"payload": b"\xff"},
        {"kind": "failed", "payload": b'{"code": "unheard-of", "message": ""}'},
    ],
    ids=str,
)
async def test_malformed_mail_is_logged_and_the_next_one_delivered(
    changes: dict[str, str | bytes | None], logs: list[EventDict]
) -> None:
    sessions, (ana,) = registry("ana")
    mailbox = Mailbox()
    good = {"kind": "grade", "session": "ana", "submission": "s1", "payload": GRADE}
    bad = {name: value for name, value in {**good, **changes}.items() if value is not None}
    mailbox.post(**cast("dict[str, str | bytes]", bad))
    mailbox.post(**cast("dict[str, str | bytes]", good))
    await deliver(mailbox, sessions)
    assert [name for name, _ in ana.mail] == ["s1"]
    assert [entry["event"] for entry in logs] == ["bad_mail"]


async def test_mail_for_who_has_gone_is_dropped() -> None:
    sessions, (ana,) = registry("ana")
    mailbox = Mailbox()
    mailbox.post(kind="grade", session="gone", submission="s1", payload=GRADE)
    mailbox.post(kind="grade", session="ana", submission="s1", payload=GRADE)
    await deliver(mailbox, sessions)
    assert len(ana.mail) == 1


async def test_redis_away_loses_no_mail_and_is_asked_gently() -> None:
    sessions, (ana,) = registry("ana")
    mailbox = Mailbox(away=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver, mailbox, sessions, 1000.0)
        await trio.sleep(60)
        assert mailbox.asked <= 121
        for _ in range(MAIL_BATCH + 5):
            mailbox.post(kind="grade", session="ana", submission="s1", payload=GRADE)
        mailbox.away = False
        await trio.sleep(1)
        assert len(ana.mail) == MAIL_BATCH + 5
        nursery.cancel_scope.cancel()


async def test_mail_goes_all_the_way_to_the_student() -> None:
    world, mailbox = World(says()), Mailbox()
    async with world.at_home() as sessions, trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run_mailbox, cast("Any", mailbox), "w-test")
        async with world.student() as student:
            await student.submit()
            await student.receive()
            mailbox.post(kind="grade", session=world.session_id, submission="s1", payload=GRADE)
            began = trio.current_time()
            assert (await student.receive())["score"] == 71
            assert trio.current_time() == began
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 2])
def test_entries_are_found_in_every_shape_of_a_reply(count: int) -> None:
    """RESP2, RESP3, and RESP3 as redis-py's callback gives it."""
    entries = [(b"%d-0" % index, {b"a": b"b"}) for index in range(count)]
    for reply in ([[b"mail:w", entries]], {b"mail:w": entries}, {b"mail:w": [entries]}):
        assert _entries(reply) == entries
    empty: tuple[object, ...] = (None, [], {})
    assert [_entries(reply) for reply in empty] == [[], [], []]


async def test_news_of_a_submission_is_no_answer_to_it() -> None:
    sessions, (ann,) = registry("ann")
    late = msgspec.json.encode({"submission": "s1", "delayed": True})
    sessions._deliver(
        {b"kind": b"grading", b"session": b"ann", b"submission": b"s1", b"payload": late}
    )
    assert ann.mail == [("s1", wire.Grading(submission="s1", delayed=True))]
