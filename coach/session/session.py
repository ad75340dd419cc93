"""A writer's session: the nursery that owns everything one connected student causes.

Life cycle
    `serve_session` takes over an upgraded connection and returns when it has ended. Turns,
    submissions and a blocked socket's writer are tasks of its nursery: none outlives it.

Reading never waits: every message is handled synchronously, and what takes time becomes a task.
So the WebSocket library's reader always drains, pings are answered, and a `cancel` is heard while
the provider talks.

Memory bound a session: `drafts_max * draft_chars_max` characters of drafts, the outbox's
`outbox_bytes_max`, two incoming messages, `TURNS_MAX` prompts and answers, `HISTORY_TURNS` answers,
`SUBMISSIONS_MAX` essays.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast, final

import attrs
import msgspec
import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from ..errors import BadMessage, CoachError, Conflict, Overloaded, TooLarge, Unauthenticated
from ..grading import Submission
from ..ops import metrics
from ..providers import Interest
from ..store import RedisError
from . import wire
from .draft import DraftText
from .outbox import KernelSocket, Outbox, OutboxStream
from .turn import Interrupted, Turn, TurnCancelled
from .wire import error_message

if TYPE_CHECKING:
    from ..errors import Code
    from ..grading import Grade, SubmissionState
    from ..ops import Flag
    from .auth import Identity
    from .registry import Sessions
    from .services import Services

log = structlog.get_logger()

TURNS_MAX: Final = 8
"""Turns of one session that may be under way, ending ones included."""
SUBMISSIONS_MAX: Final = 8
"""Submissions of one session that may wait for their grade."""
HISTORY_TURNS: Final = 3
CLOSE_S_MAX: Final = 1.0
"""How long a closed connection may take to end at the student's side, too."""
GRADE_POLL_S: Final = 10.0
"""How long a session trusts its mailbox before it asks the queue itself."""


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


async def serve_session(connection: Connection, services: Services, sessions: Sessions) -> None:
    """Serve one student's connection from the WebSocket handshake to its end.

    Never raises for what the peer does. The stream is closed on return. Cancelling it closes the
    socket without ceremony and cancels turns, which settle what they had reserved first.
    """
    try:
        async with trio.open_nursery() as nursery:
            session = Session(connection, nursery, services, sessions)
            with suppress(ConnectionClosed):
                await session.run()
            await session.wait_ended()
            nursery.cancel_scope.cancel("the connection has ended")
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except* LocalProtocolError:
        pass  # the library wanted to answer a frame that came after our close frame
    except* Exception:
        log.exception("session_failed")
    finally:
        await trio.aclose_forcefully(connection.stream)


@final
class Session:
    """One connected student."""

    def __init__(
        self,
        connection: Connection,
        nursery: trio.Nursery,
        services: Services,
        sessions: Sessions,
    ) -> None:
        """Take over `connection`; tasks run in `nursery`."""
        self.id = secrets.token_urlsafe(12)
        self.outbox = Outbox(
            KernelSocket(connection.socket),
            nursery,
            bytes_max=services.settings.server.outbox_bytes_max,
            on_end=self.end,
        )
        self.stream = OutboxStream(connection.stream, self.outbox)
        self._nursery = nursery
        self._services = services
        self._sessions = sessions
        self._websocket: WebSocketConnection | None = None  # from the accepted handshake on
        self._drafts: dict[str, DraftText] = {}
        self._turns: dict[str, Turn] = {}  # by request; ended ones stay until their task is done
        self._history: deque[tuple[str, str]] = deque(maxlen=HISTORY_TURNS)
        self._mail: dict[str, _Pending] = {}  # by submission, while its grade is awaited
        self._interest: Interest | None = None  # from `hello` on
        self._bad_messages = 0
        self._draining = False

    @property
    def turns_running(self) -> int:
        """Turns under way, ending ones included."""
        return len(self._turns)

    # -- the connection ------------------------------------------------------------------------

    async def run(self) -> None:
        """Shake hands, expect `hello`, then handle messages until the connection ends.

        Raises:
          ConnectionClosed: the ordinary end.
        """
        limits = self._services.settings.server
        with trio.move_on_after(limits.head_s_max) as handshake:
            request = await wrap_server_stream(
                self._nursery, self.stream, max_message_size=limits.message_bytes_max
            )
            offered = wire.SUBPROTOCOL in request.proposed_subprotocols
            self._websocket = await request.accept(
                subprotocol=wire.SUBPROTOCOL if offered else None
            )
            self.stream.websocket = self._websocket
        if handshake.cancelled_caught or self._websocket is None:
            return
        identity = await self._greet(self._websocket, limits.hello_s_max)
        if identity is None:
            return
        self._interest = Interest(identity.org)
        try:
            while (text := await self._receive(self._websocket)) is not None:
                self._handle(identity, text)
                if self._bad_messages > limits.bad_messages_max:
                    await self._close(1008, "too many bad messages")
                    return
        finally:
            self._interest.close()
            self._sessions.discard(self, org=identity.org, user=identity.user)

    async def _receive(self, websocket: WebSocketConnection) -> str | None:
        """The next text message; None after the connection was closed for a binary one."""
        message = await websocket.get_message()
        if isinstance(message, str):
            return message
        self.outbox.send(error_message(BadMessage("coach.v1 has no binary messages")))
        await self._close(1003, "binary message")
        return None

    async def _greet(self, websocket: WebSocketConnection, hello_s_max: float) -> Identity | None:
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
            identity = await self._services.authority.identify(hello.token)
            self._sessions.add(self, org=identity.org, user=identity.user)
            self._services.costs.watch(identity.org)
        except CoachError as error:
            self.outbox.send(error_message(error))
            code = 1013 if isinstance(error, Overloaded) else 1008
            await self._close(code, error.code)
            return None
        server = self._services.settings.server
        self.outbox.welcome(
            wire.Welcome(
                session=self.id,
                seq=self.outbox.seq,
                replayed=0,
                limits=wire.Limits(
                    message_bytes=server.message_bytes_max,
                    draft_chars=server.draft_chars_max,
                    drafts=server.drafts_max,
                ),
            )
        )
        return identity

    async def _close(self, code: int, reason: str) -> None:
        assert self._websocket is not None
        with trio.move_on_after(CLOSE_S_MAX):
            await self._websocket.aclose(code, reason)

    async def wait_ended(self) -> None:
        """Give a closed connection a moment to end at the student's side.

        A socket closed over unread bytes sends a reset, and the peer may then lose the close
        frame, and the error that explains it.
        """
        with trio.move_on_after(CLOSE_S_MAX):
            await self.stream.ended.wait()

    def end(self, reason: str) -> None:
        """End the session now, from outside or because nothing more can be written."""
        log.info("session_cut", session=self.id, reason=reason)
        self.outbox.abandon()
        self._nursery.cancel_scope.cancel(reason)

    def drain(self, drain_s: float) -> None:
        """Announce the end; close with 1012 once no turn runs, or after `drain_s`."""
        self._draining = True
        self.outbox.send(wire.Draining())
        self._nursery.start_soon(self._drain, drain_s)

    async def _drain(self, drain_s: float) -> None:
        with trio.move_on_after(drain_s):
            for turn in list(self._turns.values()):
                await turn.done.wait()
        for turn in self._turns.values():
            turn.cancel(Interrupted("this server restarts: ask again"))
        await self._close(1012, "service restart")
        self._nursery.cancel_scope.cancel("drained")

    # -- messages ------------------------------------------------------------------------------

    def _handle(self, identity: Identity, text: str) -> None:
        """Handle one message; what is wrong with it is answered by a typed error."""
        try:
            message = wire.decode(text)
            self._dispatch(identity, message)
        except CoachError as error:
            self.outbox.send(error_message(error))
            if isinstance(error, BadMessage):
                self._bad_messages += 1

    def _dispatch(self, identity: Identity, message: wire.ClientMessage) -> None:
        match message:
            case wire.Edit():
                self._draft(message.draft).edit(message.rev, message.splices)
            case wire.Draft():
                self._draft(message.draft).replace(message.rev, message.text)
            case wire.Feedback():
                self._start_turn(identity, message)
            case wire.Cancel():
                turn = self._turns.get(message.request)
                if turn is not None:
                    turn.cancel(TurnCancelled("cancelled by the client"))
            case wire.Submit():
                self._start_submission(identity, message)
            case wire.Hello():
                raise BadMessage("hello was said already")
            case wire.Ack():
                pass  # nothing is kept for replay on a connection that is up

    def _draft(self, name: str) -> DraftText:
        draft = self._drafts.get(name)
        if draft is None:
            limits = self._services.settings.server
            if len(self._drafts) >= limits.drafts_max:
                raise TooLarge(f"a session may have {limits.drafts_max} drafts")
            draft = self._drafts[name] = DraftText(chars_max=limits.draft_chars_max)
        return draft

    # -- feedback ------------------------------------------------------------------------------

    def _start_turn(self, identity: Identity, message: wire.Feedback) -> None:
        if message.request in self._turns:
            raise Conflict(f"request {message.request} is under way already")
        turn = Turn(
            request=message.request,
            draft=message.draft,
            outbox=self.outbox,
            pacer=self._services.pacer,
            interest=self._interest,
        )
        if self._draining:
            turn.fail(Overloaded("this server is about to restart", retry_after_s=1.0))
            return
        for older in self._turns.values():
            if older.draft == message.draft:
                older.cancel(TurnCancelled("replaced by a newer request"))
        draft = self._drafts.get(message.draft)
        if draft is None or not draft.text.strip():
            turn.fail(BadMessage(f"draft {message.draft} is empty: there is nothing to read"))
        elif len(self._turns) >= TURNS_MAX:
            turn.fail(Overloaded("too many requests at once", retry_after_s=1.0))
        else:
            self._turns[message.request] = turn
            self._nursery.start_soon(self._run_turn, identity, turn, draft.text, message)

    async def _run_turn(
        self, identity: Identity, turn: Turn, text: str, message: wire.Feedback
    ) -> None:
        try:
            with turn.scope:
                await turn.run(
                    self._services,
                    identity,
                    text=text,
                    focus=message.focus,
                    assignment=message.assignment,
                    history=tuple(self._history),
                )
            if turn.outcome == "done":
                self._history.append((message.focus or "", "".join(turn.text)))
        except CoachError as error:
            turn.fail(error)
        except RedisError as error:
            log.warning("turn_without_redis", error=str(error))
            turn.fail(Overloaded("the shared store is away", retry_after_s=2.0))
        except Exception:
            log.exception("turn_failed", session=self.id, request=turn.request)
            turn.fail(CoachError("something went wrong on our side"))
        finally:
            turn.done.set()
            del self._turns[turn.request]

    # -- submissions ---------------------------------------------------------------------------

    def _start_submission(self, identity: Identity, message: wire.Submit) -> None:
        limits = self._services.settings.server
        known = self._mail.get(message.submission)
        if known is not None and known.text == message.text:
            if known.is_taken_in:
                self.outbox.send(wire.Grading(submission=message.submission))
            return
        error: CoachError | None = None
        if known is not None:
            error = Conflict("this submission id is in use for another text")
        elif not message.text.strip():
            error = BadMessage("the essay is empty")
        elif len(message.text) > limits.draft_chars_max:
            error = TooLarge(f"an essay may have {limits.draft_chars_max} characters")
        elif len(self._mail) >= SUBMISSIONS_MAX:
            error = Overloaded("too many submissions wait for their grade", retry_after_s=5.0)
        if error is not None:
            self.outbox.send(error_message(error, submission=message.submission))
            return
        pending = self._mail[message.submission] = _Pending(message.text)
        self._nursery.start_soon(self._run_submission, identity, message, pending)

    async def _run_submission(
        self, identity: Identity, message: wire.Submit, pending: _Pending
    ) -> None:
        answer: wire.Grade | wire.Error
        try:
            answer = await self._submit(identity, message, pending)
        except CoachError as error:
            answer = error_message(error, submission=message.submission)
        except RedisError as error:
            log.warning("submission_without_redis", error=str(error))
            away = Overloaded("the shared store is away: submit again", retry_after_s=2.0)
            answer = error_message(away, submission=message.submission)
        except Exception:
            log.exception("submission_failed", session=self.id, submission=message.submission)
            bug = CoachError("something went wrong on our side: submit again")
            answer = error_message(bug, submission=message.submission)
        finally:
            del self._mail[message.submission]
        self.outbox.send(answer)
        outcome = answer.code if isinstance(answer, wire.Error) else "graded"
        metrics.submissions_total.labels(outcome).inc()

    async def _submit(
        self, identity: Identity, message: wire.Submit, pending: _Pending
    ) -> wire.Grade | wire.Error:
        """Hand the essay in, say `grading`, and wait for what becomes of it."""
        submitted_at = trio.current_time()
        services, off = self._services, tuple(self._services.flags.off_for(identity.user))
        for flag in off:
            metrics.flag_off_submissions_total.labels(flag).inc()
        submission = Submission(
            id=message.submission,
            user=identity.user,
            org=identity.org,
            assignment=message.assignment,
            text=message.text,
            lane="submission",
            worker=services.worker,
            session=self.id,
        )
        state: SubmissionState | None = None
        async with services.limits_of(identity.user).reserve(
            user=identity.user, org=identity.org, tokens=0
        ) as reservation:
            if "queue" not in off or await self._must_queue(submission):
                state = await services.queue.submit(submission)
            reservation.settle(0)
            pending.is_taken_in = True
            self.outbox.send(wire.Grading(submission=submission.id, flags_off=off))
        answer = None if state is None else _answer(state)
        if answer is None:
            if state is None:
                answer = await self._grade_at_once(submission, off)
            else:
                services.costs.check_grading(identity.org)
                answer = await self._await_answer(identity, submission.id, pending)
            if isinstance(answer, wire.Grade):
                metrics.score_seconds.observe(trio.current_time() - submitted_at)
        return answer

    async def _must_queue(self, submission: Submission) -> bool:
        """Whether it goes into the queue all the same: known there, or it waits for money."""
        services = self._services
        if services.costs.is_exhausted(submission.org):
            return True
        return await services.queue.get(submission.org, submission.id) is not None

    async def _grade_at_once(self, submission: Submission, off: tuple[Flag, ...]) -> wire.Grade:
        """Have it graded here and now: for whom the flag `queue` is off."""
        late = wire.Grading(submission=submission.id, delayed=True, flags_off=off)
        grade = await self._services.at_once.grade(
            submission, off=off, on_late=partial(self.outbox.send, late)
        )
        return _graded(submission.id, grade)

    async def _await_answer(
        self, identity: Identity, submission: str, pending: _Pending
    ) -> wire.Grade | wire.Error:
        """Wait for the mail; ask the queue now and then, should the mail be lost.

        Redis may be away meanwhile: the submission is on its disk.
        """
        while True:
            with trio.move_on_after(GRADE_POLL_S):
                await pending.come.wait()
            if pending.answer is not None:
                return pending.answer
            try:
                state = await self._services.queue.get(identity.org, submission)
            except RedisError as error:
                log.warning("grade_waits_for_redis", submission=submission, error=str(error))
                continue
            if state is None:
                raise Interrupted("this submission is not known any more: submit again")
            answer = _answer(state)
            if answer is not None:
                return answer

    def deliver(self, submission: str, answer: wire.Grade | wire.Error | wire.Grading) -> None:
        """Take in the answer to a submission of this session, or news of it. Not a checkpoint."""
        pending = self._mail.get(submission)
        if pending is None:
            return
        if isinstance(answer, wire.Grading):
            if pending.is_taken_in and pending.answer is None:
                self.outbox.send(answer)
        else:
            pending.answer = answer
            pending.come.set()


@attrs.define(eq=False)
class _Pending:
    """A submission whose answer is awaited; it may come before the submission is acknowledged."""

    text: str
    is_taken_in: bool = False
    """The student was told that it is on disk."""
    answer: wire.Grade | wire.Error | None = None
    come: trio.Event = attrs.field(factory=trio.Event)
    """Set with `answer`."""


def _answer(state: SubmissionState) -> wire.Grade | wire.Error | None:
    """What the student is told of a submission that has come to an end; None: it has not."""
    if state.grade is not None:
        return _graded(state.id, state.grade)
    if state.failure is not None:
        return wire.Error(
            code=cast("Code", state.failure.code),
            message=state.failure.message,
            submission=state.id,
        )
    return None


def _graded(submission: str, grade: Grade) -> wire.Grade:
    return msgspec.convert({"submission": submission, **msgspec.to_builtins(grade)}, wire.Grade)
