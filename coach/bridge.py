"""The operators' bridge: what a host is doing, live and for the last hour, and what can be done.

One worker of a host at a time samples its metrics into a Redis stream; who watches reads that
stream, so that watchers cost the same however many there are. Whatever an operator does is written
to the audit stream before it is done.

What an operator may do stands in acts.py.

    ops:<host>      STREAM  {vitals: JSON}; an hour of it; gone two hours after the last one
    sampler:<host>  STRING  the worker that samples
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import structlog
import trio
from quart import Blueprint, Response, jsonify, request

from . import acts
from .budget import DIMENSIONS, said_for_s
from .errors import BadMessage
from .grading import Desk
from .host import caller_as, current_host
from .ops import (
    Reading,
    Today,
    metrics,
    note_writing,
    read,
    read_today,
    vitals,
    writing_s,
)
from .store import Redis, RedisError, hold_lease, leave_lease

if TYPE_CHECKING:
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
LEAVE_S_MAX: Final = 1.0
"""For giving it up, when the worker ends."""
TTL_S: Final = 7_200
TODAY_S: Final = 20.0
"""Between two looks into the books of the day."""
AUDIT_SHOWN: Final = 50
WATCH_S: Final = 1.0
"""How long a watcher sleeps in Redis at a time: how late it hears that the worker drains."""
DEAD_SHOWN: Final = 50
JOBS_SHOWN: Final = 20

bridge = Blueprint("bridge", __name__)


# -- sampling ------------------------------------------------------------------------------------


async def run_sampler(redis: Redis, *, worker: str) -> None:
    """Sample this host's metrics for as long as no other of its workers does; until cancelled.

    Then another one may begin at once.
    """
    try:
        await _sample(redis, worker)
    finally:
        with trio.move_on_after(LEAVE_S_MAX, shield=True), suppress(RedisError):
            await leave_lease(redis, f"sampler:{host_name()}", worker)


async def _sample(redis: Redis, worker: str) -> None:
    host = host_name()
    readings: deque[Reading] = deque()
    day = _Day()
    while True:
        try:
            if await hold_lease(redis, f"sampler:{host}", worker, LEASE_MS):
                now = read(metrics.registry().collect(), time.time())
                readings.append(now)
                while readings[0].at < now.at - WINDOW_S - SAMPLE_S / 2:
                    readings.popleft()
                if len(readings) > 1:
                    today = await day.read(redis, writing_s(readings[-2], now))
                    record = msgspec.json.encode(vitals(readings[0], now, today))
                    await redis.xadd(f"ops:{host}", {"vitals": record}, maxlen=SAMPLES_MAX)
                    await redis.expire(f"ops:{host}", TTL_S)
            else:
                readings.clear()
        except RedisError as error:
            log.debug("not_sampled", error=str(error))
        await trio.sleep(SAMPLE_S if len(readings) != 1 else min(SAMPLE_S, FIRST_S))


@attrs.define
class _Day:
    """What the books of the day said last, and when they were read."""

    said: Today | None = None
    at: float = -TODAY_S

    async def read(self, redis: Redis, writing: float) -> Today:
        """Note for how many seconds students were connected; look into the books now and then."""
        await note_writing(redis, writing)
        if self.said is None or trio.current_time() >= self.at + TODAY_S:
            self.said, self.at = await read_today(redis), trio.current_time()
        return self.said


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


@bridge.get("/api/ops/bulk")
async def _bulk() -> Response:
    """Jobs of second grades, the newest first."""
    await _operator()
    jobs = (await acts.bulk_of(current_host()).jobs())[:JOBS_SHOWN]
    return jsonify([attrs.asdict(job) for job in jobs])


@bridge.get("/api/ops/regrade")
async def _estimate() -> dict[str, Any]:
    """What it may cost to grade an assignment's essays again; nothing is begun."""
    await _operator()
    app = current_host()
    try:
        asked = msgspec.convert(request.args.to_dict(), acts.Estimate, strict=False)
    except msgspec.ValidationError as error:
        raise BadMessage(f"not a question: {error}") from error
    _, estimate = await acts.choose(app, asked)
    return estimate.as_json(app.opened().backend.costs.prices, app.settings.costs.currency)


# -- doing ---------------------------------------------------------------------------------------


@bridge.post("/api/ops/actions")
async def _act() -> Response:
    """Do one thing, and say what became of it; it stands in the audit first."""
    who = await _operator()
    app = current_host()
    try:
        action = msgspec.json.decode(await request.get_data(), type=acts.Action)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMessage(f"not an action: {error}") from error
    do = acts.doer(action, app, who)
    await acts.write_audit(app.opened().backend.redis, who=f"{who.org}/{who.user}", action=action)
    return jsonify({"said": await do()})


async def _operator() -> Identity:
    """Who asks, if that is an operator.

    Raises:
      Unauthenticated, Forbidden: it is not.
    """
    return await caller_as("operator", "the bridge is for operators")
