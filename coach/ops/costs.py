"""The bill: what every answer cost, by org, user, assignment, model and reason, hour by hour.

Booking is a plain call that touches memory alone: nothing on a student's path waits for it. Each
process writes what it has booked to Redis once in `flush_s`, one script an org. A flush has a
number and is in the books once, however often it is sent. So money is not lost when a process
drains or Redis is away, and not doubled when a connection is; a process that is killed loses what
it had booked since its last flush, and what its running answers had cost so far.

Budgets are checked in memory, too. A process knows of each org that is in use what all have spent,
as of a second ago, and what it has booked itself since. Turns that begin before the others' news
arrive go through: an org can overshoot by what is under way, and by what begins within two seconds.
The first turn of an org in a process may find nothing known yet, and goes through as well.

Memory: `cells_max` cells of some 400 bytes, twice while a flush is under way; beyond that, bookings
of users and assignments that are new in the hour are added up under `*`. A record of some 200 bytes
for each org in use.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import ClassVar, Final, Literal, final
from urllib.parse import quote

import attrs
import msgspec
import structlog
import trio

from .. import config
from ..errors import CoachError, Code
from ..nurseries import running
from ..store import Redis, RedisError, script
from . import metrics
from .prices import CacheLife, Prices, TokenUsage

log = structlog.get_logger()

Reason = Literal[
    "feedback",
    "grading",
    "regrade",
    "evaluation",
    "keep-warm",
    "wasted-cancel",
    "wasted-failover",
]
"""Why money was spent. `wasted-cancel`: on answers that nobody waited for to their end;
`wasted-failover`: on attempts that failed, after which another was made or nobody was left."""
MEASURES: Final = (
    *("requests", "input", "cache_write", "cache_read", "output"),
    *("nano", "unpriced"),
)
"""What is counted: requests, four kinds of tokens, nano-dollars, tokens without a known price."""

NANO_AT: Final = MEASURES.index("nano")

DAY_S: Final = 86_400
HOUR_S: Final = 3_600
FLUSHED_S: Final = DAY_S
"""How long Redis remembers a process's last flush, for the case that it is sent again."""
CELLS_PER_FLUSH: Final = 200
"""In one script call, which keeps Redis busy for some 9 µs each: 1.7 ms."""
ROUND_S_MIN: Final = 0.1
"""Between two rounds of the service, however many orgs are new."""
LOOK_S: Final = 10.0
"""Between two looks for a budget at an org that has none."""
WATCH_S: Final = 60.0
"""How long after its last use an org's standing is kept fresh."""
CLOSE_S_MAX: Final = 2.0
"""For the last flush, when a process ends."""
GRADING_RETRY_S: Final = 600.0
"""When a student may ask again for a grade that waits for money."""
OTHERS: Final = "*"
"""User and assignment of what could not be told apart any more."""
NAME_CHARACTERS_MAX: Final = 64

Amounts = list[int]
"""One integer for each of MEASURES."""


class BudgetExhausted(CoachError):
    """An org has spent its month's money; the message is fit for a student.

    For feedback it has no `retry_after_s`: it ends when somebody raises the budget, or with the
    month.
    """

    code: ClassVar[Code] = "rate_limited"


@attrs.frozen
class Cell:
    """What bookings are told apart by, within an org and an hour."""

    user: str
    assignment: str
    provider: str
    model: str
    reason: Reason

    def by_user(self) -> bytes:
        """The field of `users`."""
        return msgspec.json.encode(
            (self.user, self.assignment, self.provider, self.model, self.reason)
        )

    def by_hour(self) -> bytes:
        """The field of `hour`."""
        return msgspec.json.encode((self.assignment, self.provider, self.model, self.reason))


@attrs.frozen
class Flush:
    """Cells of one org and hour that are sent together, again and again until they are booked."""

    number: int
    hour: int
    cells: dict[Cell, Amounts]

    def arguments(self, settings: config.Costs) -> list[int | str | bytes]:
        """ARGV of cost_book.lua."""
        hours: dict[bytes, Amounts] = {}
        users: dict[bytes, Amounts] = {}
        for cell, amounts in self.cells.items():
            _add(hours.setdefault(cell.by_hour(), [0] * len(MEASURES)), amounts)
            _add(users.setdefault(cell.by_user(), [0] * len(MEASURES)), amounts)
        return [
            *(self.number, self.hour, settings.keep_days * DAY_S),
            *(min(settings.user_days, settings.keep_days) * DAY_S, FLUSHED_S, len(hours)),
            *(
                part
                for cells in (hours, users)
                for field, amounts in cells.items()
                for part in (field, " ".join(map(str, amounts)))
            ),
        ]


@attrs.define
class _Org:
    """What this process knows of one org."""

    pending: dict[int, dict[Cell, Amounts]] = attrs.field(factory=dict)
    """By hour; booked, in no flush yet."""
    flushes: deque[Flush] = attrs.field(factory=deque)
    """In the order of their numbers; the first one may be in the books already."""
    used_at: float = 0.0
    month: str = ""
    """Which `spent` is of."""
    spent: int | None = None
    """Nano-dollars in the books, of all processes; None: not known yet."""
    unbooked: int = 0
    """Nano-dollars of `month` in `pending` and `flushes`."""
    soft: int | None = None
    hard: int | None = None
    warned: set[int] = attrs.field(factory=set)
    """Budgets of `month` that are spent and told of."""
    looked_at: float = 0.0


@final
class Costs:
    """A process's bookings, and the standing of the orgs it serves; lent out by `open_costs`."""

    def __init__(
        self,
        prices: Prices,
        settings: config.Costs,
        *,
        worker: str,
        cache: CacheLife = "5m",
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is sent until `flush`.

        Args:
          prices: what tokens cost.
          settings: how long books are kept, how many cells may wait, budgets.
          worker: unique to one run of one process.
          cache: how long what is written to providers' caches lives there.
          wall: seconds since the epoch.
        """
        self.prices = prices
        self._settings = settings
        self._worker = worker
        self._cache: CacheLife = cache
        self._wall = wall
        self._orgs: dict[str, _Org] = {}
        self._cells = 0  # in `pending` of all orgs
        self._flush_number = 0
        self._flushing = trio.Lock()
        self._urgent = trio.Event()  # an org is in use of which nothing is known
        self._indexed: dict[str, int] = {}  # org -> the hour in which it was named to all

    # -- booking -------------------------------------------------------------------------------

    def book(
        self,
        *,
        reason: Reason,
        provider: str,
        model: str,
        usage: TokenUsage,
        org: str,
        user: str = "",
        assignment: str = "",
        asked: str | None = None,
        batch: bool = False,
    ) -> None:
        """Book what one request cost. Not a checkpoint; never fails.

        Args:
          reason: what it was spent on.
          provider: the endpoint's name.
          model: the one that answered.
          usage: tokens as the provider counted them; without any, nothing is booked.
          org: who pays.
          user: for whom it was; empty where it was for nobody in particular.
          assignment: for which task; likewise.
          asked: the model that was asked for: its price counts where the answer's name has none.
          batch: it was asked for in a batch.
        """
        tokens = usage.input + usage.cache_write + usage.cache_read + usage.output
        if not tokens:
            return
        price = self.prices.find(provider=provider, model=model)
        if price is None and asked is not None:
            price = self.prices.find(provider=provider, model=asked)
        nano = 0 if price is None else price.nano(usage, cache=self._cache, batch=batch)
        unpriced = tokens if price is None else 0
        model = model[:NAME_CHARACTERS_MAX]
        counts = (usage.input, usage.cache_write, usage.cache_read, usage.output)
        now_s = int(self._wall())
        self._keep(
            org,
            now_s // HOUR_S,
            Cell(user, assignment[:NAME_CHARACTERS_MAX], provider, model, reason),
            [1, *counts, nano, unpriced],
        )
        state = self._use(org)
        if month_of(now_s) == state.month:
            state.unbooked += nano
        metrics.cost_nanodollars.labels(provider, model, reason).inc(nano)
        metrics.cost_requests.labels(provider, model, reason).inc()
        if unpriced:
            metrics.cost_unpriced_tokens.labels(provider, model, reason).inc(unpriced)

    def _keep(self, org: str, hour: int, cell: Cell, amounts: Amounts) -> None:
        cells = self._use(org).pending.setdefault(hour, {})
        if cell not in cells and self._cells >= self._settings.cells_max:
            cell = attrs.evolve(cell, user=OTHERS, assignment=OTHERS)
        if cell not in cells:
            self._cells += 1
        _add(cells.setdefault(cell, [0] * len(MEASURES)), amounts)

    # -- the books -----------------------------------------------------------------------------

    async def flush(self, redis: Redis) -> None:
        """Write everything that is booked now; one script an org, hour and CELLS_PER_FLUSH cells.

        Raises:
          RedisError: not everything was written; the next call goes on where this one stopped.

        Cancellation: likewise; nothing is written twice.
        """
        async with self._flushing:
            for name, org in list(self._orgs.items()):
                self._number(org)
                while org.flushes:
                    await self._send(redis, name, org, org.flushes[0])

    def _number(self, org: _Org) -> None:
        """Turn what is pending into flushes, behind those that wait already."""
        for hour, cells in org.pending.items():
            self._cells -= len(cells)
            items = iter(cells.items())
            while part := dict(islice(items, CELLS_PER_FLUSH)):
                self._flush_number += 1
                org.flushes.append(Flush(self._flush_number, hour, part))
        org.pending.clear()

    async def _send(self, redis: Redis, name: str, org: _Org, flush: Flush) -> None:
        keys = Keys.of(name)
        if self._indexed.get(name) != flush.hour:  # named first: books nobody finds are lost
            await redis.zadd(ORGS, {name: flush.hour}, gt=True)
            await redis.expire(ORGS, self._settings.keep_days * DAY_S)
            self._indexed[name] = flush.hour
        await script("cost_book")(
            redis,
            [
                keys.flushed(self._worker),
                *(keys.hour(flush.hour), keys.users(flush.hour), keys.hours),
                keys.month(month_of(flush.hour * HOUR_S)),
            ],
            flush.arguments(self._settings),
        )
        org.flushes.popleft()
        if month_of(flush.hour * HOUR_S) == org.month:
            nano = sum(amounts[NANO_AT] for amounts in flush.cells.values())
            org.unbooked -= nano
            if org.spent is not None:
                org.spent += nano

    # -- budgets -------------------------------------------------------------------------------

    def watch(self, org: str) -> None:
        """Say that an org is about to be used, so that its standing is known. Not a checkpoint."""
        self._use(org)

    def check(self, org: str) -> None:
        """Refuse what an org has no money left for. Not a checkpoint, and no round trip.

        Raises:
          BudgetExhausted: its hard budget of this month is spent.
        """
        if self.is_exhausted(org):
            metrics.cost_budget_refusals.labels(org).inc()
            raise BudgetExhausted(
                "your school's budget for feedback is used up for this month; your text is safe, "
                "and you can still hand it in"
            )

    def check_grading(self, org: str) -> None:
        """Say that an essay that is handed in has to wait for money. Not a checkpoint.

        Raises:
          BudgetExhausted: likewise; with a time after which asking again makes sense.
        """
        if self.is_exhausted(org):
            waits = BudgetExhausted(
                "your essay is handed in and kept; your school's budget is used up for this month, "
                "and it will be graded when there is money again"
            )
            waits.retry_after_s = GRADING_RETRY_S
            raise waits

    def is_exhausted(self, org: str) -> bool:
        """Whether the hard budget is spent, as far as is known. Not a checkpoint."""
        state = self._use(org)
        if state.hard is None or state.spent is None:
            return False
        if state.month != month_of(int(self._wall())):
            return False  # a new month, of which nothing is known yet
        return state.spent + state.unbooked >= state.hard

    def _use(self, org: str) -> _Org:
        state = self._orgs.get(org)
        if state is None:
            state = self._orgs[org] = _Org()
        if state.spent is None:
            self._urgent.set()
        state.used_at = trio.current_time()
        return state

    async def refresh(self, redis: Redis) -> None:
        """Learn what all processes have booked on the orgs in use, and their budgets.

        Raises:
          RedisError: Redis is away; what was known stays.
        """
        month = month_of(int(self._wall()))
        now = trio.current_time()
        stale, recent = now - WATCH_S, now - LOOK_S
        for name, org in list(self._orgs.items()):
            if org.used_at < stale and not (org.pending or org.flushes):
                del self._orgs[name]
                self._indexed.pop(name, None)
            elif org.hard is not None or org.soft is not None or org.looked_at < recent:
                await self._look(redis, name, org, month)

    async def _look(self, redis: Redis, name: str, org: _Org, month: str) -> None:
        keys = Keys.of(name)
        pipeline = redis.pipeline(transaction=False)
        pipeline.hmget(keys.month(month), ["nano"])
        pipeline.hmget(keys.budget, ["soft", "hard"])
        (spent,), live = await pipeline.execute()
        if org.month != month:
            org.month = month
            org.warned.clear()
            org.unbooked = sum(
                amounts[NANO_AT]
                for hour, cells in _unbooked(org)
                if month_of(hour * HOUR_S) == month
                for amounts in cells.values()
            )
        org.spent, org.looked_at = int(spent or 0), trio.current_time()
        org.soft, org.hard = self._budget(name, live)
        if most := org.hard or org.soft:
            metrics.cost_budget_used.labels(name).set(org.spent / most)
        for level, budget in (("soft", org.soft), ("hard", org.hard)):
            if budget is not None and 0 < org.spent >= budget and budget not in org.warned:
                await self._tell(redis, name, org, level, budget)

    def _budget(self, name: str, live: list[bytes | None]) -> tuple[int | None, int | None]:
        """The soft and hard budget in nano-dollars: as set live, else by the settings."""
        set_live = [None if amount is None else int(amount) for amount in live]
        if any(amount is not None for amount in set_live):
            soft, hard = set_live
            return soft, hard
        settings = self._settings.budget.get(name) or self._settings.budget.get(OTHERS)
        if settings is None:
            return None, None
        to_nano = partial(self.prices.to_nano, currency=self._settings.currency)
        return (
            None if settings.soft is None else to_nano(settings.soft),
            None if settings.hard is None else to_nano(settings.hard),
        )

    async def _tell(self, redis: Redis, name: str, org: _Org, level: str, budget: int) -> None:
        """Tell the operator, unless another process has, that an org has spent a budget."""
        key = Keys.of(name).month(org.month)
        is_first = await redis.hsetnx(key, f"told:{budget}", "1")
        org.warned.add(budget)
        if is_first:
            metrics.cost_budget_alerts.labels(name, level).inc()
            log.warning("budget_spent", org=name, month=org.month, budget=level)

    # -- the service ---------------------------------------------------------------------------

    async def run(self, redis: Redis) -> None:
        """Flush and refresh every `flush_s`, sooner for an org that is new; until cancelled."""
        is_away = False
        while True:
            with trio.move_on_after(self._settings.flush_s):
                await self._urgent.wait()
            self._urgent = trio.Event()
            try:
                await self.flush(redis)
                await self.refresh(redis)
                is_away = False
            except RedisError as error:
                if not is_away:
                    log.warning("costs_wait_for_redis", error=str(error))
                is_away = True
                await trio.sleep(self._settings.flush_s)
            await trio.sleep(ROUND_S_MIN)

    async def close(self, redis: Redis) -> None:
        """Write what is left, however often Redis does not answer; the caller says for how long."""
        while self.left:
            try:
                await self.flush(redis)
            except RedisError as error:
                log.warning("costs_wait_for_redis", error=str(error))
                await trio.sleep(CLOSE_S_MAX / 10)

    @property
    def left(self) -> int:
        """How many cells are not known to be in the books."""
        return sum(len(cells) for org in self._orgs.values() for _, cells in _unbooked(org))


@asynccontextmanager
async def open_costs(
    redis: Redis,
    prices: Prices,
    settings: config.Costs,
    *,
    worker: str,
    cache: CacheLife = "5m",
) -> AsyncIterator[Costs]:
    """Keep a process's books; leaving writes what is left, for CLOSE_S_MAX at most.

    Args:
      redis: where the books are; must outlive this block.
      prices: what tokens cost.
      settings: see `config.Costs`.
      worker: unique to one run of one process.
      cache: how long what is written to providers' caches lives there.
    """
    costs = Costs(prices, settings, worker=worker, cache=cache)
    try:
        async with running(partial(costs.run, redis)):
            yield costs
    finally:
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            await costs.close(redis)
        if costs.left:
            log.error("costs_lost", cells=costs.left)


# -- where the books are -----------------------------------------------------------------------

ORGS: Final = "cost:orgs"
"""ZSET: every org that has books, by the hour of its last booking since some process's start."""


@attrs.frozen
class Keys:
    """The keys of one org's books; they share a hash tag."""

    tag: str

    @classmethod
    def of(cls, org: str) -> Keys:
        """Quoted: a brace in a name would move its keys into another's hash tag."""
        return cls(f"cost:{{{quote(org, safe='')}}}")

    def hour(self, hour: int) -> str:
        """HASH; see cost_book.lua."""
        return f"{self.tag}:{datetime.fromtimestamp(hour * HOUR_S, UTC):%Y-%m-%dT%H}"

    def users(self, hour: int) -> str:
        """HASH: the hour's costs by user as well."""
        return f"{self.hour(hour)}:users"

    @property
    def hours(self) -> str:
        """ZSET: the hours that have books."""
        return f"{self.tag}:hours"

    def month(self, month: str) -> str:
        """HASH: totals, and `told:<nano>` for each budget that was spent and told of."""
        return f"{self.tag}:month:{month}"

    @property
    def budget(self) -> str:
        """HASH: soft and hard in nano-dollars, set while coach runs; without a TTL."""
        return f"{self.tag}:budget"

    def flushed(self, worker: str) -> str:
        """STRING: the last flush of one process."""
        return f"{self.tag}:flushed:{worker}"


def month_of(seconds: int) -> str:
    """The month (UTC) of a moment in seconds since the epoch, as `2026-11`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m}"


def _unbooked(org: _Org) -> list[tuple[int, dict[Cell, Amounts]]]:
    """Cells that are not known to be in the books, by hour."""
    return [*org.pending.items(), *((flush.hour, flush.cells) for flush in org.flushes)]


def _add(sums: Amounts, amounts: Amounts) -> None:
    for index, amount in enumerate(amounts):
        sums[index] += amount
