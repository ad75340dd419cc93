"""Writes down what sessions are, in the background: no message to or from a student waits for it.

What a session is without goes soon (within `TICK_S`): its tokens, turns, submissions. What it says
while nobody hears it goes every `TAIL_S`, or to the worker that has it now, every `RELAY_S`. Drafts
go `EDITS_S` after the first edit that Redis does not have, so that a crash costs less than 2 s of
typing. A session whose client is connected and only listens costs nothing: no word that a provider
says is written here.

Memory: an entry a session that has something to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Final, final

import msgspec
import structlog
import trio

from ..store import RedisError

if TYPE_CHECKING:
    from .resume import Kept, Records
    from .session import Session

log = structlog.get_logger()

TICK_S: Final = 0.05
EDITS_S: Final = 1.5
TAIL_S: Final = 0.5
"""A worker that is killed has told Redis what it said until so long ago, to those who were away."""
RELAY_S: Final = 0.1
"""A student who came back to another worker than the one where the turn runs hears it in steps."""
STILL_S: Final = 2.0
"""Between two letters about a session that has moved, also where there is nothing to say."""
RETRY_S: Final = 0.5
NOT_KNOWN: Final = -1
"""Less than any number of a message: what Redis has of a session is not known."""
AT_ONCE: Final = 64
"""Records written at a time."""
PARTING_MAX: Final = 1000
"""Sessions that are over and wait for their last write."""


@final
class Keeper:
    """Writes the records of one worker's sessions."""

    def __init__(
        self, records: Records, worker: str, *, on_lost: Callable[[Session, Kept], None]
    ) -> None:
        """Nothing is written before `run`.

        Args:
          records: where to.
          worker: whose sessions they are.
          on_lost: called with a session that another worker has, or that was revoked, and which.
        """
        self._records = records
        self._worker = worker
        self._on_lost = on_lost
        self._due: dict[Session, float] = {}  # when to write
        self._later: dict[Session, float] = {}  # likewise, drafts; in order
        self._away: dict[Session, float] = {}
        # those that speak, and nobody listens here: when they were written, or told on, last
        self._parting: set[Session] = set()  # over, but their last write is still to be made
        self._writing: dict[Session, trio.Lock] = {}  # held while Redis is told how they stand
        self._wake = trio.Event()

    def touch(self, session: Session) -> None:
        """Write it soon. Not a checkpoint."""
        if session.link is None:
            self._away.setdefault(session, 0.0)
        else:
            self._away.pop(session, None)
        self._due[session] = 0.0
        self._wake.set()

    def touch_later(self, session: Session) -> None:
        """Write its drafts within `EDITS_S` (and a tick). Not a checkpoint."""
        self._later.setdefault(session, trio.current_time() + EDITS_S)
        self._wake.set()

    def forget(self, session: Session) -> None:
        """It is over. Not a checkpoint."""
        self._later.pop(session, None)
        self._away.pop(session, None)
        if session not in self._parting:
            self._due.pop(session, None)

    def part(self, session: Session) -> None:
        """Write once more of a session that is over, that nobody can go on with it.

        Beyond `PARTING_MAX`, while Redis is away, the record is left to its expiry.
        """
        if len(self._parting) >= PARTING_MAX:
            log.warning("session_not_voided", session=session.id)
            return
        self._parting.add(session)
        self._due[session] = 0.0
        self._wake.set()

    async def run(self) -> None:
        """Write what is due, until cancelled. Redis may come and go."""
        while True:
            await self._wait()
            await self._write_all(self._take_due())

    async def _wait(self) -> None:
        """Until something may be due: a tick, or the next draft, or a touch."""
        if not (self._due or self._away):
            self._wake = trio.Event()
            with trio.move_on_at(next(iter(self._later.values()), inf)):
                await self._wake.wait()
        await trio.sleep(TICK_S)

    def _take_due(self) -> dict[Session, None]:
        now = trio.current_time()
        due = [session for session, when in self._due.items() if when <= now]
        for session, when in list(self._later.items()):
            if when > now:
                break
            due.append(session)
        due += [session for session, at in self._away.items() if _has_news(session, now - at)]
        return dict.fromkeys(due)

    async def _write_all(self, sessions: dict[Session, None]) -> None:
        moved: dict[str, list[Session]] = {}
        left = []
        for session in sessions:
            self._due.pop(session, None)
            self._later.pop(session, None)
            if session.moved_to is None:
                left.append(session)
            else:
                moved.setdefault(session.moved_to, []).append(session)
        async with trio.open_nursery() as nursery:
            for worker, theirs in moved.items():
                nursery.start_soon(self._tell_on, worker, theirs)
        while left:
            batch, left = left[:AT_ONCE], left[AT_ONCE:]
            async with trio.open_nursery() as nursery:
                for session in batch:
                    nursery.start_soon(self._write, session)

    async def _write(self, session: Session) -> None:
        try:
            await self.keep(session, parted=session.is_over)
            self._parting.discard(session)
        except RedisError as error:
            log.warning("session_not_kept", session=session.id, error=str(error))
            self._due[session] = trio.current_time() + RETRY_S

    async def keep(self, session: Session, *, parted: bool) -> Kept:
        """Write a session down as it is. `parted`: nobody has it from then on.

        Raises:
          RedisError: it may have been written, or not.
        """
        lock = self._writing.setdefault(session, trio.Lock())
        try:
            async with lock:
                return "moved" if session.moved_to else await self._keep(session, parted=parted)
        finally:
            if not lock.locked():
                self._writing.pop(session, None)

    async def _keep(self, session: Session, *, parted: bool) -> Kept:
        connected = session.link is not None
        said, is_whole = session.newest_since(session.kept_seq)
        dirty = session.take_dirty()
        state = session.state()
        identity = session.identity
        fields: dict[str, str | bytes] = {
            "user": identity.user,
            "org": identity.org,
            "role": identity.role,
            "token": session.token,
            "previous": session.previous,
            "state": msgspec.json.encode(state),
        }
        for name in dirty:
            fields[f"draft:{name}"] = msgspec.json.encode(session.draft_copy(name))
        try:
            kept = await self._records.keep(
                session.id,
                worker=self._worker,
                epoch=session.epoch,
                fields=fields,
                said=() if connected else said,
                tail="clear" if connected else "append" if is_whole else "replace",
                parted=parted,
            )
        except RedisError:
            session.dirty |= dirty
            session.kept_seq = NOT_KNOWN  # the tail may have it, or not: it is written anew
            raise
        session.kept_seq, session.kept_at = state.seq, trio.current_time()
        if session in self._away:
            self._away[session] = session.kept_at
        if kept != "kept" and session.moved_to is None and not session.is_over:
            self._on_lost(session, kept)
        return kept

    async def put_away(self, session: Session) -> None:
        """Write a session down for whoever goes on with it; tried until it is done.

        Cancellation: it may have been written.
        """
        while session.moved_to is None and not session.is_over:
            try:
                if await self.keep(session, parted=True) == "moved":
                    await trio.sleep(RETRY_S)  # the letter of the worker that has it is on its way
                    continue
            except RedisError as error:
                log.warning("session_not_put_away", session=session.id, error=str(error))
                await trio.sleep(RETRY_S)
            else:
                return

    # -- a session that has moved --------------------------------------------------------------

    async def tell(self, session: Session, handover: bytes) -> None:
        """Give the worker that has the session now what it needs; then what is said since."""
        assert session.moved_to is not None
        letter: dict[str, str | bytes] = {
            "kind": "handover",
            "session": session.id,
            "worker": self._worker,
            "epoch": str(session.epoch),
            "payload": handover,
        }
        try:
            await self._records.post(session.moved_to, letter)
        except RedisError as error:
            log.warning("not_handed_over", session=session.id, error=str(error))
            session.end("it could not be handed over")
            return
        self._away[session] = trio.current_time()
        self._wake.set()

    async def _tell_on(self, worker: str, sessions: Iterable[Session]) -> None:
        """Letters with what sessions have said since the last ones; one round trip."""
        letters, told = [], []
        for session in sessions:
            said, is_whole = session.newest_since(session.kept_seq)
            if not is_whole:
                session.end("more was said than is kept")  # the silence tells it there
                continue
            is_over = not session.has_work
            letter: dict[str, str | bytes] = {
                "kind": "relay",
                "session": session.id,
                "epoch": str(session.epoch),
                "payload": b"[" + b",".join(said) + b"]",
            }
            if is_over:
                letter["feedback"] = msgspec.json.encode(session.state().feedback)
            letters.append(letter)
            told.append((session, session.outbox.seq, is_over))
        try:
            await self._records.post(worker, *letters)
        except RedisError as error:
            log.warning("not_told_on", worker=worker, sessions=len(told), error=str(error))
            for session, _, _ in told:  # what has arrived nevertheless is known by its number
                self._away[session] = trio.current_time() + RETRY_S
            return
        for session, seq, is_over in told:
            session.kept_seq = seq
            session.outbox.ack(seq)
            self._away[session] = trio.current_time()
            if is_over:
                session.end("it has moved")


def _has_news(session: Session, since_s: float) -> bool:
    """Whether it is to be written, or told on, `since_s` after the last time."""
    speaks = session.outbox.seq != session.kept_seq
    if session.moved_to is None:
        return speaks and since_s >= TAIL_S
    return (speaks and since_s >= RELAY_S) or not session.has_work or since_s > STILL_S
