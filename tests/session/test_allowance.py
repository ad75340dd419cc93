"""Who sends too much is read later and loses nothing; who types is never held up."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from coach import config
from coach.ops import metrics
from coach.session.allowance import BURST_S, Allowance, open_throttle
from coach.session.writer import PIECES_MAX
from tests.session.test_session import masked
from tests.session.world import Client, World, says
from tests.support.cancels import cancel_at_step

RATE = config.Server().messages_per_s
KEYSTROKES_PER_S = 30
"""A key that is held down, each repetition an edit of its own: no page sends so many."""


def held() -> float:
    value: float = metrics.messages_held._value.get()
    return value


async def type_on(student: Client, count: int, every_s: float, draft: str = "d") -> None:
    """So many edits, one character each."""
    for rev in range(count):
        await student.send(type="edit", draft=draft, rev=rev + 1, splices=[[rev, 0, "x"]])
        await trio.sleep(every_s)


async def text_of(world: World, student: Client, draft: str = "d") -> str:
    """What the server has of a draft, once it has read all that was sent."""
    await student.send(type="edit", draft="other", rev=9, splices=[])
    while (await student.receive()).get("code") != "conflict":
        pass
    session = world.sessions._by_id[student.welcome["session"]]
    return session._drafts[draft].text


async def test_who_holds_a_key_down_for_minutes_is_not_held_up() -> None:
    world, before = World(says()), held()
    async with world.student() as student:
        await type_on(student, 180 * KEYSTROKES_PER_S, 1 / KEYSTROKES_PER_S)
        assert len(await text_of(world, student)) == 180 * KEYSTROKES_PER_S
    assert held() == before


async def test_a_page_that_says_everything_again_is_not_held_up() -> None:
    """As after each return: all drafts at their longest, the essay, a request and an ack."""
    world, before = World(says()), held()
    async with world.student() as student:
        for number in range(8):
            await student.send(type="draft", draft=f"d{number}", rev=1, text="x" * 100_000)
        await student.submit(text="x" * 100_000)
        await student.send(type="feedback", request="r1", draft="d1")
        await student.send(type="ack", seq=0)
        await student.until("done")
    assert held() == before


async def test_a_flood_of_edits_is_read_later_and_loses_no_character() -> None:
    world, before = World(says()), held()
    count = int(RATE * BURST_S) + 10 * RATE
    async with world.student() as student:
        began = trio.current_time()
        await type_on(student, count, 0)
        assert await text_of(world, student) == "x" * count
        took_s = trio.current_time() - began
    assert 9 < took_s < 16
    assert held() > before


async def test_it_is_said_once_until_a_burst_may_come_again() -> None:
    world = World(says())
    async with world.student() as student:
        for _ in range(2):
            count = int(RATE * BURST_S) + 5 * RATE
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, student, count)
                error = await student.receive()
            assert (error["type"], error["code"]) == ("error", "rate_limited")
            assert "request" not in error
            assert BURST_S * 1_000 <= error["retry_after_ms"] < BURST_S * 1_000 + 500
            await trio.sleep(2 * BURST_S)
        await student.send(type="cancel")  # no message of the protocol: the next answer is its own
        assert (await student.receive())["code"] == "bad_message"


async def flood(student: Client, count: int) -> None:
    for _ in range(count):
        await student.send(type="cancel", request="r")


async def test_feedback_goes_on_while_its_student_is_read_slowly() -> None:
    world = World(says("It ", "goes ", "on.", pause_s=1.0))
    async with world.student() as student, trio.open_nursery() as nursery:
        await student.ask("r1")
        nursery.start_soon(flood, student, int(RATE * BURST_S) + 20 * RATE)
        texts = [m["text"] for m in await student.until("done") if m["type"] == "delta"]
        assert "".join(texts) == "It goes on."
        assert trio.current_time() == 4, "as long as the provider takes"
        nursery.cancel_scope.cancel()


async def test_connections_of_a_user_share_what_the_user_may_send() -> None:
    world = World(says())
    async with world.student() as one, world.student() as two, world.student("ben") as ben:
        began = trio.current_time()
        await flood(one, int(RATE * BURST_S))
        await ben.send(type="cancel")
        await ben.receive()
        assert trio.current_time() == began
        await flood(two, 10 * RATE)
        await two.send(type="cancel")
        while (await two.receive())["code"] != "bad_message":
            pass
        assert trio.current_time() - began > 8


async def test_pings_are_answered_at_the_same_rate() -> None:
    world = World(says())
    count = int(RATE * BURST_S) + 10 * RATE
    async with world.student() as student, trio.open_nursery() as nursery:
        nursery.start_soon(student.stream.send_all, masked(0x89, b"") * count)
        await trio.sleep(5)
        await student.send(type="cancel")
        while (await student.receive())["code"] != "bad_message":
            pass
        assert 9 < trio.current_time() < 16


@pytest.mark.parametrize("frame", [masked(0x8A, b""), masked(0x8A, b"x" * 125)])
async def test_frames_that_make_no_message_are_held_up_by_their_bytes(frame: bytes) -> None:
    world, before = World(says()), held()
    async with world.student(messages_per_s=10) as student, trio.open_nursery() as nursery:
        nursery.start_soon(student.stream.send_all, frame * (800_000 // len(frame)))
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert held() > before
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("greeted", [False, True])
async def test_a_message_in_endless_empty_pieces_ends_the_connection(greeted: bool) -> None:
    """Each piece takes memory, and none of them adds to the message's size."""
    world = World(says())
    async with world.connected() as client, trio.open_nursery() as nursery:
        if greeted:
            await client.hello()
        pieces = masked(0x01, b"") + masked(0x00, b"") * (2 * PIECES_MAX)
        nursery.start_soon(client.stream.send_all, pieces)
        got, closed = await client.until_closed()
        assert [each["code"] for each in got] == ["too_large"]
        assert closed == 1009
        nursery.cancel_scope.cancel()
    assert world.balanced


async def test_a_message_in_many_pieces_is_heard() -> None:
    world = World(says())
    async with world.student() as student:
        text = b'{"type": "draft", "draft": "d", "rev": 1, "text": "%b"}' % (b"x" * 3_000)
        first, *rest = (bytes([each]) for each in text)
        frames = [masked(0x01, first), *(masked(0x00, each) for each in rest)]
        for frame in frames:
            await student.stream.send_all(frame)
        await student.stream.send_all(masked(0x80, b""))
        assert await text_of(world, student) == "x" * 3_000


async def test_a_user_who_connects_again_and_again_has_to_wait_a_moment() -> None:
    world = World(says())
    before = metrics.connections_limited.labels("user")._value.get()
    async with world.at_home(connects_per_minute=3):
        for _ in range(3):
            async with world.student():
                pass
        async with world.connected() as client:
            error = await client.hello()
            assert (error["code"], error["retry_after_ms"]) == ("rate_limited", 20_000)
            _, closed = await client.until_closed()
            assert closed == 1013
        async with world.student("ben") as ben:
            assert ben.welcome["type"] == "welcome"
        await trio.sleep(20)
        async with world.student() as again:
            assert again.welcome["type"] == "welcome"
    assert metrics.connections_limited.labels("user")._value.get() == before + 1


async def test_a_token_of_the_session_alone_counts_as_its_user() -> None:
    world = World(says(), session=config.Session(require_jwt_on_resume=False))
    async with world.at_home(connects_per_minute=2):
        async with world.student() as student:
            token = student.welcome["resume"]
        async with world.connected() as client:
            await client.send(type="hello", token="x", resume=token, last_seq=0)
            token = (await client.receive())["resume"]
            await client.send(type="ack", seq=0)
        async with world.connected() as client:
            await client.send(type="hello", token="x", resume=token, last_seq=0)
            assert (await client.receive())["code"] == "rate_limited"
        await trio.sleep(30)
        async with world.connected() as client:
            await client.send(type="hello", token="x", resume=token, last_seq=0)
            assert (await client.receive())["type"] == "welcome", "the token is honoured still"


async def test_cancelled_while_it_waits_an_allowance_has_counted_once() -> None:
    throttle = open_throttle(10)
    n = 0
    while True:
        n += 1
        allowance = Allowance(throttle, lambda _: None)
        allowance.key = key = f"user {n}"
        await allowance.spend(10 * BURST_S)
        began = trio.current_time()
        with cancel_at_step(n) as scope:
            await allowance.spend(10)
        now = trio.current_time()
        assert throttle.full_in(key, now) == pytest.approx(BURST_S + 1 - (now - began))
        if not scope.cancel_called:
            assert now - began == pytest.approx(1)
            return
