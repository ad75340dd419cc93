"""The outbox: numbering, framing, blocking sockets, limits, one owner of the write side."""

from __future__ import annotations

import struct

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
from coach.session.outbox import Outbox, OutboxStream, text_frame


@attrs.define
class ScriptedSocket:
    """Takes `room` bytes, then blocks until more room is given; breaks when told."""

    room: int = 1 << 30
    broken: bool = False
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
        while self.room == 0 and not self.broken:
            self._writable = trio.Event()
            await self._writable.wait()

    def give(self, room: int) -> None:
        self.room += room
        self._writable.set()


def messages(data: bytes | bytearray) -> list[dict[str, object]]:
    """What a client's WebSocket library makes of `data`."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(bytes(data))
    found = []
    for event in client.events():
        if isinstance(event, TextMessage):
            found.append(msgspec.json.decode(event.data))
        elif isinstance(event, CloseConnection):
            found.append({"close": event.code})
    return found


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
        outbox = Outbox(socket, nursery, bytes_max=1000, on_end=ends.append)
        for text in "abc":
            outbox.send(wire.Delta(request="r", text=text))
        got = messages(socket.written)  # no checkpoint since: the calls themselves wrote
    assert [(m["seq"], m["text"]) for m in got] == [(1, "a"), (2, "b"), (3, "c")]
    assert ends == []


async def test_a_blocked_socket_gets_everything_in_order() -> None:
    socket = ScriptedSocket(room=10)
    async with trio.open_nursery() as nursery:
        outbox = Outbox(socket, nursery, bytes_max=100_000, on_end=lambda _: None)
        for index in range(20):
            outbox.send(wire.Delta(request="r", text=str(index)))
            if index % 3 == 0:
                outbox.write(b"\x8a\x00")  # the library's pong, in the middle of it
        for _ in range(400):
            socket.give(7)
            await wait_all_tasks_blocked()
    assert [m["text"] for m in messages(socket.written)] == [str(i) for i in range(20)]
    assert outbox.pending == 0


async def test_a_slow_reader_is_reported_once_and_keeps_no_memory() -> None:
    socket, ends = ScriptedSocket(room=0), list[str]()
    async with trio.open_nursery() as nursery:
        outbox = Outbox(socket, nursery, bytes_max=200, on_end=ends.append)
        for _ in range(50):
            outbox.send(wire.Delta(request="r", text="x" * 40))
        assert ends == ["slow_reader"]
        assert outbox.closed
        assert outbox.pending == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("blocked_first", [False, True])
async def test_a_broken_socket_is_reported_once(blocked_first: bool) -> None:
    socket, ends = ScriptedSocket(room=0 if blocked_first else 1 << 20), list[str]()
    async with trio.open_nursery() as nursery:
        outbox = Outbox(socket, nursery, bytes_max=10_000, on_end=ends.append)
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
        outbox = Outbox(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
        stream = OutboxStream(trio.testing.memory_stream_pair()[0], outbox)
        await stream.send_all(b"\x88\x02" + struct.pack("!H", 1009))
        outbox.send(wire.Draining())  # nothing may follow a close frame
    error, close = messages(socket.written)
    assert (error["type"], error["code"], error["seq"]) == ("error", "too_large", 1)
    assert close == {"close": 1009}


async def test_closing_waits_for_the_last_bytes_but_not_for_ever() -> None:
    for room, expected_s in ((1 << 20, 0.0), (0, 1.0)):
        socket = ScriptedSocket(room=0)
        async with trio.open_nursery() as nursery:
            outbox = Outbox(socket, nursery, bytes_max=10_000, on_end=lambda _: None)
            stream = OutboxStream(trio.testing.memory_stream_pair()[0], outbox)
            outbox.send(wire.Draining())
            socket.give(room)
            began = trio.current_time()
            await stream.aclose()
            assert trio.current_time() - began == expected_s
            nursery.cancel_scope.cancel()
        assert bool(messages(socket.written)) == (room > 0)
