"""The multiplexed connection on the mock clock: order, cancellation, silence, reconnection."""

from __future__ import annotations

import random

import pytest
import trio

from coach.nurseries import running
from coach.store import ConnectionLost, NotSent
from coach.store.link import Link
from coach.store.wire import Limits, pack
from tests.store.fakes import FakeServer

LIMITS = Limits(wait_s=5.0, stall_s_max=3.0, calls_max=100)


async def echo(link: Link, text: str) -> bytes:
    (reply,) = await link.request(pack(("ECHO", text)))
    assert isinstance(reply, bytes)
    return reply


async def test_each_caller_gets_its_own_reply() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        link = Link(server.dial, LIMITS)
        async with running(link.run):
            replies: dict[str, bytes] = {}

            async def ask(text: str) -> None:
                replies[text] = await echo(link, text)

            async with trio.open_nursery() as callers:
                for number in range(50):
                    callers.start_soon(ask, str(number))
            assert replies == {str(n): str(n).encode() for n in range(50)}
        nursery.cancel_scope.cancel()


async def test_cancelled_callers_never_disturb_the_others() -> None:
    """200 tasks for 20 s; each call may be cancelled at any moment before its reply."""
    chance = random.Random(1)
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.answer_s = 0.001
        link = Link(server.dial, Limits())
        cancelled_count = 0

        async def work(me: int) -> None:
            nonlocal cancelled_count
            for number in range(20):
                text = f"{me}:{number}"
                with trio.move_on_after(chance.uniform(0, 0.5)) as scope:
                    assert await echo(link, text) == text.encode()
                cancelled_count += scope.cancelled_caught

        async with running(link.run):
            async with trio.open_nursery() as workers:
                for me in range(200):
                    workers.start_soon(work, me)
            await echo(link, "the last")
            assert link.replies_dropped_count > 100
            assert 100 < cancelled_count < 4_000
        nursery.cancel_scope.cancel()


async def test_a_call_cancelled_before_it_was_written_is_never_sent() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.accepts = False
        link = Link(server.dial, LIMITS)
        async with running(link.run):
            with trio.move_on_after(1):
                await echo(link, "cancelled")
            server.accepts = True
            assert await echo(link, "kept") == b"kept"
            assert server.ran == [b"kept"]
        nursery.cancel_scope.cancel()


async def test_without_a_server_a_call_fails_as_not_sent_exactly_when_its_wait_is_over() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.accepts = False
        link = Link(server.dial, LIMITS)

        async def ask_at(start_s: float) -> None:
            await trio.sleep(start_s)
            began = trio.current_time()
            with pytest.raises(NotSent, match="no connection for 5 s: refused"):
                await echo(link, "x")
            assert trio.current_time() - began == pytest.approx(LIMITS.wait_s)

        async with running(link.run), trio.open_nursery() as callers:
            for start_s in (0, 0.3, 1.7, 4.9, 5.0, 30.0):
                callers.start_soon(ask_at, start_s)
        assert link.unsent_count == 0
        nursery.cancel_scope.cancel()


async def test_a_server_that_comes_back_within_the_wait_is_used_as_if_nothing_had_been() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.accepts = False
        link = Link(server.dial, LIMITS)

        async def come_back() -> None:
            await trio.sleep(4)
            server.accepts = True

        async with running(link.run):
            nursery.start_soon(come_back)
            assert await echo(link, "x") == b"x"
        nursery.cancel_scope.cancel()


async def test_a_cut_tells_what_may_have_run_from_what_did_not() -> None:
    """`ConnectionLost` exactly for what was written; `NotSent` never for what has run."""
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.answer_s = 0.01
        link = Link(server.dial, LIMITS)
        outcomes: dict[str, str] = {}

        async def ask(text: str) -> None:
            try:
                await echo(link, text)
                outcomes[text] = "answered"
            except (NotSent, ConnectionLost) as error:
                outcomes[text] = type(error).__name__

        async with running(link.run):
            async with trio.open_nursery() as callers:
                for number in range(10):
                    callers.start_soon(ask, f"early{number}")
                await trio.sleep(0.035)
                server.accepts = False
                server.cut()
                await trio.testing.wait_all_tasks_blocked()
                for number in range(10):
                    callers.start_soon(ask, f"late{number}")
            assert sorted(outcomes.values()) == (
                ["ConnectionLost"] * 7 + ["NotSent"] * 10 + ["answered"] * 3
            )
            not_sent = {text for text, outcome in outcomes.items() if outcome == "NotSent"}
            assert not_sent.isdisjoint(ran.decode() for ran in server.ran)
        nursery.cancel_scope.cancel()


async def test_a_silent_server_is_given_up_exactly_after_the_stall_limit() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        link = Link(server.dial, LIMITS)
        async with running(link.run):
            await echo(link, "warm")
            await trio.sleep(100.7)  # idle is not silent
            assert link.connections_count == 1
            server.answers = False
            began = trio.current_time()
            with pytest.raises(ConnectionLost, match="no answer for 3 s"):
                await echo(link, "x")
            assert trio.current_time() - began == pytest.approx(LIMITS.stall_s_max)
            server.answers = True
            assert await echo(link, "again") == b"again"
        nursery.cancel_scope.cancel()


async def test_a_slow_server_that_keeps_answering_is_not_given_up() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.answer_s = 2.9
        link = Link(server.dial, LIMITS)
        async with running(link.run):
            async with trio.open_nursery() as callers:
                for number in range(10):
                    callers.start_soon(echo, link, str(number))
            assert link.connections_count == 1
        nursery.cancel_scope.cancel()


async def test_more_callers_than_may_wait_are_refused_by_name() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.accepts = False
        link = Link(server.dial, LIMITS)
        async with running(link.run), trio.open_nursery() as callers:
            for number in range(LIMITS.calls_max):
                callers.start_soon(echo, link, str(number))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(NotSent, match="100 commands wait for Redis already"):
                await echo(link, "one too many")
            callers.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def test_cancelled_callers_make_room_for_others() -> None:
    async with trio.open_nursery() as nursery:
        server = FakeServer(nursery)
        server.accepts = False
        link = Link(server.dial, LIMITS)
        async with running(link.run):
            for number in range(LIMITS.calls_max * 3):
                with trio.move_on_after(0.001):
                    await echo(link, str(number))
            server.accepts = True
            assert await echo(link, "x") == b"x"
        nursery.cancel_scope.cancel()


async def test_a_closed_client_says_so() -> None:
    async with trio.open_nursery() as nursery:
        link = Link(FakeServer(nursery).dial, LIMITS)
        async with running(link.run):
            await echo(link, "x")
        with pytest.raises(NotSent, match="closed"):
            await echo(link, "x")
        nursery.cancel_scope.cancel()


async def test_a_cancelled_body_can_still_clean_up_under_a_shield() -> None:
    async with trio.open_nursery() as nursery:
        link = Link(FakeServer(nursery).dial, LIMITS)
        refunded = False
        with trio.move_on_after(1) as scope:
            async with running(link.run):
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.move_on_after(1, shield=True):
                        refunded = await echo(link, "refund") == b"refund"
        assert scope.cancelled_caught
        assert refunded
        nursery.cancel_scope.cancel()
