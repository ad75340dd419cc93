"""The sessions of one worker: found by mail, counted per user, pinged, drained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, final

import msgspec
import structlog
import trio

from ..errors import Overloaded
from ..store import RedisError
from . import wire

if TYPE_CHECKING:
    from ..store import Redis
    from .session import Session

log = structlog.get_logger()

MAIL_BLOCK_MS: Final = 10_000
MAIL_BATCH: Final = 256
MAIL_RETRY_S: Final = 0.5
PINGS_AT_ONCE: Final = 64
"""Sessions looked at before feedback gets its turn again: a ping is a system call."""


class GradeMail(msgspec.Struct, frozen=True, tag_field="kind", tag="grade"):
    """A submission was graded; `payload` is the `grade` message without `seq`, as JSON."""

    session: str
    submission: str
    payload: str

    def answer(self) -> wire.Grade:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Grade)


class FailedMail(msgspec.Struct, frozen=True, tag_field="kind", tag="failed"):
    """A submission will not be graded; `payload` is an `error` message without `seq`, as JSON."""

    session: str
    submission: str
    payload: str

    def answer(self) -> wire.Error:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Error)


class GradingMail(msgspec.Struct, frozen=True, tag_field="kind", tag="grading"):
    """News of a submission; `payload` is a `grading` message without `seq`, as JSON."""

    session: str
    submission: str
    payload: str

    def answer(self) -> wire.Grading:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Grading)


Mail = GradeMail | FailedMail | GradingMail


class Waitable(Protocol):
    """An event that says the server shuts down."""

    async def wait(self) -> None:
        """Wait until it does."""
        ...


@final
class Sessions:
    """Registry of the worker's open sessions."""

    def __init__(self, *, connections_per_user: int, ping_s: float, drain_s: float) -> None:
        """Start empty.

        Args:
          connections_per_user: sessions one user may have on this worker.
          ping_s: silence after which a student is pinged; after twice as much the session ends.
          drain_s: what turns under way have at shutdown; sessions are closed then all the same.
        """
        self._connections_per_user = connections_per_user
        self._ping_s = ping_s
        self._drain_s = drain_s
        self._by_id: dict[str, Session] = {}
        self._by_user: dict[tuple[str, str], int] = {}  # (org, user) -> sessions, never 0
        self._watched = False
        self.draining = False
        """True once the worker is shutting down."""

    def __len__(self) -> int:
        """How many sessions are open."""
        return len(self._by_id)

    @property
    def turns_running(self) -> int:
        """Turns under way in all sessions."""
        return sum(session.turns_running for session in self._by_id.values())

    def add(self, session: Session, *, org: str, user: str) -> None:
        """Take in a session that has said hello.

        Raises:
          Overloaded: the worker drains, or the user has too many sessions. Nothing changed.
        """
        if self.draining:
            raise Overloaded("this server is about to restart", retry_after_s=1.0)
        count = self._by_user.get((org, user), 0)
        if count >= self._connections_per_user:
            raise Overloaded(
                f"you have {count} connections open already: close one", retry_after_s=10.0
            )
        self._by_user[org, user] = count + 1
        self._by_id[session.id] = session

    def discard(self, session: Session, *, org: str, user: str) -> None:
        """Forget a session that `add` took in."""
        del self._by_id[session.id]
        self._by_user[org, user] -= 1
        if not self._by_user[org, user]:
            del self._by_user[org, user]

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
        """Take no new sessions; tell the open ones, and close each when its turns have ended."""
        self.draining = True
        for session in self._by_id.values():
            session.drain(self._drain_s)

    async def run_pings(self) -> None:
        """Ping silent students and end the sessions of dead ones, until cancelled."""
        while True:
            await trio.sleep(self._ping_s / 2)
            now = trio.current_time()
            for count, session in enumerate(list(self._by_id.values()), start=1):
                if count % PINGS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                silence_s = now - session.stream.received_at
                if silence_s > 2 * self._ping_s:
                    session.end("no answer to pings")
                elif silence_s > self._ping_s:
                    session.outbox.ping()

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
            text = {key.decode(): value.decode() for key, value in fields.items()}
            mail = msgspec.convert(text, Mail)
            session = self._by_id.get(mail.session)
            if session is not None:
                session.deliver(mail.submission, mail.answer())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("bad_mail", error=str(error))  # the session will ask for what it misses


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
