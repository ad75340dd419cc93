"""The sessions of one worker: their nursery, their links, those that come and go to other workers.

    begin    a new session                                     nothing is asked of Redis
    resume   one that is here                                  nothing is asked of Redis
             one that is not: claimed in Redis (1 round trip); where another worker has it, that
             one is asked for it by letter (2), and answers by letter
    keep     what changes is written down by one task, in the background (keeper.py)

Workers write to each other through their mailboxes (mail.py).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol, final

import attrs
import msgspec
import structlog
import trio

from .. import config
from ..errors import Overloaded, RateLimited
from ..grading import PRESENT_S
from ..incarnation import has_ended
from ..ops import metrics
from ..store import RedisError
from ..throttle import Throttle
from .allowance import open_throttle
from .elsewhere import Elsewhere
from .keeper import STILL_S, Keeper
from .mail import ClaimMail, GradeMail, HandoverMail, Mail, RelayMail, RevokedMail, StopMail, parse
from .resume import Claim, Handover, new_token, split_token
from .session import Session

if TYPE_CHECKING:
    from ..store import Redis
    from .auth import Identity
    from .resume import Kept, Records
    from .services import Services

log = structlog.get_logger()

MAIL_BLOCK_MS: Final = 10_000
MAIL_BATCH: Final = 256
MAIL_RETRY_S: Final = 0.5
REFRESH_S: Final = 120.0
"""After which the record of a session is written again where nothing has happened."""
PINGS_AT_ONCE: Final = 64
"""Links looked at before feedback gets its turn again: a ping is a system call."""
HANDOVER_S_MAX: Final = 1.0
"""How long another worker has to answer for a session; then it counts as dead."""
LOOK_S: Final = 0.1
"""Between two looks whether it has ended, which shows where it is on this machine."""
SILENCE_S_MAX: Final = 10.0
"""Of a worker whose turns are told here; it says something every `keeper.STILL_S`."""
DRAIN_SPREAD: Final = 0.5
"""Share of the drain in which students are sent elsewhere, one by one."""
PUT_AWAY_S: Final = 1.0
"""At the end of the drain, for the records of all sessions that are left."""
CLOSE_SHARE: Final = 0.7
"""Share of the drain after which no link is left; turns that still run go on without one."""


class Waitable(Protocol):
    """An event that says the server shuts down."""

    async def wait(self) -> None:
        """Wait until it does."""
        ...


@asynccontextmanager
async def open_sessions(
    services: Services, records: Records, settings: config.Settings
) -> AsyncIterator[Sessions]:
    """The registry, and what it runs. Leaving ends all sessions as `Sessions.settle` left them."""
    async with trio.open_nursery() as nursery:
        sessions = Sessions(services, records, settings, nursery)
        nursery.start_soon(sessions.keeper.run)
        yield sessions
        nursery.cancel_scope.cancel("the worker shuts down")


@final
class Sessions:
    """Registry of the worker's sessions; lent out by `open_sessions`."""

    def __init__(
        self,
        services: Services,
        records: Records,
        settings: config.Settings,
        nursery: trio.Nursery,
    ) -> None:
        """Start empty; sessions live in `nursery`."""
        self._services = services
        self._records = records
        self._nursery = nursery
        self._server = settings.server
        self._settings = settings.session
        self._leeway_s = settings.auth.leeway_s
        self._worker = services.worker
        self.keeper = Keeper(records, self._worker, on_lost=self._lost)
        self._by_id: dict[str, Session] = {}
        self._moved: dict[tuple[str, int], Session] = {}  # by id and epoch: what still runs here
        self._by_user: dict[tuple[str, str], int] = {}  # (org, user) -> links, never 0
        self._of_user: dict[tuple[str, str], dict[Session, float]] = {}
        # (org, user) -> sessions, never none; and when the inbox was last told that they are here
        self._away: dict[Session, None] = {}  # whose students are away, the longest first
        self._claims: dict[str, trio.Event] = {}  # take-overs under way, by id
        self._heard: dict[tuple[str, int], _Heard] = {}  # id and epoch of what is told here
        self.throttle = open_throttle(self._server.messages_per_s)
        """What users may send here."""
        self._arrivals: Throttle[tuple[str, str]] = Throttle(
            per_s=self._server.connects_per_minute / 60, burst=self._server.connects_per_minute
        )
        self._watched = False
        self._drained_at = 0.0
        self.draining = False
        """True once the worker is shutting down."""

    def __len__(self) -> int:
        """How many sessions there are here, with a link or without."""
        return len(self._by_id)

    @property
    def connected(self) -> int:
        """Sessions whose students are connected."""
        return len(self._by_id) - len(self._away)

    @property
    def away(self) -> int:
        """Sessions whose students are away."""
        return len(self._away)

    @property
    def turns_running(self) -> int:
        """Turns under way in all sessions."""
        here = sum(session.turns_running for session in self._by_id.values())
        return here + sum(session.turns_running for session in self._moved.values())

    def _works(self) -> bool:
        sessions = (*self._by_id.values(), *self._moved.values())
        return any(session.works_here for session in sessions)

    # -- sessions begin, and come back ---------------------------------------------------------

    async def begin(self, identity: Identity) -> Session:
        """A new session, without a link.

        Raises:
          Overloaded: the worker drains, or the user has too many links.
        """
        session = Session(identity, self._services, self)
        self._check(session)
        await self._nursery.start(session.live)
        self._add(session)
        self._nursery.start_soon(self._look_into_inbox, session)
        return session

    async def resume(self, token: str, identity: Identity | None, last_seq: int) -> Session | None:
        """The session that `token` opens, ready for a link; None: there is none for this client.

        Cancelled, a take-over that has begun goes on: then the session waits here for its client.

        Raises:
          Overloaded: the worker drains.
          RedisError: it cannot be asked. Nothing has changed, or the token is still honoured.
        """
        began = trio.current_time()
        parts = split_token(token)
        if parts is None or not self._settings.detached_s:
            return None
        if self.draining:
            raise Overloaded("this server is about to restart", retry_after_s=1.0)
        name, digest = parts
        while name in self._claims:
            await self._claims[name].wait()
        session = self._by_id.get(name)
        where = "here"
        if session is None or session.is_over:
            where = "elsewhere"
            outcome = _Outcome()
            self._claims[name] = outcome.known
            self._nursery.start_soon(self._claim, name, digest, identity, last_seq, outcome)
            await outcome.known.wait()
            if outcome.error is not None:
                raise outcome.error
            session = outcome.session
        metrics.resumes_total.labels("expired" if session is None else where).inc()
        if session is None:
            return None
        await session.ready.wait()
        is_theirs = identity is None or (
            (identity.user, identity.org) == (session.identity.user, session.identity.org)
        )
        if not is_theirs or digest not in {session.token, session.previous} or session.is_over:
            return None
        session.token = digest  # `attach` makes it the previous one
        metrics.resume_seconds.observe(trio.current_time() - began)
        return session

    async def _claim(
        self,
        name: str,
        digest: str,
        identity: Identity | None,
        last_seq: int,
        outcome: _Outcome,
    ) -> None:
        """Take a session over; in a task of the worker, since half of it would be no session."""
        try:
            _, then = new_token(name)
            claim = await self._records.claim(
                name, digest=digest, identity=identity, worker=self._worker, then=then
            )
            if claim is not None:
                session = Session(
                    identity or claim.identity,
                    self._services,
                    self,
                    name=name,
                    epoch=claim.epoch,
                    seq=last_seq,
                )
                session.token = digest
                await self._nursery.start(session.live)
                outcome.session = session
                self._add(session)
                self._nursery.start_soon(self._say_present, session)
                await self._take_over(session, claim, last_seq)
                session.stay_away()
        except RedisError as error:
            outcome.error = error
        except (msgspec.DecodeError, KeyError) as error:
            log.error("bad_record", session=name, error=str(error))
        finally:
            del self._claims[name]
            outcome.known.set()

    async def _take_over(self, session: Session, claim: Claim, last_seq: int) -> None:
        """Get from the worker that has had the session, or from its record, what there is."""
        holder = claim.worker
        if holder not in {"", self._worker} and not has_ended(holder):
            letter = {
                "kind": "claim",
                "session": session.id,
                "worker": self._worker,
                "epoch": str(claim.epoch - 1),
                "last_seq": str(last_seq),
            }
            try:
                await self._records.post(holder, letter)
                with trio.move_on_after(HANDOVER_S_MAX):
                    await _wait_answer(session, holder)
            except RedisError as error:
                log.warning("claim_without_redis", session=session.id, error=str(error))
        if session.ready.is_set():
            return
        session.restore(
            claim.state, claim.drafts, _tail(claim, last_seq), source=None, last_seq=last_seq
        )

    def _handed_over(self, mail: HandoverMail) -> None:
        session = self._by_id.get(mail.session)
        if session is None or session.ready.is_set() or session.epoch != mail.epoch + 1:
            return  # too late: it counts as dead already
        handover = msgspec.json.decode(mail.payload, type=Handover)
        source = Elsewhere(worker=mail.worker, epoch=mail.epoch, cancel_there=self._stop_there)
        self._heard[mail.session, mail.epoch] = _Heard(trio.current_time(), handover.state.seq)
        session.restore(
            handover.state,
            handover.drafts,
            handover.said,
            source=source,
            last_seq=session.outbox.seq,
        )
        if session.has_work:
            self._nursery.start_soon(self._listen, session, mail.worker)

    async def _listen(self, session: Session, worker: str) -> None:
        """Until the other worker has said all, or nothing for too long."""
        key = (session.id, session.epoch - 1)
        while key in self._heard and not session.is_over:
            silence_s = trio.current_time() - self._heard[key].at
            if silence_s > SILENCE_S_MAX or (silence_s > STILL_S and has_ended(worker)):
                session.relayed_all(())
                break
            await trio.sleep(min(STILL_S, SILENCE_S_MAX - silence_s) + 0.01)
        self._heard.pop(key, None)

    def _relay(self, mail: RelayMail) -> None:
        key = (mail.session, mail.epoch)
        session = self._by_id.get(mail.session)
        if session is None or session.epoch != mail.epoch + 1:
            session = self._moved.get((mail.session, mail.epoch + 1))
        heard = self._heard.get(key)
        if heard is None or session is None:
            return
        heard.at = trio.current_time()
        for message in mail.messages():
            if message.seq > heard.seq:  # else the letter was sent twice
                heard.seq = message.seq
                session.relay(message)
        if mail.feedback:
            del self._heard[key]
            session.relayed_all(mail.copies())

    def _stop_there(self, turn: Elsewhere) -> None:
        self._nursery.start_soon(self._post_stop, turn)

    async def _post_stop(self, turn: Elsewhere) -> None:
        assert turn.session is not None
        letter = {
            "kind": "stop",
            "session": turn.session.id,
            "request": turn.request,
            "epoch": str(turn.epoch),
        }
        try:
            await self._records.post(turn.worker, letter)
        except RedisError as error:
            log.warning("not_stopped_elsewhere", request=turn.request, error=str(error))

    # -- sessions leave ------------------------------------------------------------------------

    def _claimed(self, mail: ClaimMail) -> None:
        """Another worker has a session of ours: give it what there is."""
        session = self._by_id.get(mail.session)
        if session is None or session.epoch != mail.epoch or not session.ready.is_set():
            return  # the record says what is left of it
        self._remove(session)
        self._away.pop(session, None)
        self._moved[session.id, session.epoch] = session
        handover = session.hand_over(mail.worker, mail.last_seq)
        self._nursery.start_soon(self.keeper.tell, session, msgspec.json.encode(handover))

    def _lost(self, session: Session, how: Kept) -> None:
        """Redis says that another worker has the session, or that it is void."""
        if how == "revoked":
            session.revoke()
        else:
            self._nursery.start_soon(self._wait_claimed, session)

    async def _wait_claimed(self, session: Session) -> None:
        """The letter of the worker that has it comes after it has it; not, if that was killed."""
        await trio.sleep(2 * HANDOVER_S_MAX)
        if session.moved_to is None:
            session.revoke()

    def forget(self, session: Session) -> None:
        """It has ended. Not a checkpoint."""
        if self._by_id.get(session.id) is session:
            self._remove(session)
        self._moved.pop((session.id, session.epoch), None)
        self._away.pop(session, None)
        self.keeper.forget(session)

    def void(self, session: Session) -> None:
        """Its student does not come back: it cannot be resumed. Not a checkpoint."""
        session.token = session.previous = ""
        self.keeper.part(session)

    async def put_away(self, session: Session) -> None:
        """Have it written down for another worker; tried until cancelled."""
        await self.keeper.put_away(session)

    def touch(self, session: Session) -> None:
        """Something about it is to be written down soon. Not a checkpoint."""
        if session.is_resumable:
            self.keeper.touch(session)

    def touch_later(self, session: Session) -> None:
        """A draft is to be written down. Not a checkpoint."""
        if session.is_resumable:
            self.keeper.touch_later(session)

    def _add(self, session: Session) -> None:
        self._by_id[session.id] = session
        self._of_user.setdefault(_user_of(session), {})[session] = trio.current_time()

    def _remove(self, session: Session) -> None:
        del self._by_id[session.id]
        key = _user_of(session)
        del self._of_user[key][session]
        if not self._of_user[key]:
            del self._of_user[key]
            self._nursery.start_soon(self._say_gone, *key)

    # -- what their students have not heard ----------------------------------------------------

    async def _look_into_inbox(self, session: Session) -> None:
        """Tell a student who has come what has become of essays while nobody was there."""
        who, queue = session.identity, self._services.queue
        try:
            for submission in await queue.inbox.come(who.org, who.user, self._worker):
                state = await queue.get(who.org, submission)
                if state is None:
                    await queue.inbox.told(who.org, who.user, submission)
                else:
                    session.essays.recall(state)
        except RedisError as error:
            log.warning("inbox_without_redis", session=session.id, error=str(error))

    async def _say_present(self, session: Session) -> None:
        who = session.identity
        try:
            await self._services.queue.inbox.come(who.org, who.user, self._worker)
        except RedisError as error:
            log.warning("inbox_without_redis", session=session.id, error=str(error))

    async def _say_gone(self, org: str, user: str) -> None:
        try:
            if (org, user) not in self._of_user:
                await self._services.queue.inbox.leave(org, user, self._worker)
        except RedisError as error:
            log.debug("inbox_without_redis", error=str(error))  # it will be forgotten by itself

    # -- links ---------------------------------------------------------------------------------

    def arrive(self, identity: Identity) -> None:
        """Count a connection that says hello.

        Raises:
          RateLimited: the user has opened too many lately.
        """
        wait_s = self._arrivals.take((identity.org, identity.user), trio.current_time())
        if wait_s:
            metrics.connections_limited.labels("user").inc()
            raise RateLimited("you connect too often: come back in a moment", retry_after_s=wait_s)

    def _check(self, session: Session) -> None:
        if self.draining:
            raise Overloaded("this server is about to restart", retry_after_s=1.0)
        count = self._by_user.get((session.identity.org, session.identity.user), 0)
        if count >= self._server.connections_per_user:
            raise Overloaded(
                f"you have {count} connections open already: close one", retry_after_s=10.0
            )

    def enter(self, session: Session) -> None:
        """Count a session's new link.

        Raises:
          Overloaded: the worker drains, or the user has too many links. Nothing changed.
        """
        self._check(session)
        key = (session.identity.org, session.identity.user)
        self._by_user[key] = self._by_user.get(key, 0) + 1
        self._away.pop(session, None)

    def leave(self, session: Session) -> None:
        """A link that `enter` has counted is gone."""
        key = (session.identity.org, session.identity.user)
        self._by_user[key] -= 1
        if not self._by_user[key]:
            del self._by_user[key]

    def went_away(self, session: Session) -> None:
        """It waits for its student from now on; more than may wait are put away."""
        self._away[session] = None
        while len(self._away) > self._settings.detached_max:
            oldest = next(iter(self._away))
            del self._away[oldest]
            self._nursery.start_soon(oldest.put_away, "too many students are away: ask again")

    # -- the end -------------------------------------------------------------------------------

    def watch(self, terminated: Waitable, nursery: trio.Nursery) -> None:
        """Drain when the server says that it shuts down. Every connection brings the same event.

        hypercorn tells connections, not applications, that shutdown has begun: the first
        connection starts the one task, in `nursery`, that waits for it.
        """
        if not self._watched:
            self._watched = True
            nursery.start_soon(self._drain_after, terminated)

    async def _drain_after(self, terminated: Waitable) -> None:
        await terminated.wait()
        self.drain()

    def drain(self) -> None:
        """Take nobody in; send students elsewhere, one by one. Their turns go on meanwhile."""
        if self.draining:
            return
        self.draining = True
        self._drained_at = trio.current_time()
        drain_s = self._server.drain_s
        connected = [session for session in self._by_id.values() if session.link is not None]
        for place, session in enumerate(connected):
            session.drain(
                begin_s=drain_s * DRAIN_SPREAD * place / len(connected),
                close_s=drain_s * CLOSE_SHARE,
            )

    async def settle(self, until_share: float) -> None:
        """Let turns end, and put all sessions away. Call it when no link is left.

        Args:
          until_share: of `server.drain_s` from `drain` on, after which turns are interrupted;
            what remains of them is written down within `PUT_AWAY_S` more.
        """
        self.drain()
        deadline = self._drained_at + self._server.drain_s * until_share
        with trio.move_on_at(deadline):
            while self._works():  # noqa: ASYNC110  many events, and a few looks suffice
                await trio.sleep(0.05)
        with trio.move_on_at(deadline + PUT_AWAY_S):
            async with trio.open_nursery() as nursery:
                for session in [*self._by_id.values(), *self._moved.values()]:
                    session.interrupt("this server restarts: ask again")
                    if session.is_resumable and session.moved_to is None:
                        nursery.start_soon(session.put_away, "this server restarts: ask again")
            while self._by_id or self._moved:  # noqa: ASYNC110
                await trio.sleep(0.05)

    # -- background ----------------------------------------------------------------------------

    async def run_pings(self) -> None:
        """Ping silent students and cut the links of dead ones, until cancelled.

        Records of those who only listen are refreshed: they must not expire.
        """
        ping_s = self._server.ping_s
        while True:
            await trio.sleep(ping_s / 2)
            now = trio.current_time()
            for count, session in enumerate(list(self._by_id.values()), start=1):
                if count % PINGS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                here = self._of_user.get(_user_of(session), {})
                if session not in here:
                    continue  # it has left meanwhile
                if now - here[session] > PRESENT_S / 2:
                    here[session] = now
                    self._nursery.start_soon(self._say_present, session)
                link = session.link
                if link is None:
                    continue
                if time.time() > link.expires_at + self._leeway_s:
                    link.expire()
                    continue
                if now - session.kept_at > REFRESH_S:
                    self.touch(session)
                silence_s = now - link.received_at
                if silence_s > 2 * ping_s:
                    link.cut("no answer to pings")
                elif silence_s > ping_s:
                    link.writer.ping()

    async def run_mailbox(self, redis: Redis, worker: str) -> None:
        """Hand the worker's mail to its sessions, until cancelled. Redis may come and go."""
        key, last = f"mail:{worker}", b"0"
        while True:
            try:
                reply = await redis.xread({key: last}, count=MAIL_BATCH, block=MAIL_BLOCK_MS)
            except RedisError as error:
                log.warning("mailbox_waits_for_redis", error=str(error))
                await trio.sleep(MAIL_RETRY_S)
                continue
            for entry, fields in _entries(reply):
                last = entry
                self._deliver(fields)

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        try:
            self._take(parse(fields))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("bad_mail", error=str(error))  # the session will ask for what it misses

    def _take(self, mail: Mail) -> None:
        match mail:
            case ClaimMail():
                self._claimed(mail)
            case HandoverMail():
                self._handed_over(mail)
            case RelayMail():
                self._relay(mail)
            case StopMail():
                moved = self._moved.get((mail.session, mail.epoch))
                if moved is not None:
                    moved.stop(mail.request)
            case RevokedMail():
                session = self._by_id.get(mail.session)
                if session is not None:
                    session.revoke()
            case GradeMail() if mail.org:
                for session in list(self._of_user.get((mail.org, mail.user), ())):
                    session.essays.hear_of(mail.submission, mail.answer())
            case _:
                session = self._by_id.get(mail.session)
                if session is not None:
                    session.essays.deliver(mail.submission, mail.answer())


async def _wait_answer(session: Session, holder: str) -> None:
    """Until `holder` has handed the session over, or cannot any more."""
    is_in_vain = False
    while not (session.ready.is_set() or is_in_vain):
        is_in_vain = has_ended(holder)  # what it wrote before may be on its way
        with trio.move_on_after(LOOK_S):
            await session.ready.wait()


def _user_of(session: Session) -> tuple[str, str]:
    return session.identity.org, session.identity.user


@attrs.define
class _Heard:
    """What another worker has told of a session that it had before."""

    at: float
    """When it was heard last, on trio's clock."""
    seq: int
    """Its number of the last message."""


class _Outcome:
    """What has become of a take-over."""

    def __init__(self) -> None:
        self.known = trio.Event()
        self.session: Session | None = None
        self.error: RedisError | None = None


def _tail(claim: Claim, last_seq: int) -> list[bytes] | None:
    """What a worker that is gone has said after `last_seq`; None: it is not known."""
    if claim.state.connected:
        return None  # it has said more than it wrote down
    after = claim.state.seq - last_seq
    if not 0 <= after <= len(claim.said):
        return None
    return list(claim.said[len(claim.said) - after :])


def _entries(reply: object) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of the one stream in an XREAD reply, whichever protocol version shaped it."""
    if not reply:
        return []
    streams = list(reply.values()) if isinstance(reply, dict) else [item[1] for item in reply]  # type: ignore[attr-defined]
    entries = streams[0]
    # RESP3 through redis-py's callback wraps the entries of a stream in one more list.
    if len(entries) == 1 and isinstance(entries[0], list):
        entries = entries[0]
    return [(entry[0], entry[1]) for entry in entries]
