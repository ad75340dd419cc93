"""A plain model of who is next in an endpoint's line: what budget_line.lua promises, in Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Final

import attrs

from coach.budget.quota import Amounts

UNIT: Final = 2**24
LANES: Final = range(3)


def cost_of(asked: Amounts, hard: Amounts) -> int:
    """The largest share of any limit, in units."""
    share = max((a / h for a, h in zip(asked, hard, strict=True) if h), default=0.0)
    return max(1, math.ceil(share * UNIT)) if share else 1024


@attrs.define(order=True)
class Waiting:
    """A ticket in line; in the order of its lane."""

    start: int
    arrival: int
    ticket: str = attrs.field(order=False)
    lane: int = attrs.field(order=False)
    org: str = attrs.field(order=False)
    asked: Amounts = attrs.field(order=False)
    span: int = attrs.field(order=False)

    @property
    def worker(self) -> str:
        return self.ticket.split(":")[0]


@attrs.define
class Flow:
    """What an org has had of a lane."""

    finish: int = 0
    last: int = 0
    refund: int = 0


@attrs.define
class Order:
    """Lanes with reserved shares; within a lane start-time fair queueing of orgs."""

    hard: Amounts
    percents: tuple[int, int]
    lanes: list[list[Waiting]] = attrs.field(factory=lambda: [[], [], []])
    flows: dict[tuple[int, str], Flow] = attrs.field(factory=dict)
    clock: list[int] = attrs.field(factory=lambda: [0, 0, 0])
    top: list[int] = attrs.field(factory=lambda: [0, 0, 0])
    owed: list[float] = attrs.field(factory=lambda: [0.0, 0.0, 0.0])

    def __len__(self) -> int:
        return sum(map(len, self.lanes))

    def __iter__(self) -> Iterator[Waiting]:
        return iter([each for lane in self.lanes for each in lane])

    def cost(self, asked: Amounts) -> int:
        return cost_of(asked, self.hard)

    def enter(self, ticket: str, lane: int, org: str, asked: Amounts, arrival: int) -> Waiting:
        if not len(self):
            self.flows, self.owed = {}, [0.0, 0.0, 0.0]
            self.clock, self.top = [0, 0, 0], [0, 0, 0]
        if not self.lanes[lane]:
            self.clock[lane] = max(self.clock[lane], self.top[lane])
            self.flows[lane, org] = Flow()
        flow = self.flows.setdefault((lane, org), Flow())
        due = max(self.clock[lane], flow.finish - flow.refund)
        start, span = max(due, flow.last), self.cost(asked)
        self.flows[lane, org] = Flow(start + span, start, start - due)
        self.top[lane] = max(self.top[lane], start + span)
        waiting = Waiting(start, arrival, ticket, lane, org, asked, span)
        self.lanes[lane] = sorted([*self.lanes[lane], waiting])
        return waiting

    def leave(self, waiting: Waiting) -> None:
        self.lanes[waiting.lane].remove(waiting)
        self.flows[waiting.lane, waiting.org].refund += waiting.span

    def next(self) -> tuple[Waiting, bool] | None:
        """Who is next, and whether a lower lane's share is why."""
        waiting = [lane for lane in LANES if self.lanes[lane]]
        if not waiting:
            return None
        top = waiting[0]
        for lane in waiting[1:]:
            if self.owed[lane] >= self.cost(self.lanes[lane][0].asked):
                return self.lanes[lane][0], True
        head = self.lanes[top][0]
        return head, top > 0 and self.owed[top] >= self.cost(head.asked)

    def admit(self) -> Waiting:
        found = self.next()
        assert found is not None
        head, cost = found[0], self.cost(found[0].asked)
        self.lanes[head.lane].remove(head)
        for lane, percent in zip(LANES[1:], self.percents, strict=True):
            if not self.lanes[lane]:
                self.owed[lane] = 0.0
            else:
                paid = cost if lane == head.lane else 0
                self.owed[lane] = max(0.0, self.owed[lane] + cost * percent / 100 - paid)
            self.owed[lane] = float(f"{self.owed[lane]:.0f}")  # as it is written
        self.clock[head.lane] = max(self.clock[head.lane], head.start)
        return head

    def sequence(self) -> Sequence[str]:
        """All tickets as they would be admitted if nobody came."""
        rest, order = deepcopy(self), []
        while len(rest):
            order.append(rest.admit().ticket)
        return order
