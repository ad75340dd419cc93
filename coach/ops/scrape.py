"""`/metrics` of a process that serves nothing else: a grader's, for Prometheus.

Web workers share theirs by files (metrics.py); graders may be on machines without any.
"""

from __future__ import annotations

from typing import Final

import h11
import trio

from ..errors import ConfigurationError
from . import metrics

REQUEST_S_MAX: Final = 5.0
"""From a connection until it is closed."""
CONNECTIONS_MAX: Final = 16
"""Served at once; further ones wait in the kernel."""
READ_BYTES: Final = 4_096
NOT_FOUND: Final = b"only GET /metrics is served here\n"


async def serve_metrics(
    host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer `GET /metrics` until cancelled.

    Args:
      host: to listen at.
      port: likewise; 0 for a free one.
      task_status: told the port, once it listens.

    Raises:
      ConfigurationError: it cannot listen there.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigurationError(
            f"grading.metrics: cannot listen at {host}:{port}: {error.strerror or error}"
        ) from error
    limiter = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        async with limiter:
            with trio.move_on_after(REQUEST_S_MAX):
                try:
                    await _answer(stream)
                except (trio.BrokenResourceError, h11.ProtocolError):
                    return

    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(serve, listeners)


async def _answer(stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    asked = (b"", b"")
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(READ_BYTES))
        elif isinstance(event, h11.Request):
            asked = (event.method, event.target.partition(b"?")[0])
        elif isinstance(event, h11.EndOfMessage):
            break
        elif not isinstance(event, h11.Data):
            return  # closed
    if asked == (b"GET", b"/metrics"):
        status, kind, body = 200, metrics.CONTENT_TYPE, metrics.exposition()
    else:
        status, kind, body = 404, "text/plain", NOT_FOUND
    headers = [
        ("content-type", kind),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    sent = connection.send(h11.Response(status_code=status, headers=headers))
    assert sent is not None
    await stream.send_all(sent + body)
