"""The outbox: numbering, framing, blocking sockets, limits, one owner of the write side."""

from __future__ import annotations

import socket as stdlib_socket
import struct
from collections.abc import Callable

import attrs
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from coach.session import wire
from coach.session.allowance import Allowance, open_throttle
from coach.session.outbox import FRAME_BYTES, Outbox, payload_of, text_frame
from coach.session.writer import KernelSocket, Socket, Writer, WriterStream
from tests.support.cancels import cancel_at_step

CLOSE = b"\x88\x02" + struct.pack("!H", 1013)


@attrs.define
class ScriptedSocket:
    """Takes `room` bytes, then blocks until more room is given; breaks when told."""

    room: int = 1 << 30
    broken: bool = False
    owes: bool = False
    written: bytearray = attrs.field(factory=bytearray)
    _writable: trio.Event = attrs.field(factory=trio.Event)

    def write_nowait(self, data: bytes | bytearray) -> int:
        if self.broken:
            raise BrokenPipeError
        taken = min(self.room, len(data))
        self.written += data[:taken]
        self.room -= taken
        return taken

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.room == 0 and not self.broken:
            self._writable = trio.Event()
            await self._writable.wait()

    def give(self, room: int) -> None:
        self.room += room
        self._writable.set()


def messages(data: bytes | bytearray) -> list[dict[str, object]]:
    """What a client's WebSocket library makes of `data`; half a message at its end is none."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(bytes(data))
    found, text = [], ""
    for event in client.events():
        if isinstance(event, TextMessage):
            text += event.data
            if event.message_finished:
                found.append(msgspec.json.decode(text))
                text = ""
        elif isinstance(event, CloseConnection):
            found.append({"close": event.code})
    return found


def connected(
    socket: Socket, nursery: trio.Nursery, *, bytes_max: int, on_end: Callable[[str], None]
) -> tuple[Outbox, Writer]:
    """An outbox and the writer that it is connected to."""
    writer = Writer(socket, nursery, bytes_max=bytes_max, on_end=on_end)
    outbox = Outbox(bytes_max=0)
    outbox.connect(writer)
    return outbox, writer


def stream_of(stream: trio.abc.Stream, writer: Writer, outbox: Outbox) -> WriterStream:
    """The library's stream, of a user who may send what they like."""
    allowance = Allowance(open_throttle(1e6), lambda _: None)
    return WriterStream(stream, writer, outbox, allowance, lambda: None)


@given(st.integers(0, 200_000))
def test_frames_are_rfc_6455_at_any_size(size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(text_frame(b"x" * size))
    assert (
        sum(len(event.data) for event in client.events() if isinstance(event, TextMessage)) == size
    )


async def test_messages_are_numbered_from_one_and_written_at_once() -> None:
    socket, ends = ScriptedSocket(), list[str]()
    async with trio.open_nursery() as nursery:
        outbox, _ = connected(socket, nursery, bytes_max=1000, on_end=ends.append)
        for text in "abc":
            outbox.send(wire.Delta(request="r", text=text))
        got = messages(socket.written)  # no checkpoint since: the calls themselves wrote
    assert [(m["seq"], m["text"]) for m in got] == [(1, "a"), (2, "b"), (3, "c")]
    assert ends == []


async def test_a_blocked_socket_gets_everything_in_order() -> None:
    socket = ScriptedSocket(room=10)
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(socket, nursery, bytes_max=100_000, on_end=lambda _: None)
        for index in range(20):
            outbox.send(wire.Delta(request="r", text=str(index)))
            if index % 3 == 0:
                writer.write(b"\x8a\x00")  # the library's pong, in the middle of it
        for _ in range(400):
            socket.give(7)
            await wait_all_tasks_blocked()
    assert [m["text"] for m in messages(socket.written)] == [str(i) for i in range(20)]
    assert writer.pending == 0


async def test_a_slow_reader_is_reported_once_and_told_behind_what_waits() -> None:
    socket, ends = ScriptedSocket(room=0), list[str]()
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(socket, nursery, bytes_max=200, on_end=ends.append)
        for _ in range(50):
            outbox.send(wire.Delta(request="r", text="x" * 40))
        assert ends == ["slow_reader"]
        assert writer.closed
        assert writer.pending <= 200 + len(CLOSE)
        socket.give(1 << 20)
        await wait_all_tasks_blocked()
        assert messages(socket.written)[-1] == {"close": 1013}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("blocked_first", [False, True])
async def test_a_broken_socket_is_reported_once(blocked_first: bool) -> None:
    socket, ends = ScriptedSocket(room=0 if blocked_first else 1 << 20), list[str]()
    async with trio.open_nursery() as nursery:
        outbox, _ = connected(socket, nursery, bytes_max=10_000, on_end=ends.append)
        if blocked_first:
            outbox.send(wire.Draining())
            await wait_all_tasks_blocked()
        socket.broken = True
        socket.give(0)
        outbox.send(wire.Draining())
        await wait_all_tasks_blocked()
        outbox.send(wire.Draining())
    assert ends == ["lost"]


async def test_too_big_a_message_is_answered_by_a_typed_error_before_the_close_frame() -> None:
    """The library closes with 1009 by itself; the outbox owns the write side and explains it."""
    socket = ScriptedSocket()
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
        stream = stream_of(trio.testing.memory_stream_pair()[0], writer, outbox)
        await stream.send_all(b"\x88\x02" + struct.pack("!H", 1009))
        outbox.send(wire.Draining())  # nothing may follow a close frame
    error, close = messages(socket.written)
    assert (error["type"], error["code"], error["seq"]) == ("error", "too_large", 1)
    assert close == {"close": 1009}


async def test_closing_waits_for_the_last_bytes_but_not_for_ever() -> None:
    for room, expected_s in ((1 << 20, 0.0), (0, 1.0)):
        socket = ScriptedSocket(room=0)
        async with trio.open_nursery() as nursery:
            outbox, writer = connected(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
            stream = stream_of(trio.testing.memory_stream_pair()[0], writer, outbox)
            outbox.send(wire.Draining())
            socket.give(room)
            began = trio.current_time()
            await stream.aclose()
            assert trio.current_time() - began == expected_s
            nursery.cancel_scope.cancel()
        assert bool(messages(socket.written)) == (room > 0)


async def test_what_ends_while_it_ends_is_not_reported_again() -> None:
    """The socket is closed with bytes still waiting: whoever closes it knows."""
    socket, ends = ScriptedSocket(room=0), list[str]()
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(socket, nursery, bytes_max=10_000, on_end=ends.append)
        outbox.send(wire.Draining())
        await wait_all_tasks_blocked()
        writer.abandon()
        socket.broken = True
        socket.give(0)
        await wait_all_tasks_blocked()
    assert ends == []
    assert writer.closed


async def test_nothing_follows_a_close_frame() -> None:
    socket = ScriptedSocket(room=3)
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
        outbox.send(wire.Draining())
        writer.close(b"\x88\x02" + struct.pack("!H", 1012))
        outbox.send(wire.Delta(request="r", text="late"))
        writer.ping()
        socket.give(1000)
        await wait_all_tasks_blocked()
    assert [m.get("type", m.get("close")) for m in messages(socket.written)] == ["draining", 1012]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 300)),
        st.tuples(st.just("pong"), st.integers(0, 125)),
        st.tuples(st.just("room"), st.integers(1, 400)),
        st.tuples(st.just("wait"), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(0, 50))
def test_whatever_the_socket_takes_whole_frames_arrive_in_order(
    steps: list[tuple[str, int]], room: int
) -> None:
    """Or the reader was too slow: then the beginning has arrived, and it was said once."""

    async def play() -> None:
        socket, ends, sent = ScriptedSocket(room=room), list[str](), 0
        async with trio.open_nursery() as nursery:
            outbox, writer = connected(socket, nursery, bytes_max=1000, on_end=ends.append)
            for kind, size in steps:
                if kind == "send":
                    outbox.send(wire.Delta(request="r", text=f"{sent}:{'x' * size}"))
                    sent += 1
                elif kind == "pong":
                    writer.write(bytes((0x8A, size)) + b"p" * size)
                elif kind == "room":
                    socket.give(size)
                else:
                    await wait_all_tasks_blocked()
                assert writer.pending <= 1000 + len(CLOSE)
            socket.give(1 << 20)
            await wait_all_tasks_blocked()
            assert writer.pending == 0
            nursery.cancel_scope.cancel()
        said = [m for m in messages(socket.written) if "close" not in m]
        got = [str(m["text"]).partition(":")[0] for m in said]
        assert got == [str(index) for index in range(len(got))]
        assert len(got) == sent or ends == ["slow_reader"]

    trio.run(play)


async def test_the_rest_of_a_refused_message_is_read_and_dropped() -> None:
    """Else the socket is closed over unread bytes, and the reset overtakes the explanation."""
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(
            ScriptedSocket(), nursery, bytes_max=10_000, on_end=lambda _: None
        )
        student, server = trio.testing.memory_stream_pair()
        stream = stream_of(server, writer, outbox)
        await stream.send_all(b"\x88\x02" + struct.pack("!H", 1009))
        for _ in range(5):
            await student.send_all(b"x" * 1000)
        assert not stream.ended.is_set()
        await student.aclose()
        assert await stream.receive_some() == b""
        assert stream.ended.is_set()


async def test_a_student_who_breaks_off_ends_the_stream() -> None:
    async with trio.open_nursery() as nursery:
        outbox, writer = connected(
            ScriptedSocket(), nursery, bytes_max=10_000, on_end=lambda _: None
        )
        _, server = trio.testing.memory_stream_pair()
        stream = stream_of(server, writer, outbox)
        await server.receive_stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        assert stream.ended.is_set()


async def test_cancelled_at_any_step_closing_has_closed() -> None:
    n = 0
    while True:
        n += 1
        socket = ScriptedSocket(room=3)
        async with trio.open_nursery() as nursery:
            outbox, writer = connected(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
            student, server = trio.testing.memory_stream_pair()
            stream = stream_of(server, writer, outbox)
            outbox.send(wire.Draining())
            with cancel_at_step(n) as scope:
                await stream.aclose()
            assert writer.closed
            assert writer.pending == 0
            assert stream.ended.is_set()
            assert await student.receive_some() == b""
            nursery.cancel_scope.cancel()
        if not scope.cancel_called:
            return


@pytest.mark.real_time
async def test_a_real_socket_takes_all_and_never_another_student_s_descriptor() -> None:
    """After the close its number may be somebody else's: writing must not reach it."""
    near, far = stdlib_socket.socketpair()
    far.setblocking(False)
    ends = list[str]()
    async with trio.open_nursery() as nursery:
        socket = trio.socket.from_stdlib_socket(near)
        outbox, writer = connected(
            KernelSocket(socket), nursery, bytes_max=4_000_000, on_end=ends.append
        )
        for index in range(500):
            outbox.send(wire.Delta(request="r", text=f"{index}:" + "x" * 2000))
        assert writer.pending > 0, "the kernel's buffer was larger than this test thought"
        student = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        received = bytearray()
        while writer.pending or not received.endswith(b'"}'):
            received += await student.receive_some()
        await writer.flush()
        socket.close()
        successor, other = stdlib_socket.socketpair()  # takes the number that has become free
        outbox.send(wire.Draining())
        assert ends == ["lost"]
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        for leftover in (successor, other):
            leftover.close()
        await student.aclose()
    assert [str(m["text"]).partition(":")[0] for m in messages(received)] == [
        str(index) for index in range(500)
    ]


def deltas(*texts: str) -> list[wire.Delta]:
    return [wire.Delta(request="r", text=text) for text in texts]


def texts_after(outbox: Outbox, seq: int) -> list[str] | None:
    frames = outbox.after(seq)
    return None if frames is None else [msgspec.json.decode(payload_of(f))["text"] for f in frames]


@given(st.integers(0, 70_000))
def test_a_frame_gives_back_what_was_framed(size: int) -> None:
    assert payload_of(text_frame(b"x" * size)) == b"x" * size


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(0, 14))
def test_what_was_not_acknowledged_is_kept_and_nothing_else(acks: list[int], seen: int) -> None:
    """An acknowledgement that goes back, or beyond what was said, changes no other message."""
    outbox, acked = Outbox(bytes_max=1 << 16), 0
    for message in deltas(*"abcdefghij"):
        outbox.send(message)
    for seq in acks:
        outbox.ack(seq)
        acked = max(acked, min(seq, 10))
    expected = list("abcdefghij"[seen:]) if acked <= seen <= 10 else None
    assert texts_after(outbox, seen) == expected
    assert (outbox.kept == 0) == (acked == 10)


def test_more_than_may_be_kept_goes_the_oldest_first() -> None:
    outbox = Outbox(bytes_max=4 * (100 + FRAME_BYTES))
    for message in deltas(*"abcdefghij"):
        outbox.send(message)
        assert outbox.kept <= 4 * (100 + FRAME_BYTES)
    assert texts_after(outbox, 0) is None
    assert texts_after(outbox, 7) == ["h", "i", "j"]


async def test_a_snapshot_larger_than_the_buffer_leaves_room_for_what_comes() -> None:
    socket, ends = ScriptedSocket(room=10), list[str]()
    async with trio.open_nursery() as nursery:
        outbox, _ = connected(socket, nursery, bytes_max=200, on_end=ends.append)
        outbox.send(wire.Delta(request="r", text="x" * 5_000))
        outbox.send(wire.Delta(request="r", text="y"))
        socket.give(1 << 20)
        await wait_all_tasks_blocked()
    assert [m["seq"] for m in messages(socket.written)] == [1, 2]
    assert ends == []
