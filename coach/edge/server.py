"""A connection's task: reads each request's head, and hands the connection to who serves it.

`Edge` takes the place of hypercorn's own `TCPServer`. Three things are different:

* WebSockets on `/ws` go to `app.serve_websocket` before hypercorn sees a byte, also when they are
  asked for by a later request of a connection that is kept alive, as proxies do which share their
  connections between clients. So the edge sees every head, not the first alone. It does not
  answer HTTP with `Connection: close` instead: a page is a dozen requests, and a proxy's pool
  would be worth nothing.
* hypercorn gets one request at a time, framed by the same parser that hypercorn uses, and the next
  head is looked at only once the answer is complete: a pipelined upgrade waits for its turn, and
  bytes behind a request's end reach nobody. Heads are handed on in canonical form. The price is
  that plain HTTP is parsed twice, some 50 µs a request; no token of feedback comes this way.
* What goes wrong in hypercorn ends that connection alone. (0.18: one stray byte behind an upgrade
  raised out of the connection's nursery and ended the worker.)

Memory of a connection that waits for its first byte: a task and an h11 parser, some 8 KiB.
"""

from __future__ import annotations

import http
import math
import ssl
from collections.abc import Mapping
from typing import Final, final

import attrs
import hypercorn.trio.run
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, LifespanState
from hypercorn.typing import Event as HypercornEvent

from .. import config as settings
from ..errors import first_error
from ..ops import metrics
from .addresses import Addresses, Crowded
from .doors import RETRY_AFTER_S, Doors
from .framing import Head, Refusal, Requests, destination
from .tls import SpeaksPlainHttp, TlsStream

log = structlog.get_logger()

Stream = trio.SocketStream | TlsStream | trio.SSLStream[trio.SocketStream]
"""hypercorn's own TLS (`--certfile`) is for HTTP alone."""

RECEIVE_BYTES: Final = 65_536
LAST_CALL_S: Final = 0.5
"""From shutdown until a connection that waits for a request is closed: one may be on its way, to
be answered with `Connection: close`. It would be lost, and it is this worker that accepted it."""
FULL: Final = "this server is full: try again soon"
CROWDED: Final = "too many connections from your address: try again soon"
SOON_S: Final = 0.05
"""Within which nearly all send their request: to watch for the shutdown meanwhile costs 0.1 ms."""
LINGER_S_MAX: Final = 1.0
"""How long a refused client has to stop sending: a socket closed over unread bytes is reset, and
the client may then lose the answer that explains it (RFC 9112 section 9.6)."""


def install() -> None:
    """Put the edge into hypercorn's Trio server; it is looked up there for each worker's start."""
    hypercorn.trio.run.TCPServer = Edge  # type: ignore[attr-defined]  # not exported, pinned by a test


@final
class Replay(trio.abc.HalfCloseableStream):
    """A socket's stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: trio.SocketStream | TlsStream) -> None:
        """Give `head` again before what `stream` still brings."""
        self._head = head
        self._stream = stream
        self.socket = stream.socket
        self.tls = stream if isinstance(stream, TlsStream) else None

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive the replayed bytes, then from the socket."""
        if not self._head:
            return await self._stream.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        data = self._head[:max_bytes]
        self._head = self._head[len(data) :]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send on the socket."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the socket."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Half-close the socket."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()


@final
@attrs.frozen(kw_only=True)
class EdgeConnection:
    """A connection whose client asks for a WebSocket; the one who gets it closes it."""

    stream: Replay
    """The client's end; it begins with the upgrade request."""
    path: bytes
    """The target without its query."""
    headers: Mapping[bytes, bytes]
    """Of the upgrade request, by lower-case name; repeated ones are joined by commas."""
    terminated: HypercornEvent
    """Set once the worker shuts down."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below `stream`."""
        return self.stream.socket

    @property
    def tls(self) -> TlsStream | None:
        """Where what is written is encrypted; None: the connection is plain."""
        return self.stream.tls

    async def refuse(
        self, status: int, message: str, *, retry_after_s: float | None = None
    ) -> None:
        """Answer the upgrade request with an HTTP error, and close. Takes up to a second."""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if retry_after_s is not None:
            headers = ((b"retry-after", b"%d" % max(1, round(retry_after_s))),)
        await _refuse(self.stream, Refusal(status, message, headers=headers))


class Edge(TCPServer):
    """Serves one connection; hypercorn makes one for each that it accepts."""

    stream: Stream  # type: ignore[assignment]  # hypercorn's annotation knows TLS only

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        stream: Stream,
    ) -> None:
        """Made by hypercorn.

        Limits are those of `app.settings.server` where the application has settings, else the
        defaults; how many may be in at once is what `app.doors` says, and how many of one address
        what `app.addresses` says, where it has them.
        """
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]
        self._application = getattr(app, "app", None)
        self._limits = _limits(self._application)
        self._doors: Doors | None = getattr(self._application, "doors", None)
        self._addresses: Addresses | None = getattr(self._application, "addresses", None)
        self._address: str | None = None  # the peer's; None: a proxy's, or it is not known
        self._tls: ssl.SSLContext | None = getattr(self._application, "tls", None)
        self._requests = Requests(head_bytes_max=self._limits.head_bytes_max)
        self._head: Head | None = None  # the request that hypercorn is to serve next
        self._upgrade: Head | None = None  # the upgrade that has ended hypercorn's part
        self._answered = trio.Event()  # hypercorn is done with the present request
        self._over = False  # hypercorn has closed the connection, or the client has no more to say
        self._reading: trio.CancelScope | None = None  # around a read while an answer is awaited

    async def run(self) -> None:
        """Serve the connection to its end. Raises nothing but Cancelled."""
        doors = self._doors
        if doors is None:
            await self._run()
        elif doors.enter():
            try:
                await self._run_counted(doors)
            finally:
                doors.leave()
        else:
            metrics.connections_refused.inc()
            await self._turn_away(doors, _later(503, FULL, RETRY_AFTER_S))

    async def _run_counted(self, doors: Doors) -> None:
        if self._addresses is not None:
            self._address = self._addresses.of_peer(_peer(self.stream))
        try:
            with _Counted(self._addresses, self._address):
                await self._run()
        except Crowded as crowded:
            await self._turn_away(doors, _crowded(crowded))

    async def _turn_away(self, doors: Doors, refusal: Refusal) -> None:
        """Answer before anything is read, or close where too many are being answered.

        Over TLS an answer would cost a handshake: there the connection is closed.
        """
        is_plain = self._tls is None and not isinstance(self.stream, trio.SSLStream)
        if not (is_plain and doors.begin_refusal()):
            await trio.aclose_forcefully(self.stream)
            return
        try:
            await _refuse(self.stream, refusal)
        finally:
            doors.end_refusal()

    async def _run(self) -> None:
        try:
            await self._serve()
            if self._upgrade is not None:
                await self._serve_websocket()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except* Exception as group:
            log.error("connection_failed", error=f"{first_error(group)!r:.200}")

    async def _serve(self) -> None:
        deadline = trio.current_time() + self._limits.head_s_max
        if isinstance(self.stream, trio.SSLStream):
            if not await self._shake_hands(self.stream):
                return
        elif self._tls is not None and not await self._begin_tls(self.stream, self._tls, deadline):
            return
        try:
            head = await self._next_head(first_by=deadline)
            if head is None:
                return
            if destination(head) == "websocket":
                self._upgrade = head
        except Refusal as refusal:
            await _refuse(self.stream, refusal)
            return
        hear_of = getattr(self._application, "hear_of_shutdown", None)
        if hear_of is not None:
            hear_of(self.context.terminated)
        if self._upgrade is None:
            self._head = head
            await super().run()

    async def _shake_hands(self, stream: trio.SSLStream[trio.SocketStream]) -> bool:
        """Begin TLS; False where the connection is over, also because HTTP/2 has served it."""
        with trio.move_on_after(self.config.ssl_handshake_timeout) as timer:
            await stream.do_handshake()
        if timer.cancelled_caught:
            return False
        if stream.selected_alpn_protocol() == "h2":
            await super().run()
            return False
        return True

    async def _begin_tls(self, stream: Stream, context: ssl.SSLContext, deadline: float) -> bool:
        """Put TLS on the connection; False where there is none by the `deadline`.

        The time is that of the first head: who is slow with both has no more of it.
        """
        assert isinstance(stream, trio.SocketStream)
        self.stream = tls = TlsStream(stream, context)
        try:
            with trio.move_on_at(deadline):
                await tls.do_handshake()
                return True
        except SpeaksPlainHttp:
            await _refuse(stream, Refusal(400, "this port speaks HTTPS"))
        except trio.BrokenResourceError as error:
            log.debug("tls_handshake_failed", error=str(error))
        return False

    # -- requests --------------------------------------------------------------------------------

    async def _next_head(self, *, first_by: float | None = None) -> Head | None:
        """The next request's head; None when the client has nothing more to say.

        Args:
          first_by: it is the connection's first, and to be complete by then; else it has
            `server.head_s_max` from its first byte on.

        Raises:
          Refusal: it is malformed, too large, or not complete in time.
        """
        deadline = trio.current_time() + self._limits.head_s_max if first_by is None else first_by
        if not self._requests:
            if first_by is not None:
                data = await self._first_bytes(deadline)
            else:
                # hypercorn's idle task closes the stream when it is kept alive for nothing
                data = await self.stream.receive_some(RECEIVE_BYTES)
                deadline = trio.current_time() + self._limits.head_s_max
            if not data:
                return None
            self._requests.receive_data(data)
        await self.idle_task.stop()
        with trio.move_on_at(deadline):
            while (head := self._requests.next_head()) is None:
                data = await self.stream.receive_some(RECEIVE_BYTES)
                if not data:
                    return None
                self._requests.receive_data(data)
            return head
        raise Refusal(408, "the request's head took too long")

    async def _first_bytes(self, deadline: float) -> bytes | bytearray:
        """What a new connection sends first; nothing soon after shutdown or after the deadline.

        Browsers open connections ahead of need: such a one ends without a word.
        """
        with trio.move_on_after(SOON_S):
            return await self.stream.receive_some(RECEIVE_BYTES)
        data: bytes | bytearray = b""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = deadline
            nursery.start_soon(self._cancel_at_shutdown, nursery.cancel_scope)
            data = await self.stream.receive_some(RECEIVE_BYTES)
            nursery.cancel_scope.cancel("the first bytes are there")
        return data

    async def _cancel_at_shutdown(self, scope: trio.CancelScope) -> None:
        await self.context.terminated.wait()
        await trio.sleep(LAST_CALL_S)
        scope.cancel("the worker shuts down")

    # -- hypercorn's part --------------------------------------------------------------------------

    async def _idle_timeout(self) -> None:
        """In place of hypercorn's, which at shutdown closes at once, also over a first request."""
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
            await trio.sleep(LAST_CALL_S)
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _read_data(self) -> None:
        """In place of hypercorn's: hand over one request at a time, until the connection ends."""
        if self._head is None:
            await super()._read_data()  # HTTP/2
            return
        try:
            while self._upgrade is None:
                if not await self._hand_over(self._head):
                    break
                head = await self._next_head()
                if head is None:
                    break
                if destination(head) == "websocket":
                    self._upgrade = head
                self._head = head
        except Refusal as refusal:
            await _refuse(self.stream, refusal)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._over = True
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    async def _hand_over(self, head: Head) -> bool:
        """Give hypercorn a request and wait for its answer; False when the connection is over."""
        self._answered = trio.Event()
        data = head.encode(upgrade=False) + self._requests.read_body()
        while True:
            await self.protocol.handle(RawData(data))
            if self._requests.body_ended:
                break
            received: bytes | bytearray = b""
            with trio.move_on_after(self._limits.send_s_max):
                received = await self.stream.receive_some(RECEIVE_BYTES)
            if not received:
                return False
            self._requests.receive_data(received)
            data = self._requests.read_body()
        while not self._answered.is_set():
            if self._requests:  # pipelined: enough until this one is answered
                await self._answered.wait()
                break
            with trio.CancelScope() as self._reading:
                received = await self.stream.receive_some(RECEIVE_BYTES)
                if not received:
                    return False
                self._requests.receive_data(received)
            self._reading = None
        if self._over:
            return False
        self._requests.start_next()
        return True

    async def protocol_send(self, event: Event) -> None:
        """Send what hypercorn's protocol says, and notice when an answer is complete."""
        if isinstance(event, RawData):
            await self._send(event.data)
            return
        over = isinstance(event, Closed)
        try:
            # Quart cancels the task that sends the answer as soon as it hears that its stream is
            # closed, which is before this: without the shield no idle timer would be set.
            if over or not self._over:  # an idle timer would keep the socket after the client's end
                with trio.CancelScope(shield=not over):
                    await super().protocol_send(event)
        finally:
            self._over = self._over or over
            if over or (isinstance(event, Updated) and event.idle):
                self._answered.set()
                if self._reading is not None:
                    self._reading.cancel("the answer is complete")

    async def _send(self, data: bytes) -> None:
        """Send within `server.send_s_max`, or cut the connection.

        hypercorn shields its sends from cancellation, so that one client which does not read
        holds up the worker's end for ever. Nothing is lost without the shield: a cancelled
        connection is closed.
        """
        async with self.send_lock:
            try:
                with trio.fail_after(self._limits.send_s_max):
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._lost()
            except trio.BusyResourceError:  # hypercorn is about to close, in another task
                await self._lost()
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self._lost()

    async def _lost(self) -> None:
        """Nothing more can be sent: no answer will be complete, and nobody is to wait for one."""
        self._over = True
        self._answered.set()
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        """Close the connection, unless a WebSocket goes on with it."""
        if self._upgrade is None:
            await super()._close()

    # -- the WebSocket -------------------------------------------------------------------------

    async def _serve_websocket(self) -> None:
        serve = getattr(self._application, "serve_websocket", None)
        if serve is None:
            await _refuse(self.stream, Refusal(404, "this application has no WebSocket"))
            return
        if isinstance(self.stream, trio.SSLStream):
            # a session's outbox writes synchronously, which that cannot
            advice = "WebSockets over TLS: coach's own, by server.tls_certificate, or a proxy"
            await _refuse(self.stream, Refusal(501, advice))
            return
        assert self._upgrade is not None
        client: str | None = None  # for whom a proxy asks
        try:
            if self._addresses is not None:
                if self._address is None:
                    client = self._addresses.of_request(self._upgrade)
                asks = self._address or client
                if asks is not None:
                    self._addresses.upgrade(asks, trio.current_time())
            with _Counted(self._addresses, client):
                await serve(self._upgraded(self.stream))
        except Crowded as crowded:
            await _refuse(self.stream, _crowded(crowded))

    def _upgraded(self, stream: trio.SocketStream | TlsStream) -> EdgeConnection:
        """The connection as it goes to who serves WebSockets. Nothing of the request stays here.

        A WebSocket is open for hours, and a request with its parser takes 5 KB.
        """
        head = self._upgrade
        assert head is not None
        rest = self._requests.take_rest()
        self._head = self._upgrade = None
        del self._requests, self._answered, self.send_lock, self.idle_task
        return EdgeConnection(
            stream=Replay(head.encode(upgrade=True) + rest, stream),
            path=head.path,
            headers={name: head.get(name) for name, _ in head.headers},
            terminated=self.context.terminated,
        )


@final
class _Counted:
    """Counts a connection of an address while a block runs: for hours, so it is no generator.

    Entering raises `Crowded` where the address has too many.
    """

    __slots__ = ("_address", "_addresses")

    def __init__(self, addresses: Addresses | None, address: str | None) -> None:
        """Without addresses, or without one, nothing is counted."""
        self._addresses = addresses if address is not None else None
        self._address = address or ""

    def __enter__(self) -> None:
        if self._addresses is not None:
            self._addresses.enter(self._address)

    def __exit__(self, *_: object) -> None:
        if self._addresses is not None:
            self._addresses.leave(self._address)


def _crowded(crowded: Crowded) -> Refusal:
    metrics.connections_limited.labels(crowded.limit).inc()
    return _later(429, CROWDED, crowded.retry_after_s)


def _later(status: int, message: str, after_s: float) -> Refusal:
    return Refusal(status, message, headers=((b"retry-after", b"%d" % math.ceil(after_s)),))


def _peer(stream: Stream) -> str:
    """The peer's address; empty where it has gone, or has none."""
    socket = stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket
    try:
        name = socket.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


def _limits(application: object) -> settings.Server:
    """The application's own limits where it has settings."""
    found = getattr(application, "settings", None)
    return found.server if isinstance(found, settings.Settings) else settings.Server()


async def _refuse(stream: trio.abc.Stream, refusal: Refusal) -> None:
    """Answer with an error and close, in at most `LINGER_S_MAX`. Never raises for the client."""
    body = f"{refusal}\n".encode("ascii", "replace")
    lines = [
        b"HTTP/1.1 %d %b" % (refusal.status, http.HTTPStatus(refusal.status).phrase.encode()),
        b"content-type: text/plain; charset=us-ascii",
        b"content-length: %d" % len(body),
        b"connection: close" + (b", upgrade" if refusal.status == 426 else b""),
        *(b"%b: %b" % header for header in refusal.headers),
    ]
    try:
        with trio.move_on_after(LINGER_S_MAX):
            await stream.send_all(b"\r\n".join([*lines, b"", body]))
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
                while await stream.receive_some(RECEIVE_BYTES):
                    pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)
