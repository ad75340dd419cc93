"""A student's connection: from the WebSocket handshake to the close frame.

`serve_session` takes over an upgraded connection and returns when it has ended. The session, with
all that it has caused, is another matter: it lives in the worker's nursery (registry.py), a link is
attached to it, and another may follow.

Reading never waits: the session handles every message synchronously, and what takes time becomes a
task of the session. So the WebSocket library's reader always drains, pings are answered, and a
`cancel` is heard while the provider talks.

Memory bound of a link: the writer's `outbox_bytes_max` and two incoming messages.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Never, Protocol, cast, final

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from ..errors import BadMessage, CoachError, Overloaded, RateLimited, Unauthenticated
from ..store import RedisError
from . import wire
from .allowance import Allowance
from .outbox import Outbox
from .wire import error_message
from .writer import KernelSocket, Socket, Writer, WriterStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsproto.handshake import H11Handshake

    from .auth import Identity
    from .registry import Sessions
    from .services import Services
    from .session import Session

log = structlog.get_logger()

CLOSE_S_MAX: Final = 1.0
"""How long a closed connection may take to end at the student's side, too."""
GOODBYES: Final = frozenset({1000, 1001})
"""Close codes of a client that does not come back: it has said so, or its page was left."""
FAULTS: Final = frozenset({1002, 1007, 1009})
"""With which the library closes by itself: the client has broken the protocol."""


class _Established:
    """In place of wsproto's handshake once that is over: it keeps the request and its parser.

    They are 4 KB of each student's connection, and wsproto (1.3) only asks it for more events.
    """

    def events(self) -> Iterator[Never]:
        return iter(())


_ESTABLISHED: Final = cast("H11Handshake", _Established())


class Connection(Protocol):
    """An upgraded connection whose request head is still to be read from the stream."""

    @property
    def stream(self) -> trio.abc.Stream:
        """The student's end."""
        ...

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below `stream`."""
        ...

    @property
    def tls(self) -> Socket | None:
        """Where what is written is encrypted on its way to the socket; None: nowhere."""
        ...


async def serve_session(connection: Connection, services: Services, sessions: Sessions) -> None:
    """Serve one student's connection from the WebSocket handshake to its end.

    Never raises for what the peer does. The stream is closed on return. Cancelling it closes the
    socket without ceremony; the session is detached, as after a lost connection.
    """
    link: Link | None = None
    try:
        async with trio.open_nursery() as nursery:
            link = Link(connection, nursery, services, sessions)
            with suppress(ConnectionClosed):
                await link.run()
            await link.wait_ended()
            nursery.cancel_scope.cancel("the connection has ended")
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except* LocalProtocolError:
        pass  # the library wanted to answer a frame that came after our close frame
    except* Exception:
        log.exception("session_failed")
    finally:
        await trio.aclose_forcefully(connection.stream)
        if link is not None:
            link.release()


@final
class Link:
    """One connection of one student."""

    def __init__(
        self,
        connection: Connection,
        nursery: trio.Nursery,
        services: Services,
        sessions: Sessions,
    ) -> None:
        """Take over `connection`; tasks run in `nursery`."""
        self.writer = Writer(
            connection.tls or KernelSocket(connection.socket),
            nursery,
            bytes_max=services.settings.server.outbox_bytes_max,
            on_end=self._broken,
        )
        self._outbox = Outbox(bytes_max=0)  # until there is a session, which has its own
        self._outbox.connect(self.writer)
        self._allowance = Allowance(sessions.throttle, self._held_up)
        self._stream = WriterStream(
            connection.stream, self.writer, self._outbox, self._allowance, self._too_many_pieces
        )
        self._nursery = nursery
        self._services = services
        self._sessions = sessions
        self._websocket: WebSocketConnection | None = None  # from the accepted handshake on
        self._session: Session | None = None  # from the welcome on
        self._is_closed_by_us = False  # by `close`
        self._is_for_good = False  # whatever has ended it, nobody is to come back
        self.expires_at = math.inf
        """When the token that was shown runs out: wall clock, seconds since the epoch."""

    @property
    def received_at(self) -> float:
        """When the student's side was last heard, on trio's clock."""
        return self._stream.received_at

    async def run(self) -> None:
        """Shake hands, expect `hello`, then hand messages on until the connection ends.

        Raises:
          ConnectionClosed: the ordinary end.
        """
        server = self._services.settings.server
        with trio.move_on_after(server.head_s_max):
            self._websocket = self._stream.websocket = await self._shake_hands()
        if self._websocket is None:
            return
        self._session = session = await self._greet(self._websocket, server.hello_s_max)
        if session is None:
            return
        try:
            while (text := await self._receive(self._websocket)) is not None:
                await self._allowance.spend()
                session.hear(text)
                if session.bad_messages > server.bad_messages_max:
                    await self._end(1008, "too many bad messages")
                    return
        except ConnectionClosed as closed:
            # closed by us, the library reports 1000, whatever was sent
            if closed.reason is not None and not self._is_closed_by_us:
                self._is_for_good |= closed.reason.code in GOODBYES | FAULTS
            raise
        finally:
            self._detach()

    async def _shake_hands(self) -> WebSocketConnection:
        server = self._services.settings.server
        request = await wrap_server_stream(
            self._nursery, self._stream, max_message_size=server.message_bytes_max
        )
        offered = wire.SUBPROTOCOL in request.proposed_subprotocols
        websocket = await request.accept(subprotocol=wire.SUBPROTOCOL if offered else None)
        websocket._wsproto.handshake = _ESTABLISHED  # noqa: SLF001  pinned by a test
        return websocket

    def _detach(self) -> None:
        if self._session is not None:
            self._session.detach(self, is_for_good=self._is_for_good)

    async def _receive(self, websocket: WebSocketConnection) -> str | None:
        """The next text message; None after the connection was closed for a binary one."""
        message = await websocket.get_message()
        if isinstance(message, str):
            return message
        self._stream.outbox.send(error_message(BadMessage("coach.v1 has no binary messages")))
        await self._end(1003, "binary message")
        return None

    # -- hello ---------------------------------------------------------------------------------

    async def _greet(self, websocket: WebSocketConnection, hello_s_max: float) -> Session | None:
        """Expect `hello`; answer `welcome`, or an error and the close code that fits."""
        text: str | None = None
        try:
            with trio.move_on_after(hello_s_max) as waiting:
                text = await self._receive(websocket)
                if text is None:
                    return None
            if waiting.cancelled_caught or text is None:
                raise Unauthenticated(f"no hello within {hello_s_max:g} s")
            hello = wire.decode(text)
            if not isinstance(hello, wire.Hello):
                raise Unauthenticated("say hello first")
            return await self._answer(hello)
        except CoachError as error:
            self._outbox.send(error_message(error))
            code = 1013 if isinstance(error, Overloaded | RateLimited) else 1008
            await self._end(code, error.code)
            return None

    async def _answer(self, hello: wire.Hello) -> Session:
        """The session that goes on, or a new one, with this link attached.

        Raises:
          CoachError: there is none for this client, or not now.
        """
        identity = await self._identity(hello)
        if identity is not None:
            self._sessions.arrive(identity)
        session = None
        if hello.resume is not None:
            try:
                session = await self._sessions.resume(hello.resume, identity, hello.last_seq or 0)
            except RedisError as error:
                log.warning("resume_without_redis", error=str(error))
                raise Overloaded("the shared store is away", retry_after_s=2.0) from error
        if session is None:
            if identity is None:
                raise Unauthenticated("this session is over: say hello with a token")
            session = await self._sessions.begin(identity)
        elif identity is None:
            self._sessions.arrive(session.identity)
        session.attach(self, hello.last_seq or 0)
        self._allowance.key = session.identity.org, session.identity.user
        if identity is not None:
            self.expires_at = identity.expires_at
        self._stream.outbox = session.outbox
        self._services.costs.watch(session.identity.org)
        return session

    async def _identity(self, hello: wire.Hello) -> Identity | None:
        """Whose token it is; None: the resume token alone has to do."""
        try:
            return await self._services.authority.identify(hello.token)
        except Unauthenticated:
            if hello.resume is None or self._services.settings.session.require_jwt_on_resume:
                raise
            return None

    def renew(self, session: Session, hello: wire.Hello) -> None:
        """The student shows a newer token on the same connection. Not a checkpoint.

        Raises:
          BadMessage: it asks for another session.
        """
        if hello.resume is not None:
            raise BadMessage("hello was said already: this connection has its session")
        self._nursery.start_soon(self._renew, session, hello)

    async def _renew(self, session: Session, hello: wire.Hello) -> None:
        """Answers only if the token is refused; then the one before holds as long as it did."""
        try:
            identity = await self._services.authority.identify(hello.token)
            who = session.identity
            if (identity.user, identity.org) != (who.user, who.org):
                raise Unauthenticated("this token is somebody else's")
        except Unauthenticated as error:
            session.bad_messages += 1
            session.outbox.send(error_message(error))
        else:
            self.expires_at = identity.expires_at

    def expire(self) -> None:
        """The token has run out. With a newer one the session goes on. Not a checkpoint."""
        self._stream.outbox.send(
            error_message(Unauthenticated("your token has expired: say hello with a new one"))
        )
        self.leave(1008, "the token has expired")

    # -- too much ------------------------------------------------------------------------------

    def _held_up(self, full_s: float) -> None:
        """It is read more slowly from now on: say so, once until it may send freely again."""
        if self._session is None:
            return
        rate = self._services.settings.server.messages_per_s
        self._session.outbox.send(
            error_message(
                RateLimited(
                    f"more than {rate} messages a second: nothing is lost, but read more slowly",
                    retry_after_s=full_s,
                )
            )
        )

    def _too_many_pieces(self) -> None:
        self._nursery.start_soon(self._end, 1009, "too many pieces")

    # -- the end -------------------------------------------------------------------------------

    async def _end(self, code: int, reason: str) -> None:
        """Close for a reason that lies with the client: its session ends, too."""
        self._is_for_good = True
        await self.close(code, reason)

    async def close(self, code: int, reason: str) -> None:
        """Close with a close frame, within `CLOSE_S_MAX`."""
        assert self._websocket is not None
        self._is_closed_by_us = True
        with trio.move_on_after(CLOSE_S_MAX):
            await self._websocket.aclose(code, reason)

    async def wait_ended(self) -> None:
        """Give a closed connection a moment to end at the student's side.

        A socket closed over unread bytes sends a reset, and the peer may then lose the close
        frame, and the error that explains it.
        """
        with trio.move_on_after(CLOSE_S_MAX):
            await self._stream.ended.wait()

    def leave(self, code: int, reason: str) -> None:
        """Close soon, from outside. Not a checkpoint."""
        self._nursery.start_soon(self._leave, code, reason)

    async def _leave(self, code: int, reason: str) -> None:
        await self.close(code, reason)
        self._nursery.cancel_scope.cancel(reason)

    def cut(self, reason: str) -> None:
        """End at once, without a close frame. Not a checkpoint."""
        log.info("link_cut", reason=reason)
        self.writer.abandon()
        self._detach()
        self._nursery.cancel_scope.cancel(reason)

    def release(self) -> None:
        """It has ended, with all its tasks: let go of its parts. Not a checkpoint.

        They refer to it, and would stay until the garbage collector looks for them: after hours,
        where they have been there for hours, and all students wait meanwhile.
        """
        self.writer.abandon()
        self._stream.websocket = None
        self._websocket = None
        del self.writer, self._outbox, self._stream, self._allowance

    def _broken(self, reason: str) -> None:
        """Nothing more can be written: the writer says so."""
        log.info("link_broken", reason=reason)
        self._detach()
        if reason == "lost":
            self._nursery.cancel_scope.cancel(reason)
        else:
            self._nursery.start_soon(self._let_go)

    async def _let_go(self) -> None:
        """A moment for a slow reader to find the close frame at the end of what waits."""
        await self.writer.flush()
        self._nursery.cancel_scope.cancel("slow_reader")
