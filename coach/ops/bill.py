"""Reading the books: who spent what on what, and when. And budgets that are set while coach runs.

A question names an org or all of them, a user or all of them, hours (UTC) from one to another, and
what the answer is broken down by. Costs by user are kept for `costs.user_days` only; whatever does
not ask for users is answered from what is kept for `costs.keep_days`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, cast, final, get_args

import attrs
import msgspec

from ..errors import BadMessage
from ..store import Redis, script
from .costs import HOUR_S, MEASURES, NANO_AT, ORGS, Amounts, Keys, _add
from .prices import Prices

Dimension = Literal[
    "org", "hour", "day", "month", "user", "assignment", "provider", "model", "reason"
]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
_TIMES: Final = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
HOURS_PER_READ: Final = 100
"""Hours fetched in one round trip."""
ORGS_MAX: Final = 100_000
NOBODY: Final = ""
"""Whose costs those of erased users are."""


@attrs.frozen(kw_only=True)
class Question:
    """What a bill is to be of; made by `ask_for_bill`."""

    org: str | None
    """None: all."""
    user: str | None
    """None: all."""
    by: tuple[Dimension, ...]
    """What its lines are told apart by."""
    since: int
    """First hour, since the epoch."""
    until: int
    """First hour that is not asked about."""

    @property
    def needs_users(self) -> bool:
        """Only the books by user can answer."""
        return self.user is not None or "user" in self.by


@final
@attrs.frozen(kw_only=True)
class Bill:
    """What was spent: the sums of each group, and of all of them."""

    question: Question
    lines: Mapping[tuple[str, ...], Amounts]
    """By the values of `question.by`; times in their order, others by cost, the highest first."""

    @property
    def total(self) -> Amounts:
        """The sums over all lines."""
        total = [0] * len(MEASURES)
        for amounts in self.lines.values():
            _add(total, amounts)
        return total

    def rows(self) -> Iterator[dict[str, str | int]]:
        """A flat record a line: the group's values, then the measures; `nano` as kept."""
        for group, amounts in self.lines.items():
            yield {
                **dict(zip(self.question.by, group, strict=True)),
                **dict(zip(MEASURES, amounts, strict=True)),
            }

    def as_json(self, prices: Prices, currency: str) -> dict[str, Any]:
        """For programs; costs are exact decimals in strings, in `currency`.

        Raises:
          ConfigurationError: no rate is known for `currency`.
        """
        hours = self.question.since, self.question.until - 1
        since, until = (_moment(hour).strftime(_TIMES["hour"]) for hour in hours)

        def priced(row: dict[str, Any]) -> dict[str, Any]:
            cost = prices.from_nano(row.pop("nano"), currency)
            return {**row, "cost": f"{cost:f}"}

        return {
            "from": since,
            "to": until,
            "currency": currency,
            "by": list(self.question.by),
            "lines": [priced(dict(row)) for row in self.rows()],
            "total": priced(dict(zip(MEASURES, self.total, strict=True))),
        }


def ask_for_bill(
    *, org: str | None, user: str | None, by: str, since: str | None, until: str | None
) -> Question:
    """Read a question as people put it.

    Args:
      org: or None for all.
      user: or None for all.
      by: dimensions, comma-separated.
      since: the first month, day or hour (UTC), as `2026-11`, `2026-11-25`, `2026-11-25T08`; None:
        this month's first.
      until: the last one, likewise and included; None: now.

    Raises:
      BadMessage: something else stands there; the message says what may.
    """
    names = tuple(name.strip() for name in by.split(","))
    wrong = [name for name in names if name not in DIMENSIONS]
    if wrong or len(set(names)) < len(names):
        raise BadMessage(f"by: some of {', '.join(DIMENSIONS)}, each once; not {by!r}")
    now = datetime.now(UTC)
    first = _period("from", since)[0] if since else now.replace(day=1, hour=0, minute=0)
    end = _period("to", until)[1] if until else now + timedelta(hours=1)
    question = Question(
        org=org,
        user=user,
        by=cast("tuple[Dimension, ...]", names),
        since=int(first.timestamp()) // HOUR_S,
        until=int(end.timestamp()) // HOUR_S,
    )
    if question.until <= question.since:
        raise BadMessage("from: it is after to")
    return question


async def read_bill(redis: Redis, question: Question) -> Bill:
    """Add up the books. Reads each hour that has any once, HOURS_PER_READ in a round trip.

    Raises:
      RedisError: it is away.
    """
    lines: dict[tuple[str, ...], Amounts] = {}
    async for org in _orgs(redis, question):
        async for hour, field, amounts in _cells(redis, org, question):
            user, assignment, provider, model, reason = field
            if question.user not in (None, user):
                continue
            moment = _moment(hour)
            values = {
                **{name: moment.strftime(form) for name, form in _TIMES.items()},
                "org": org,
                "user": user,
                "assignment": assignment,
                "provider": provider,
                "model": model,
                "reason": reason,
            }
            group = tuple(values[name] for name in question.by)
            _add(lines.setdefault(group, [0] * len(MEASURES)), amounts)
    by_time = [at for at, name in enumerate(question.by) if name in _TIMES]
    ordered = sorted(
        lines.items(),
        key=lambda line: ([line[0][at] for at in by_time], -line[1][NANO_AT], line[0]),
    )
    return Bill(question=question, lines=dict(ordered))


async def _orgs(redis: Redis, question: Question) -> AsyncIterator[str]:
    if question.org is not None:
        yield question.org
        return
    for org in await redis.execute_command("ZRANGE", ORGS, 0, ORGS_MAX):
        yield org.decode()


async def _cells(
    redis: Redis, org: str, question: Question
) -> AsyncIterator[tuple[int, list[str], list[int]]]:
    """Hour, the five values of a field, and the amounts, of everything asked about."""
    keys = Keys.of(org)
    hours = [
        int(hour)
        for hour in await redis.execute_command(
            "ZRANGEBYSCORE", keys.hours, question.since, f"({question.until}"
        )
    ]
    for start in range(0, len(hours), HOURS_PER_READ):
        part = hours[start : start + HOURS_PER_READ]
        pipeline = redis.pipeline(transaction=False)
        for hour in part:
            pipeline.hgetall(keys.users(hour) if question.needs_users else keys.hour(hour))
        for hour, cells in zip(part, await pipeline.execute(), strict=True):
            for field, amounts in cells.items():
                values = msgspec.json.decode(field, type=list[str])
                values = values if question.needs_users else ["", *values]
                yield hour, values, [int(amount) for amount in amounts.split()]


async def erase_user(redis: Redis, *, org: str, user: str) -> int:
    """Book what a user has cost on nobody; all sums stay. Returns in how many hours there was any.

    What processes have not yet written comes in with their next flush (`costs.flush_s`).

    Raises:
      RedisError: it is away; some hours may be left.
    """
    keys = Keys.of(org)
    whose, nobody = (msgspec.json.encode([name]).decode()[:-1] + "," for name in (user, NOBODY))
    count = 0
    for hour in await redis.execute_command("ZRANGE", keys.hours, 0, -1):
        count += bool(await script("cost_erase")(redis, [keys.users(int(hour))], [whose, nobody]))
    return count


# -- budgets -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LiveBudget:
    """An org's budget as it was set while coach runs, in nano-dollars."""

    soft: int | None
    hard: int | None


async def set_budget(redis: Redis, org: str, budget: LiveBudget | None) -> None:
    """Set an org's budget, in place of the settings', until it is cleared (None).

    Processes follow within a second, within ten where the org had none.
    """
    key = Keys.of(org).budget
    pipeline = redis.pipeline()
    pipeline.delete(key)
    if budget is not None:
        for name, amount in (("soft", budget.soft), ("hard", budget.hard)):
            if amount is not None:
                pipeline.hset(key, name, str(amount))
    await pipeline.execute()


async def read_budget(redis: Redis, org: str) -> LiveBudget | None:
    """The budget that was set while coach runs; None: the settings decide."""
    soft, hard = await redis.execute_command("HMGET", Keys.of(org).budget, "soft", "hard")
    if soft is None and hard is None:
        return None
    return LiveBudget(
        soft=None if soft is None else int(soft), hard=None if hard is None else int(hard)
    )


async def spent_this_month(redis: Redis, org: str, month: str) -> int:
    """Nano-dollars in an org's books of a month, as `2026-11`."""
    return int(await redis.execute_command("HGET", Keys.of(org).month(month), "nano") or 0)


def amount_of(text: str) -> Decimal:
    """An amount of money as a person writes it.

    Raises:
      BadMessage: it is none.
    """
    try:
        amount = Decimal(text)
    except ArithmeticError:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise BadMessage(f"{text!r} is not an amount of money, like 250 or 49.90")
    return amount


def _moment(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * HOUR_S, UTC)


def _period(name: str, text: str) -> tuple[datetime, datetime]:
    """The first moment of a month, day or hour, and the first after it."""
    for unit, form in _TIMES.items():
        try:
            first = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if unit == "month":
            return first, (first + timedelta(days=32)).replace(day=1)
        return first, first + timedelta(days=1 if unit == "day" else 0, hours=unit == "hour")
    raise BadMessage(
        f"{name}: a month, a day or an hour (UTC), as 2026-11, 2026-11-25, 2026-11-25T08"
    )
