"""A writer's session: everything one student causes, connected or not.

Life cycle
    It is opened by the first `hello` (registry.py) in the worker's nursery, has a nursery of its
    own, and links (link.py) come and go:

    connected --lost--> away --hello--> connected           what was missed is said again
                        away --detached_s, no turn runs--> put away in Redis, ended here
                        away or connected --hello elsewhere--> moved: what still runs here is
                                                               told to the worker that has it now
    connected --goodbye, or breaks the protocol--> ended

    Turns, submissions and what waits for the student's return are tasks of its nursery: none
    outlives it.

Memory bound a session: `drafts_max * draft_chars_max` characters of drafts, the outbox's
`unacked_bytes_max`, `TURNS_MAX` prompts and answers, `HISTORY_TURNS` answers, a conversation for
each draft (at most three times the draft and 8,000 characters), `SUBMISSIONS_MAX` essays.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, final

import attrs
import msgspec
import structlog
import trio

from ..errors import BadMessage, CoachError, Conflict, Overloaded, TooLarge
from ..ops import metrics, traces
from ..providers import Conversation, Interest
from ..store import RedisError
from . import wire
from .draft import DraftText
from .elsewhere import Elsewhere
from .essays import Essays
from .outbox import Outbox, payload_of
from .resume import Handover, Running, State, new_token
from .turn import Interrupted, Turn, TurnCancelled
from .wire import error_message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .auth import Identity
    from .link import Link
    from .registry import Sessions
    from .services import Services

log = structlog.get_logger()

TURNS_MAX: Final = 8
"""Turns of one session that may be under way, ending ones included."""
HISTORY_TURNS: Final = 3
RESTARTS: Final = 1012
"""Close code of a server that goes away."""
STAY_S: Final = 5.0
"""How long a session whose student is away stays here with nothing to do."""
PUT_AWAY_S_MAX: Final = 10.0
"""How long it is tried to put a session away while Redis does not answer."""


_NO_DRAFTS: Final[frozenset[str]] = frozenset()
_READY: Final = trio.Event()
_READY.set()


@final
class Session:
    """One student's session."""

    def __init__(
        self,
        identity: Identity,
        services: Services,
        sessions: Sessions,
        *,
        name: str | None = None,
        epoch: int = 1,
        seq: int = 0,
    ) -> None:
        """A session without a link; nothing runs before `live`.

        Args:
          identity: whose it is.
          services: what it reaches beyond its links.
          sessions: the registry, which is told what changes.
          name: its id; None: a new one.
          epoch: raised by each worker that takes it over.
          seq: the last number it has used.
        """
        self.id = name or secrets.token_urlsafe(12)
        self.identity = identity
        self.epoch = epoch
        self._settings = services.settings.session
        self.is_resumable = self._settings.detached_s > 0
        self.outbox = Outbox(
            bytes_max=self._settings.unacked_bytes_max if self.is_resumable else 0, seq=seq
        )
        self.link: Link | None = None
        """The connection that hears it."""
        self.bad_messages = 0
        self.token = ""  # digest of the token that the client was given last
        self.previous = ""  # of the one before, until the client has spoken on its new link
        self.kept_seq = seq
        """Of what it has said, Redis or the worker that has it now knows it up to here."""
        self.dirty: frozenset[str] = _NO_DRAFTS
        """Drafts that Redis does not have as they are."""
        self.kept_at = trio.current_time()
        """When Redis was told last."""
        self.moved_to: str | None = None
        """The worker that has it now."""
        self.ready = _READY if name is None else trio.Event()
        """Set once a link may be attached: at once, unless another worker hands over."""
        self._services = services
        self._sessions = sessions
        self._nursery: trio.Nursery | None = None  # while it lives
        self._over = trio.Event()
        self._away: trio.CancelScope | None = None  # of what waits for the student's return
        self._drafts: dict[str, DraftText] = {}
        self._turns: dict[str, Turn | Elsewhere] = {}
        # by request; ended ones stay until their task is done
        self._history: tuple[wire.FeedbackCopy, ...] = ()  # the newest `HISTORY_TURNS`
        self._conversations: dict[str, Conversation] = {}  # by draft, of which was asked here
        self.essays = Essays(self, services)
        self._interest = Interest(identity.org)  # of a student who is there: see `detach`
        self._draining = False

    @property
    def turns_running(self) -> int:
        """Turns under way here, ending ones included."""
        return sum(isinstance(turn, Turn) for turn in self._turns.values())

    @property
    def has_work(self) -> bool:
        """Turns, or essays outside the queue, are under way, here or where it was before."""
        return bool(self._turns or self.essays.at_once)

    @property
    def works_here(self) -> bool:
        """Likewise, but here."""
        return self.turns_running > 0 or self.essays.graded_here

    @property
    def is_over(self) -> bool:
        """It has ended, or ends."""
        return self._over.is_set()

    # -- life ----------------------------------------------------------------------------------

    async def live(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own what runs, until `end`. Never raises for what the student does.

        Cancellation: turns settle what they had reserved first.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                try:
                    await self._over.wait()
                finally:
                    self._over.set()  # cancelled, it takes no link and no task any more
                self._nursery.cancel_scope.cancel("the session has ended")
        except* Exception:
            log.exception("session_failed", session=self.id)
        finally:
            self._interest.close()
            self._over.set()
            self._sessions.forget(self)

    def end(self, reason: str) -> None:
        """End it, with all that runs; what is kept of it elsewhere stays. Not a checkpoint."""
        log.debug("session_ended", session=self.id, reason=reason)
        self._over.set()

    def attach(self, link: Link, last_seq: int) -> None:
        """Let `link` hear it from message `last_seq` on. Not a checkpoint.

        A link that it still has is cut: the student has given it up.

        Raises:
          Overloaded: the user has too many links, or the worker drains. Nothing has changed.
        """
        if self.link is None:
            self._sessions.enter(self)
        else:
            before, self.link = self.link, None
            before.cut("the student has connected again")
        if self._away is not None:
            self._away.cancel("the student is back")
            self._away = None
        self.link = link
        self.essays.heard()
        token: str | None = None
        if self.is_resumable:
            token, self.previous, self.token = self._next_token()
        missed = self.outbox.after(last_seq)
        server = self._services.settings.server
        welcome = wire.Welcome(
            session=self.id,
            resume=token,
            seq=self.outbox.seq if missed is None else last_seq,
            replayed=len(missed or ()),
            limits=wire.Limits(
                message_bytes=server.message_bytes_max,
                draft_chars=server.draft_chars_max,
                drafts=server.drafts_max,
            ),
            snapshot=self._snapshot() if missed is None else None,
        )
        self.outbox.attach(link.writer, welcome, after=welcome.seq)
        metrics.replayed_total.inc(len(missed or ()))
        if missed is None:
            metrics.snapshots_total.inc()
            for turn in list(self._turns.values()):
                turn.retell()
        self._sessions.touch(self)

    def _next_token(self) -> tuple[str, str, str]:
        text, digest = new_token(self.id)
        return text, self.token, digest

    def detach(self, link: Link, *, is_for_good: bool) -> None:
        """`link` has ended; `is_for_good`: nobody is to come back. Not a checkpoint."""
        if link is not self.link:
            return
        self.link = None
        self._interest.close()  # nothing is kept warm for somebody who is away
        self.outbox.detach()
        self._sessions.leave(self)
        if is_for_good or not self.is_resumable:
            self.end("the student has left")
            self._sessions.void(self)
        elif not self.is_over:
            self.stay_away()

    def stay_away(self) -> None:
        """Go on without a link, for a while. Not a checkpoint."""
        assert self._nursery is not None
        self._sessions.touch(self)
        self._sessions.went_away(self)
        self._away = trio.CancelScope()
        self._nursery.start_soon(self._wait_for_return, self._away)

    async def _wait_for_return(self, away: trio.CancelScope) -> None:
        """Turns go on for `detached_s`; then they end, and the session is put away in Redis."""
        with away:
            with trio.move_on_after(self._settings.detached_s):
                await self._wait_work()
                await trio.sleep(STAY_S)
            await self.put_away("you were away for too long: ask again")

    async def _wait_work(self) -> None:
        for turn in list(self._turns.values()):
            await turn.done.wait()
        await self.essays.wait_at_once()

    async def put_away(self, reason: str) -> None:
        """End turns, write all down in Redis for whoever goes on with it, and end here.

        Cancelled before Redis has it, the session is as it was, but for its turns.
        """
        for turn in list(self._turns.values()):
            turn.cancel(Interrupted(reason))
        for turn in list(self._turns.values()):
            await turn.done.wait()
        with trio.move_on_after(PUT_AWAY_S_MAX):
            await self._sessions.put_away(self)
        if self.moved_to is None:
            self.end("put away")

    # -- what others are told of it ------------------------------------------------------------

    def state(self) -> State:
        """How it stands."""
        return State(
            seq=self.outbox.seq,
            connected=self.link is not None,
            turns=tuple(
                Running(turn.request, turn.draft)
                for turn in self._turns.values()
                if turn.outcome is None
            ),
            feedback=self._history,
            submissions=self.essays.taken_in,
            at_once=self.essays.at_once,
        )

    def take_dirty(self) -> frozenset[str]:
        """Drafts that Redis does not have as they are; the caller writes them."""
        dirty, self.dirty = self.dirty, _NO_DRAFTS
        return dirty

    def draft_copy(self, name: str) -> wire.DraftCopy:
        """A draft as it is."""
        draft = self._drafts[name]
        return wire.DraftCopy(name, draft.rev, draft.text)

    def _snapshot(self) -> wire.Snapshot:
        state = self.state()
        return wire.Snapshot(
            drafts=tuple(map(self.draft_copy, self._drafts)),
            feedback=state.feedback,
            running=tuple(turn.request for turn in state.turns),
            submissions=self.essays.awaited,
        )

    def newest_since(self, seq: int) -> tuple[list[bytes], bool]:
        """What is kept of what it has said after message `seq`, as JSON; whether that is all."""
        frames, is_whole = self.outbox.newest_after(seq)
        return [payload_of(frame) for frame in frames], is_whole

    def hand_over(self, worker: str, last_seq: int) -> Handover:
        """Give it to another worker; turns go on here until they end. Not a checkpoint.

        What they say from now on is to be told to `worker`; so is, once `turns_running` is 0,
        that nothing more will come.
        """
        frames = self.outbox.after(last_seq)
        handover = Handover(
            state=self.state(),
            drafts=tuple(map(self.draft_copy, self._drafts)),
            said=None if frames is None else tuple(msgspec.Raw(payload_of(f)) for f in frames),
        )
        self.outbox.keep_for_another()
        self.moved_to, self.kept_seq = worker, self.outbox.seq
        if self.link is not None:
            self.link.cut("the student has connected to another worker")
        if self._away is not None:
            self._away.cancel("another worker has the session")
            self._away = None
        self.essays.move()
        if frames is None:
            for turn in list(self._turns.values()):
                turn.retell()
        return handover

    # -- what it takes over --------------------------------------------------------------------

    def restore(
        self,
        state: State,
        drafts: Sequence[wire.DraftCopy],
        said: Sequence[bytes | msgspec.Raw] | None,
        *,
        source: Elsewhere | None,
        last_seq: int,
    ) -> None:
        """Become what another worker had. Not a checkpoint.

        Args:
          state: how it stood there.
          drafts: all of them.
          said: what follows `last_seq`; None: not all of it is known.
          source: where its turns still run; None: they have ended with that worker.
          last_seq: the last message that the client has seen.
        """
        for copy in drafts:
            draft = self._drafts[copy.draft] = self._new_draft()
            draft.replace(copy.rev, copy.text)
        self.dirty |= self._drafts.keys()
        self._remember(*state.feedback)
        if said is None:  # numbers that nobody has used: the client must not take them for known
            self.outbox = Outbox(
                bytes_max=self._settings.unacked_bytes_max, seq=max(state.seq, last_seq) + 1
            )
        for turn in state.turns:
            if source is not None:
                self._turns[turn.request] = attrs.evolve(
                    source,
                    request=turn.request,
                    draft=turn.draft,
                    session=self,
                    is_retold=said is None,
                )
        for message in said or ():
            self._replay(wire.decode_own(message))
        if source is None and said is not None:
            self._interrupt(state, said)
        for name in state.submissions:
            self.essays.adopt(name, is_at_once=source is not None and name in state.at_once)
        self.ready.set()

    def _interrupt(self, state: State, said: Sequence[bytes | msgspec.Raw]) -> None:
        """Say of turns that ended with their worker that they did, unless it was said."""
        ended = {
            message.request
            for message in map(wire.decode_own, said)
            if isinstance(message, wire.Done | wire.Error)
        }
        for turn in state.turns:
            if turn.request not in ended:
                lost = Interrupted("the server was lost: ask again")
                self.outbox.send(error_message(lost, request=turn.request))
                metrics.turns_total.labels(lost.code).inc()

    def relay(self, message: wire.ServerMessage) -> None:
        """Say what the worker that had it before says of turns. Not a checkpoint."""
        turn = self._turns.get(getattr(message, "request", None) or "")
        if isinstance(turn, Elsewhere):  # else it was stopped, or the student has asked anew
            turn.hear(message)
            self.outbox.send(message)
        elif isinstance(message, wire.Grade | wire.Error | wire.Grading):
            self.essays.relay(message)

    def _replay(self, message: wire.ServerMessage) -> None:
        """Say what the worker that had it before has said already."""
        turn = self._turns.get(getattr(message, "request", None) or "")
        if isinstance(turn, Elsewhere):
            turn.hear(message)
        self.outbox.send(message)

    def stop(self, request: str) -> None:
        """End a turn that is told elsewhere, where nobody wants it any more. Not a checkpoint."""
        turn = self._turns.get(request)
        if turn is not None:
            turn.cancel(TurnCancelled("cancelled by the client"))

    def revoke(self) -> None:
        """End it: an operator has made it void, or another worker has it. Not a checkpoint."""
        if self.link is not None:
            self.link.leave(1008, "revoked")
        self.end("revoked")

    def relayed_all(self, feedback: Sequence[wire.FeedbackCopy]) -> None:
        """The worker that had it before has nothing more to say. Not a checkpoint."""
        known = {copy.request for copy in self._history}
        self._remember(*(copy for copy in feedback if copy.request not in known))
        for turn in [turn for turn in self._turns.values() if isinstance(turn, Elsewhere)]:
            turn.fail(Interrupted("the server was lost: ask again"))
        self.essays.relayed_all()

    def drop_elsewhere(self, turn: Elsewhere) -> None:
        """A turn that runs elsewhere has ended."""
        if self._turns.get(turn.request) is turn:
            del self._turns[turn.request]
        self._sessions.touch(self)

    # -- drain ---------------------------------------------------------------------------------

    def drain(self, *, begin_s: float, close_s: float) -> None:
        """Send the student elsewhere: in `begin_s` at the earliest, and within `close_s`.

        Turns have until then to end before the eyes of the student, and go on afterwards.
        """
        self._draining = True
        if self._nursery is not None and self.link is not None:
            self._nursery.start_soon(self._drain, self.link, begin_s, close_s)

    async def _drain(self, link: Link, begin_s: float, close_s: float) -> None:
        with trio.move_on_after(close_s):
            await trio.sleep(begin_s)
            if self.link is link:
                self.outbox.send(wire.Draining())
            await self._wait_work()
        if self.link is not link:
            return
        if not self.is_resumable:
            for turn in self._turns.values():
                turn.cancel(Interrupted("this server restarts: ask again"))
        link.leave(RESTARTS, "service restart")

    def interrupt(self, reason: str) -> None:
        """End what still runs. Not a checkpoint.

        Essays that are graded at once are missed by the worker that has the session now; what has
        not moved is written down with them.
        """
        for turn in self._turns.values():
            if isinstance(turn, Turn):
                turn.cancel(Interrupted(reason))
        if self.moved_to is not None:
            self.essays.interrupt(reason)

    # -- messages ------------------------------------------------------------------------------

    def hear(self, text: str) -> None:
        """Handle one message; what is wrong with it is answered by a typed error."""
        if self.is_over:
            return
        if self.previous:
            self.previous = ""  # the client has the new token
            self._sessions.touch(self)
        try:
            self._dispatch(wire.decode(text))
        except CoachError as error:
            self.outbox.send(error_message(error))
            if isinstance(error, BadMessage):
                self.bad_messages += 1

    def _dispatch(self, message: wire.ClientMessage) -> None:
        match message:
            case wire.Edit():
                self._draft(message.draft).edit(message.rev, message.splices)
                self._edited(message.draft)
            case wire.Draft():
                self._draft(message.draft).replace(message.rev, message.text)
                self._edited(message.draft)
            case wire.Feedback():
                self._start_turn(message)
            case wire.Cancel():
                turn = self._turns.get(message.request)
                if turn is not None:
                    turn.cancel(TurnCancelled("cancelled by the client"))
            case wire.Submit():
                self.essays.submit(message)
            case wire.Hello():
                if self.link is not None:
                    self.link.renew(self, message)
            case wire.Ack():
                self.outbox.ack(message.seq)

    def _draft(self, name: str) -> DraftText:
        draft = self._drafts.get(name)
        if draft is None:
            drafts_max = self._services.settings.server.drafts_max
            if len(self._drafts) >= drafts_max:
                raise TooLarge(f"a session may have {drafts_max} drafts")
            draft = self._drafts[name] = self._new_draft()
        return draft

    def _new_draft(self) -> DraftText:
        return DraftText(chars_max=self._services.settings.server.draft_chars_max)

    def _edited(self, name: str) -> None:
        if name not in self.dirty:
            self.dirty |= {name}
            self._sessions.touch_later(self)

    # -- feedback ------------------------------------------------------------------------------

    def _start_turn(self, message: wire.Feedback) -> None:
        if message.request in self._turns:
            raise Conflict(f"request {message.request} is under way already")
        turn = Turn(
            request=message.request,
            draft=message.draft,
            outbox=self.outbox,
            pacer=self._services.pacer,
            interest=self._interest,
        )
        if self._draining and not self.is_resumable:
            turn.fail(Overloaded("this server is about to restart", retry_after_s=1.0))
            return
        for older in list(self._turns.values()):
            if older.draft == message.draft:
                older.cancel(TurnCancelled("replaced by a newer request"))
        if self._draining:  # where the client goes now it asks again what nobody has answered
            if self.link is not None:
                self.link.leave(RESTARTS, "service restart")
            return
        draft = self._drafts.get(message.draft)
        if draft is None or not draft.text.strip():
            turn.fail(BadMessage(f"draft {message.draft} is empty: there is nothing to read"))
        elif len(self._turns) >= TURNS_MAX:
            turn.fail(Overloaded("too many requests at once", retry_after_s=1.0))
        else:
            self._turns[message.request] = turn
            self.start(self._run_turn, turn, draft.text, message)
            self._sessions.touch(self)

    def changed(self) -> None:
        """Something of it is to be written down. Not a checkpoint."""
        self._sessions.touch(self)

    def start(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run a task that ends with the session, while it lives. Not a checkpoint."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)

    async def _run_turn(self, turn: Turn, text: str, message: wire.Feedback) -> None:
        try:
            with turn.scope, traces.span("feedback turn") as span:
                span.set("coach.request", turn.request)
                span.set("coach.org", self.identity.org)
                question = self._conversation(turn.draft).ask(
                    text,
                    message.focus,
                    now_s=trio.current_time(),
                    grows=self._services.converses,
                )
                await turn.run(
                    self._services, self.identity, question=question, assignment=message.assignment
                )
                span.set("coach.time_to_first_token", turn.ttft_s)
            if turn.outcome == "done":
                said = "".join(turn.text)
                self._remember(
                    wire.FeedbackCopy(
                        request=turn.request,
                        focus=message.focus or "",
                        text=said,
                        draft=turn.draft,
                        adds=question.is_new,
                    )
                )
                self._conversations[turn.draft] = question.answered(said)
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
            self._sessions.touch(self)

    def _conversation(self, draft: str) -> Conversation:
        """What was said about a draft; of what was said at another worker only the answers."""
        return self._conversations.get(draft) or Conversation.after(
            [(copy.focus, copy.text) for copy in self._history if copy.draft == draft]
        )

    def _remember(self, *feedback: wire.FeedbackCopy) -> None:
        self._history = (*self._history, *feedback)[-HISTORY_TURNS:]
