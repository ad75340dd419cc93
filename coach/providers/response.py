"""A response as httpx wants it: its body is kept until it is asked for.

Memory: what is kept is not given back to the stream's window, which is http2.STREAM_WINDOW.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import final

import httpx

from .call import Call
from .exchange import Header, StreamError


@final
class Collector:
    """A receiver that keeps the body, and says how much of it was taken."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Sequence[Header] = ()
        self.on_arrival: Callable[[], None] = lambda: None
        self._parts: list[bytes] = []

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""
        self.status, self.headers = status, headers

    def on_data(self, data: bytes) -> None:
        """More of the body."""
        self._parts.append(data)
        self.on_arrival()

    def take(self) -> bytes:
        """All that is there; may be nothing."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


@final
class ResponseBody(httpx.AsyncByteStream):
    """The body of a response whose head is there."""

    def __init__(self, call: Call, receiver: Collector, request: httpx.Request) -> None:
        self._call = call
        self._receiver = receiver
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it comes.

        Raises:
          httpx.ReadTimeout, RemoteProtocolError: it never will be whole.
        """
        call = self._call
        while True:
            if data := self._receiver.take():
                call.consumed(len(data))
                yield data
            elif call.ended:
                break
            else:
                await call.wait_change()
        try:
            await call.wait_end()
        except StreamError as error:
            raise as_httpx_error(error, self._request) from error

    async def aclose(self) -> None:
        """Give up what was not read."""
        self._call.close()


def as_httpx_error(error: StreamError, request: httpx.Request) -> httpx.TransportError:
    """In httpx's words."""
    kinds: dict[str, type[httpx.TransportError]] = {
        "unreachable": httpx.ConnectError,
        "stalled": httpx.ReadTimeout,
        "cut": httpx.RemoteProtocolError,
    }
    return kinds[error.kind](str(error), request=request)
