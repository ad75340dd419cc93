"""The budget loop: looks after this worker's tickets in one endpoint's line.

It exists while there are tickets. Each look (budget_pass.lua) renews the worker's lease, admits
what may go and learns the places of the rest. In between it sleeps on the wake stream: until the
head may go, if the head is this worker's; else until the head's owner, a settlement or a newcomer
wakes it; and never longer than a quarter of the lease, which is all that a closed gate costs. Nor
does it trust Redis to end a sleep: a server that hangs is found out by the next look, and whoever
waits is told so within `wait_s`.

Memory: `line_max` tickets in all workers together, about 1 KiB each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, final

import attrs
import trio

from ..errors import CoachError, Overloaded, TooLarge
from ..store import Redis, RedisError
from .quota import Amounts, Outlook, Told
from .scripts import (
    RETRY_S,
    Admitted,
    EndpointScripts,
    Full,
    Passed,
    Queued,
    RedisAway,
    Refused,
)

LOOKS_PER_LEASE: Final = 4
"""A dead worker's tickets are out of everybody's way after a lease and a look."""
LOOK_S_MIN: Final = 0.5
"""What a look gets even where the worker itself was held up for longer than `wait_s`."""
LATE_S_MAX: Final = 0.25
"""How late Redis may be in ending a sleep."""
PLACES_S: Final = 0.25
"""Between two looks at all places, which cost Redis about 0.5 µs for everyone in line."""


@final
@attrs.define(eq=False)
class Ticket:
    """A request that is, or may come to be, in line."""

    id: str
    lane: int
    ask: Amounts
    org: str
    weight: float
    on_position: Callable[[int, float], None] | None
    rank: str = ""
    """Where it stands in line, for finding back to it; "": it never stood there."""
    told: Told | None = None
    admitted: Admitted | None = None
    error: CoachError | None = None
    decided: trio.Event = attrs.field(factory=trio.Event)
    """Set with `admitted` or `error`."""

    def admit(self, admitted: Admitted) -> None:
        """It may go."""
        self.admitted = admitted
        self.decided.set()

    def refuse(self, error: CoachError) -> None:
        """It may not go, and waits no longer."""
        self.error = error
        self.decided.set()

    def tell(self, position: int, outlook: Outlook) -> None:
        """Report its place, if that is news."""
        eta_s, now_s = outlook.eta_s(position), trio.current_time()
        if self.on_position is None:
            return
        if self.told is None or self.told.is_news(position, eta_s, now_s):
            self.told = Told(position, eta_s, now_s)
            self.on_position(position, eta_s)


@final
class Line:
    """This worker's part of an endpoint's waiting line."""

    def __init__(
        self,
        redis: Redis,
        scripts: EndpointScripts,
        nursery: trio.Nursery,
        *,
        worker: str,
        line_max: int,
        wait_s: float,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._nursery = nursery
        self._worker = worker
        self._line_max = line_max
        self._wait_s = wait_s
        self._waiting: dict[str, Ticket] = {}
        """In Redis' line as far as this worker knows, and not decided."""
        self._early: dict[str, Admitted] = {}
        """Admitted by the last look while the reply that had put them in line was still unread: the
        two came together, and trio runs the tasks they wake in any order."""
        self._is_running = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_running(self) -> bool:
        """Whether the loop exists."""
        return self._is_running

    async def wait(self, ticket: Ticket, queued: Queued) -> Admitted:
        """Wait until `ticket`, which Redis has put into line, may go.

        Raises:
          RedisAway: it was away for too long.
          Overloaded: the line was lost, and is full now.
          TooLarge: the line was lost, and meanwhile the quota was made too small for it.

        Cancellation: the ticket may be in line, or admitted; the caller ends it.
        """
        early = self._early.pop(ticket.id, None)
        if early is not None:
            await trio.lowlevel.checkpoint()
            return early
        ticket.rank = queued.rank
        self._waiting[ticket.id] = ticket
        try:
            ticket.tell(queued.position, queued.outlook)
            if not self._is_running:
                self._is_running = True
                self._nursery.start_soon(self._run)
            await ticket.decided.wait()
        finally:
            self._waiting.pop(ticket.id, None)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.admitted is not None
        return ticket.admitted

    async def _run(self) -> None:
        answered_s = trio.current_time()
        placed_s = -math.inf  # when the tickets last learnt their places
        try:
            while True:
                asked_s = trio.current_time()
                is_full = asked_s - placed_s >= PLACES_S
                late_s = answered_s + self._wait_s
                try:
                    with trio.fail_after(max(LOOK_S_MIN, late_s - asked_s)):
                        passed = await self._look(is_full=is_full)
                except (trio.TooSlowError, RedisError):
                    if trio.current_time() >= late_s:
                        self._refuse_all()
                    placed_s = -math.inf  # what was admitted may have been lost with the reply
                    await trio.sleep(RETRY_S)
                else:
                    answered_s = trio.current_time()
                    placed_s = asked_s if is_full else placed_s
                    if self._waiting:
                        await self._sleep(passed)
                if not self._waiting:
                    return
        finally:
            self._is_running = False

    async def _look(self, *, is_full: bool) -> Passed:
        """Look at the line and tell the tickets.

        A ticket that is neither admitted nor in line fell out of it: the worker was silent for
        longer than its lease, or Redis lost the line, or the reply that admitted it was lost.
        """
        in_line = dict(self._waiting)
        passed = await self._scripts.look(self._worker, is_full=is_full)
        self._early = {name: passed.now for name in passed.admitted if name not in in_line}
        for name in passed.admitted:
            ticket = in_line.pop(name, None)
            if ticket is not None and self._waiting.pop(name, None) is not None:
                ticket.admit(passed.now)
        if passed.positions is not None:
            for name, ticket in in_line.items():
                if name not in self._waiting:
                    continue  # its owner gave up meanwhile
                position = passed.positions.get(name)
                if position is None:
                    await self._find_back(ticket)
                else:
                    ticket.tell(position, passed.outlook)
        return passed

    async def ask(self, ticket: Ticket) -> Admitted | Queued | Full | Refused:
        """Ask Redis to admit a ticket, or to put it into line: where it stood, if it stood there.

        Raises:
          RedisError: no answer.
        """
        return await self._scripts.admit(
            ticket.id,
            lane=ticket.lane,
            ask=ticket.ask,
            org=ticket.org,
            weight=ticket.weight,
            rank=ticket.rank,
            line_max=self._line_max,
        )

    def refusal(self, ticket: Ticket, reply: Full | Refused) -> CoachError:
        """What someone is told whom the line did not take."""
        if isinstance(reply, Refused):
            return input_too_large(self._scripts.endpoint, ticket.ask, reply.dimension)
        return Overloaded(
            f"{reply.length:,} requests wait already",
            retry_after_s=max(1.0, reply.outlook.eta_s(reply.length)),
        )

    async def _find_back(self, ticket: Ticket) -> None:
        reply = await self.ask(ticket)
        if ticket.id not in self._waiting:
            return  # its owner gave up, and undoes this
        match reply:
            case Admitted():
                del self._waiting[ticket.id]
                ticket.admit(reply)
            case Queued(_, position, outlook):
                ticket.tell(position, outlook)
            case _:
                del self._waiting[ticket.id]
                ticket.refuse(self.refusal(ticket, reply))

    async def _sleep(self, passed: Passed) -> None:
        """Until there may be something to do."""
        sleep_s = min(self._scripts.worker_lease_s, self._wait_s) / LOOKS_PER_LEASE
        if passed.is_mine and passed.outlook.head_s is not None:
            sleep_s = min(sleep_s, passed.outlook.head_s)
        deadline_s, wake_id = trio.current_time() + sleep_s, passed.wake_id
        while True:
            block_ms = math.ceil((deadline_s - trio.current_time()) * 1000)
            if block_ms <= 0:
                await trio.lowlevel.checkpoint()
                return
            reply: Any = {}
            try:
                with trio.move_on_at(deadline_s + LATE_S_MAX):
                    reply = await self._redis.execute_command(
                        "XREAD", "BLOCK", block_ms, "STREAMS", self._scripts.wake_key, wake_id
                    )
            except RedisError:
                await trio.sleep(min(RETRY_S, sleep_s))
                return
            is_woken, wake_id = _read_wake(reply, self._worker, wake_id)
            if is_woken or not self._waiting:
                return

    def _refuse_all(self) -> None:
        while self._waiting:
            _, ticket = self._waiting.popitem()
            ticket.refuse(
                RedisAway("the waiting line cannot be reached now", retry_after_s=self._wait_s)
            )


def input_too_large(endpoint: str, ask: Amounts, dimension: str) -> TooLarge:
    """What someone is told whose request that endpoint can never answer."""
    return TooLarge(
        f"{ask[1]:,} tokens of input are more than the whole {dimension} quota of {endpoint}"
    )


def _read_wake(reply: Any, worker: str, wake_id: str) -> tuple[bool, str]:
    """Whether an entry is for `worker`, and the id to read on from."""
    is_woken = False
    for entries in reply.values():
        for entry_id, fields in entries:
            wake_id = entry_id.decode()
            is_woken = is_woken or fields[b"w"] == worker.encode()
    return is_woken, wake_id
