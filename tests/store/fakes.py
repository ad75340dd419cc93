"""A Redis that runs on the mock clock: answers ECHO, and fails the way it is told to."""

from __future__ import annotations

import hiredis
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from coach.store.errors import RedisConnectionError
from coach.store.wire import NO_REPLY, Wire

_Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class FakeServer:
    """Accepts one connection after another, inside `nursery`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._streams: list[_Stream] = []
        self.ran: list[bytes] = []
        """What arrived whole, and so was run; answered or not."""
        self.accepts = True
        self.answers = True
        self.answer_s = 0.0

    async def dial(self) -> Wire:
        await trio.lowlevel.checkpoint()
        if not self.accepts:
            raise RedisConnectionError("refused")
        ours, theirs = memory_stream_pair()
        self._streams.append(theirs)
        self._nursery.start_soon(self._serve, theirs)

        def close() -> None:
            ours.send_stream.close()
            ours.receive_stream.close()

        return Wire(ours, close=close, has_input=lambda: False)

    def cut(self) -> None:
        """End every connection, as kill -9 does."""
        for stream in self._streams:
            stream.send_stream.close()
            stream.receive_stream.close()
        self._streams.clear()

    async def _serve(self, stream: _Stream) -> None:
        reader = hiredis.Reader(notEnoughData=NO_REPLY)
        try:
            async for data in stream:
                reader.feed(bytes(data))
                while (command := reader.gets()) is not NO_REPLY:
                    self.ran.append(command[1])
                    if self.answer_s:
                        await trio.sleep(self.answer_s)
                    if self.answers:
                        await stream.send_all(b"$%d\r\n%b\r\n" % (len(command[1]), command[1]))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
