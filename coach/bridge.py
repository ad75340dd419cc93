"""The operators' bridge: what a host is doing, live and for the last hour, and what can be done.

One worker of a host at a time samples its metrics into a Redis stream; who watches reads that
stream, so that watchers cost the same however many there are. Whatever an operator does is written
to the audit stream before it is done.

    ops:<host>      STREAM  {vitals: JSON}; an hour of it; gone two hours after the last one
    sampler:<host>  STRING  the worker that samples
    audit           STREAM  {at, who, action, detail}; the last AUDIT_MAX of them
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import attrs
import msgspec
import structlog
import trio
from msgspec import Meta
from quart import Blueprint, Response, jsonify, request

from .budget import DIMENSIONS, LASTS_S_MAX, LIMIT_MAX, said_for_s, say_quota, unsay_quota
from .errors import BadMessage
from .grading import Desk, Mode
from .host import caller_as, current_host
from .ops import FLAGS, Flag, Reading, metrics, read, vitals, write_flag
from .store import Redis, RedisError, hold_lease

if TYPE_CHECKING:
    from . import config
    from .backend import Backend, Endpoint
    from .host import Host
    from .session import Identity

log = structlog.get_logger()

SAMPLE_S: Final = 5.0
FIRST_S: Final = 1.0
"""From the first reading of a sampler to its second, with which it has something to say."""
SAMPLES_MAX: Final = 720
"""Kept: an hour."""
WINDOW_S: Final = 60.0
"""Over which rates and percentiles are taken."""
LEASE_MS: Final = 12_000
TTL_S: Final = 7_200
AUDIT_MAX: Final = 10_000
AUDIT_SHOWN: Final = 50
WATCH_S: Final = 1.0
"""How long a watcher sleeps in Redis at a time: how late it hears that the worker drains."""
DEAD_SHOWN: Final = 50
HOLD_S: Final = 600.0
"""How long a provider is left alone at an operator's word."""

bridge = Blueprint("bridge", __name__)


# -- sampling ------------------------------------------------------------------------------------


async def run_sampler(redis: Redis, *, worker: str) -> None:
    """Sample this host's metrics for as long as no other of its workers does; until cancelled."""
    host = host_name()
    readings: deque[Reading] = deque()
    while True:
        try:
            if await hold_lease(redis, f"sampler:{host}", worker, LEASE_MS):
                now = read(metrics.registry().collect(), time.time())
                readings.append(now)
                while readings[0].at < now.at - WINDOW_S - SAMPLE_S / 2:
                    readings.popleft()
                if len(readings) > 1:
                    record = msgspec.json.encode(vitals(readings[0], now))
                    await redis.xadd(f"ops:{host}", {"vitals": record}, maxlen=SAMPLES_MAX)
                    await redis.expire(f"ops:{host}", TTL_S)
            else:
                readings.clear()
        except RedisError as error:
            log.debug("not_sampled", error=str(error))
        await trio.sleep(SAMPLE_S if len(readings) != 1 else min(SAMPLE_S, FIRST_S))


def host_name() -> str:
    """As operators know this machine."""
    return socket.gethostname()


# -- watching ------------------------------------------------------------------------------------


@bridge.get("/ops")
async def _page() -> Response:
    return await current_host().send_static_file("ops.html")


@bridge.get("/api/ops/stream")
async def _stream() -> Response:
    """Server-sent events: the last hour's vitals, each an event, then those that come."""
    await _operator()
    app = current_host()
    redis = app.opened().backend.redis

    async def events() -> AsyncIterator[bytes]:
        last = b"0-0"
        yield b"retry: 2000\n\n"
        while not app.opened().sessions.draining:
            try:
                found: Any = await redis.xread(
                    {f"ops:{host_name()}": last}, block=round(WATCH_S * 1000), count=SAMPLES_MAX
                )
            except RedisError:
                return  # the page comes back
            entries = [entry for of_key in found.values() for entry in of_key]
            for last, fields in entries:
                yield b"id: %s\ndata: %s\n\n" % (last, fields[b"vitals"])
            if not entries:
                yield b": here\n\n"

    response = Response(events(), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.timeout = None
    return response


@bridge.get("/api/ops/audit")
async def _audit() -> Response:
    """The newest entries first: `[{at, who, action, detail}]`."""
    await _operator()
    redis = current_host().opened().backend.redis
    found: Any = await redis.xrevrange("audit", count=AUDIT_SHOWN)
    return jsonify(
        [{key.decode(): value.decode() for key, value in entry.items()} for _, entry in found]
    )


@bridge.get("/api/ops/dead")
async def _dead() -> Response:
    """Essays that were given up, the newest first."""
    await _operator()
    app = current_host()
    desk = Desk(app.opened().backend.redis, app.settings.grading)
    jobs = [job async for job in desk.jobs("dead", newest_first=True, count_max=DEAD_SHOWN)]
    return jsonify([attrs.asdict(job) for job in jobs])


@bridge.get("/api/ops/quotas")
async def _quotas() -> Response:
    """What endpoints allow now, and for how long an operator's word on it still counts."""
    await _operator()
    backend = current_host().opened().backend
    found = []
    for endpoint in backend.endpoints:
        await endpoint.budget.statistics()  # it hears of operators' words with every answer
        quota = zip(DIMENSIONS, endpoint.budget.capacity.quota, strict=True)
        found.append(
            {
                "provider": endpoint.provider.name,
                "quota": {name: limit for name, limit in quota if limit},
                "said_for_s": await said_for_s(backend.redis, endpoint.provider.name),
            }
        )
    return jsonify(found)


# -- doing ---------------------------------------------------------------------------------------


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


Action = Lane | Dead | SetFlag | Breaker | SetQuota | Workers


@bridge.post("/api/ops/actions")
async def _act() -> Response:
    """Do one thing, and say what became of it; it stands in the audit first."""
    who = await _operator()
    app = current_host()
    try:
        action = msgspec.json.decode(await request.get_data(), type=Action)
    except msgspec.MsgspecError as error:
        raise BadMessage(f"not an action: {error}") from error
    redis = app.opened().backend.redis
    do = _doer(action, app, Desk(redis, app.settings.grading))
    await write_audit(redis, who=f"{who.org}/{who.user}", action=action)
    return jsonify({"said": await do()})


def _doer(action: Action, app: Host, desk: Desk) -> Callable[[], Awaitable[str]]:
    """How to do it; what it returns is said to the operator.

    Raises:
      BadMessage: it cannot be done; nothing was.
    """
    backend = app.opened().backend
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
            if not app.supervised:
                raise BadMessage("no coach serve is above this worker: restart it by what began it")
            return _renew


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


async def _renew() -> str:
    os.kill(os.getppid(), signal.SIGHUP)
    await trio.lowlevel.checkpoint()
    return f"the workers of {host_name()} are renewed, one by one"


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


async def _operator() -> Identity:
    """Who asks, if that is an operator.

    Raises:
      Unauthenticated, Forbidden: it is not.
    """
    return await caller_as("operator", "the bridge is for operators")
