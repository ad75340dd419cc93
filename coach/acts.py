"""What an operator may do on the bridge. Each act is written to the audit stream before it is done.

audit           STREAM  {at, who, action, detail}; the last AUDIT_MAX of them
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import structlog
import trio
from msgspec import Meta

from . import control
from .budget import DIMENSIONS, LASTS_S_MAX, LIMIT_MAX, say_quota, unsay_quota
from .errors import BadMessage, Overloaded
from .grading import Bulk, Desk, Mode
from .ops import FLAGS, Flag, write_flag
from .second_grades import estimate_regrade

if TYPE_CHECKING:
    from . import config
    from .backend import Backend, Endpoint
    from .grading import Chosen
    from .host import Host
    from .second_grades import RegradeEstimate
    from .session import Identity
    from .store import Redis

log = structlog.get_logger()

AUDIT_MAX: Final = 10_000
HOLD_S: Final = 600.0
"""How long a provider is left alone at an operator's word."""

Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
"""In any 60 s."""


class Lane(msgspec.Struct, tag="lane", frozen=True, forbid_unknown_fields=True):
    """Hand out a lane's jobs, or keep them."""

    lane: Literal["interactive", "submission", "background"]
    mode: Mode


class Dead(msgspec.Struct, tag="dead", frozen=True, forbid_unknown_fields=True):
    """Grade an essay again that was given up, or drop it for good."""

    id: str
    what: Literal["retry", "drop"]


class SetFlag(msgspec.Struct, tag="flag", frozen=True, forbid_unknown_fields=True):
    """Use a part of coach for so many users of a hundred; null: as in the settings."""

    flag: str
    percent: int | None


class Erase(msgspec.Struct, tag="erase", frozen=True):
    """Leave nothing of a user, who is not named here: that would be something."""

    org: str
    pseudonym: str
    """As providers know the user."""


class Breaker(msgspec.Struct, tag="breaker", frozen=True, forbid_unknown_fields=True):
    """Leave a provider alone for a while, or let requests in again."""

    provider: str
    what: Literal["hold", "reset"]


class SetQuota(msgspec.Struct, tag="quota", frozen=True, forbid_unknown_fields=True):
    """Let an endpoint's quota be another one for a while; no limits: as in the settings."""

    provider: str
    limits: dict[Literal["requests", "input", "output", "tokens"], Limit] = {}
    hours: Annotated[float, Meta(ge=0.01, le=LASTS_S_MAX / 3_600)] = 24.0
    may_exceed: bool = False
    """Also where it is more than the settings say."""


class Workers(msgspec.Struct, tag="workers", frozen=True, forbid_unknown_fields=True):
    """Have this host's workers drain, one by one, each when a new one has taken its place."""

    what: Literal["renew"]
    slot: str | None = None
    """Only the worker in this place."""


Percent = Annotated[float, Meta(gt=0, le=100)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Essays that may be graded again: of an assignment, in an org."""

    org: Name
    assignment: Name
    percent: Percent | None = None
    """A sample for an audit, of so many in a hundred; None: all."""
    batch: bool = False
    """By the providers' batch APIs."""


class Regrade(Estimate, tag="regrade", frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Have them graded again, in the background."""

    job: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Made by the page, so that it is one job however often this arrives."""
    essays: Annotated[int, Meta(ge=1)]
    """As many as the operator was told the price of; no more are graded."""


class Job(msgspec.Struct, tag="bulk", frozen=True, forbid_unknown_fields=True):
    """Pause a job of second grades, go on with it, or stop it for good."""

    job: str
    mode: Literal["running", "paused", "stopped"]


Action = Lane | Dead | SetFlag | Breaker | SetQuota | Workers | Regrade | Job


def doer(action: Action, app: Host, who: Identity) -> Callable[[], Awaitable[str]]:
    """How to do it; what it returns is said to the operator.

    Raises:
      BadMessage: it cannot be done; nothing was.
    """
    backend = app.opened().backend
    desk = Desk(backend.redis, app.settings.grading)
    match action:
        case Lane():
            return partial(_set_mode, desk, action)
        case Dead():
            return partial(_settle, desk, action)
        case SetFlag(name, percent):
            flag = next((each for each in FLAGS if each == name), None)
            if flag is None or not (percent is None or 0 <= percent <= 100):
                raise BadMessage(f"a flag is one of {', '.join(FLAGS)}, its percent 0 to 100")
            return partial(_set_flag, backend.redis, flag, percent)
        case Breaker(name, what):
            return partial(_move, _endpoint(backend, name), what)
        case SetQuota(name):
            return partial(
                _set_quota, backend.redis, app.settings, _endpoint(backend, name), action
            )
        case Workers():
            if not control.is_supervised():
                raise BadMessage("no coach serve is above this worker: restart it by what began it")
            return partial(_renew, action.slot)
        case Regrade():
            return partial(_regrade, app, action, who.user)
        case Job():
            return partial(_move_job, app, action)


async def _set_mode(desk: Desk, action: Lane) -> str:
    count = await desk.set_mode([action.lane], action.mode)
    return f"lane {action.lane} is {action.mode}; {count:,} unfinished"


async def _settle(desk: Desk, action: Dead) -> str:
    done = (
        await desk.replay(action.id)
        if action.what == "retry"
        else await desk.cancel(action.id, reason="dropped on the bridge")
    )
    return f"{action.id}: it was {done[0].was}" if done else f"{action.id}: nobody knows it"


async def _set_flag(redis: Redis, flag: Flag, percent: int | None) -> str:
    await write_flag(redis, flag, percent)
    return f"{flag}: {'as in the settings' if percent is None else f'{percent} %'}"


async def _move(endpoint: Endpoint, what: Literal["hold", "reset"]) -> str:
    name = endpoint.provider.name
    if what == "hold":
        endpoint.circuit.hold(HOLD_S)
        await trio.lowlevel.checkpoint()
        return f"{name} is left alone for {HOLD_S / 60:.0f} minutes"
    await endpoint.circuit.reset()
    return f"{name} is asked again"


async def _set_quota(
    redis: Redis, settings: config.Settings, endpoint: Endpoint, action: SetQuota
) -> str:
    name = endpoint.provider.name
    if not action.limits:
        await unsay_quota(redis, name)
        return f"{name}: its quota is as in the settings"
    now = await say_quota(
        redis,
        endpoint.settings,
        settings.budget,
        {str(dimension): limit for dimension, limit in action.limits.items()},
        may_exceed=action.may_exceed,
        lasts_s=action.hours * 3_600,
    )
    quota = zip(DIMENSIONS, now.quota, strict=True)
    said = ", ".join(f"{dimension} {limit:,}" for dimension, limit in quota if limit)
    return f"{name}: {said} a minute, for {action.hours:g} h"


async def _renew(slot: str | None) -> str:
    await trio.lowlevel.checkpoint()
    try:
        control.ask_to_renew(slot)
    except OSError as error:
        raise Overloaded(f"coach serve takes nothing in: {error}", retry_after_s=1) from error
    if slot is None:
        return "the workers of this host are renewed, one by one"
    return f"worker {slot} is renewed: it drains when a new one has taken its place"


async def choose(app: Host, asked: Estimate) -> tuple[list[Chosen], RegradeEstimate]:
    """The essays that would be graded again, and what that may cost.

    Raises:
      BadMessage: they are too many.
      ConfigurationError: there is no provider.
    """
    backend = app.opened().backend
    chosen = await bulk_of(app).choose(
        asked.org, assignment=asked.assignment, percent=asked.percent
    )
    prices = backend.costs.prices
    return chosen, estimate_regrade(chosen, app.settings, backend.rubric, prices, batch=asked.batch)


def bulk_of(app: Host) -> Bulk:
    """A handle on the jobs of second grades."""
    backend = app.opened().backend
    return Bulk(backend.redis, backend.queue, app.settings.grading)


async def _regrade(app: Host, action: Regrade, by: str) -> str:
    chosen, _ = await choose(app, action)
    ids = [each.id for each in chosen][: action.essays]
    if not ids:
        return f"{action.org} has no essay of {action.assignment} to grade again"
    job = await bulk_of(app).open(
        action.org,
        "regrade" if action.percent is None else "audit",
        ids,
        by=by,
        way="batch" if action.batch else "live",
        job=action.job,
    )
    return f"{job}: {len(ids):,} essays are graded again, in the background"


async def _move_job(app: Host, action: Job) -> str:
    bulk = bulk_of(app)
    found = await bulk.find(action.job)
    if found is None:
        return f"{action.job}: nobody knows it"
    found = await bulk.set_mode(found, action.mode)
    return f"{found.id} is {found.mode}; {found.waiting:,} of {found.total:,} are not begun"


def _endpoint(backend: Backend, name: str) -> Endpoint:
    """The provider of this name.

    Raises:
      BadMessage: there is none.
    """
    found = {each.provider.name: each for each in backend.endpoints}
    if name not in found:
        raise BadMessage(f"a provider is one of {', '.join(found)}")
    return found[name]


async def write_audit(redis: Redis, *, who: str, action: msgspec.Struct) -> None:
    """Write down who is about to do what.

    Raises:
      RedisError: it may not stand there; do nothing then.
    """
    detail = msgspec.json.encode(action).decode()
    name = type(action).__struct_config__.tag
    log.info("operator_acts", who=who, action=name, detail=detail)
    await redis.xadd(
        "audit",
        {"at": f"{time.time():.3f}", "who": who, "action": str(name), "detail": detail},
        maxlen=AUDIT_MAX,
    )
