"""A small ASGI application behind the edge, for tests of what serves applications.

    GET /            "hello <pid>"
    POST /echo       the body
    GET /big         1 MiB
    GET /slow        answers when `release` is set
    GET /renew       "hello <pid>", and asks `coach serve` for a new worker in the first slot
    GET /raise       the application breaks
    WebSocket /ws    echoes; "close" closes it

With TINY_APP in the environment it misbehaves: `fail:<reason>` refuses to start, `exit` ends the
process while it starts, `hang` never gets ready.

    python -m tests.support.tiny_app    serves it as `coach serve` would, settings from COACH_*
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import hypercorn.trio
import trio
from hypercorn.config import Config
from trio_websocket import ConnectionClosed, wrap_server_stream

from coach import config, control, edge
from coach.errors import ConfigurationError
from coach.supervisor import supervise

CLOSE_S_MAX = 1.0


class TinyApp:
    """See the module."""

    def __init__(self, settings: config.Settings | None = None) -> None:
        self.settings = settings or config.Settings()
        self.release = trio.Event()
        self.requests: list[tuple[str, str]] = []
        self.seen: list[edge.EdgeConnection] = []
        self.disconnects = 0
        self.failed = False
        self.doors: edge.Doors | None = None
        self.addresses: edge.Addresses | None = None
        self.tls: ssl.SSLContext | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert scope["type"] == "http", scope["type"]
        self.requests.append((scope["method"], scope["path"]))
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/raise":
            raise RuntimeError("the application broke")
        if scope["path"] == "/renew":
            control.ask_to_renew("0")
        if scope["path"] == "/slow":
            async with self._until_disconnected(receive):
                await self.release.wait()
        answers = {"/echo": body, "/big": b"x" * 1_048_576}
        answer = answers.get(scope["path"], f"hello {os.getpid()}\n".encode())
        headers = [(b"content-length", b"%d" % len(answer))]
        async with self._until_disconnected(receive):  # as Quart does, also while it answers
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})

    @asynccontextmanager
    async def _until_disconnected(self, receive: Any) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                if (await receive())["type"] == "http.disconnect":
                    self.disconnects += 1
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            self.tls = self.tls or edge.open_context(config.load(None).server)
        except ConfigurationError as error:
            self.failed = True
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        how = os.environ.get("TINY_APP", "")
        if how.startswith("fail:"):
            self.failed, message = True, how.removeprefix("fail:")
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        if how == "exit":
            os._exit(7)
        if how == "hang":
            await trio.sleep_forever()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def serve_websocket(self, connection: edge.EdgeConnection) -> None:
        """Echo until the client or the worker ends it."""
        self.seen.append(connection)
        if connection.headers.get(b"origin") == b"https://elsewhere.example":
            await connection.refuse(403, "not from there")
            return
        try:
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, connection.stream)
                websocket = await request.accept()

                async def leave() -> None:
                    await connection.terminated.wait()
                    with trio.move_on_after(CLOSE_S_MAX):
                        await websocket.aclose(1012, "draining")
                    nursery.cancel_scope.cancel()

                nursery.start_soon(leave)
                while (message := await websocket.get_message()) != "close":
                    await websocket.send_message(message)
                await websocket.aclose()
                nursery.cancel_scope.cancel()
        except* (ConnectionClosed, trio.BrokenResourceError):
            pass


@attrs.frozen
class Served:
    """A running server in this process."""

    port: int
    app: TinyApp
    shutdown: trio.Event

    async def connect(self) -> trio.SocketStream:
        """A connection to it."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def open_server(
    settings: config.Settings | None = None,
    *,
    app: TinyApp | None = None,
    graceful_s: float = 1.0,
    keep_alive_s: float = 5.0,
) -> AsyncIterator[Served]:
    """Serve a `TinyApp` on a free port while the block runs. For `real_time` tests.

    Anything that escapes from a connection and ends the server fails the test.
    """
    edge.install()
    app, shutdown = app or TinyApp(settings), trio.Event()
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    options = Config()
    options.bind = [f"fd://{listener.detach()}"]
    options.backlog = 1024  # a silent client that overflows it would wait for ever
    options.graceful_timeout = graceful_s
    options.keep_alive_timeout = keep_alive_s
    options.loglevel = "CRITICAL"
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                hypercorn.trio.serve,
                app,
                options,
                shutdown_trigger=shutdown.wait,
            )
        )
        yield Served(port, app, shutdown)
        app.release.set()
        shutdown.set()


app = TinyApp()
edge.install()


if __name__ == "__main__":
    trio.run(
        partial(
            supervise,
            config.load(None),
            application="tests.support.tiny_app:app",
            on_ready=partial(print, "serving", flush=True),
        )
    )
