"""The operators' bridge: what a host is doing, live and for the last hour, and what can be done.

One worker of a host at a time samples its metrics into a Redis stream; who watches reads that
stream, so that watchers cost the same however many there are. Whatever an operator does is written
to the audit stream before it is done.

    ops:<host>      STREAM  {vitals: JSON}; an hour of it; gone two hours after the last one
    sampler:<host>  STRING  the worker that samples
    audit           STREAM  {at, who, action, detail}; the last AUDIT_MAX of them
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import attrs
import msgspec
import structlog
import trio
from quart import Blueprint, Response, current_app, jsonify, request

from .errors import BadMessage, Forbidden
from .grading import Desk, Mode
from .ops import FLAGS, Reading, metrics, read, vitals, write_flag
from .store import Redis, RedisError, hold_lease

if TYPE_CHECKING:
    from . import config
    from .backend import Backend
    from .session import Identity, Services, Sessions

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


class Parts(Protocol):
    """What the bridge needs of an open worker."""

    @property
    def backend(self) -> Backend:
        """Redis and the queue."""

    @property
    def services(self) -> Services:
        """Who may come in."""

    @property
    def sessions(self) -> Sessions:
        """Whether the worker drains."""


class Host(Protocol):
    """The application that the blueprint is part of."""

    settings: config.Settings

    def opened(self) -> Parts:
        """The parts; only while the worker serves."""

    async def send_static_file(self, filename: str) -> Response:
        """A file of the pages."""


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
    return await _app().send_static_file("ops.html")


@bridge.get("/api/ops/stream")
async def _stream() -> Response:
    """Server-sent events: the last hour's vitals, each an event, then those that come."""
    await _operator()
    app = _app()
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
    redis = _app().opened().backend.redis
    found: Any = await redis.xrevrange("audit", count=AUDIT_SHOWN)
    return jsonify(
        [{key.decode(): value.decode() for key, value in entry.items()} for _, entry in found]
    )


@bridge.get("/api/ops/dead")
async def _dead() -> Response:
    """Essays that were given up, the newest first."""
    await _operator()
    app = _app()
    desk = Desk(app.opened().backend.redis, app.settings.grading)
    jobs = [job async for job in desk.jobs("dead", newest_first=True, count_max=DEAD_SHOWN)]
    return jsonify([attrs.asdict(job) for job in jobs])


# -- doing ---------------------------------------------------------------------------------------


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


Action = Lane | Dead | SetFlag | Breaker


@bridge.post("/api/ops/actions")
async def _act() -> Response:
    """Do one thing, and say what became of it; it stands in the audit first."""
    who = await _operator()
    app = _app()
    try:
        action = msgspec.json.decode(await request.get_data(), type=Action)
    except msgspec.MsgspecError as error:
        raise BadMessage(f"not an action: {error}") from error
    redis = app.opened().backend.redis
    do = _doer(action, app.opened().backend, Desk(redis, app.settings.grading))
    await write_audit(redis, who=f"{who.org}/{who.user}", action=action)
    return jsonify({"said": await do()})


def _doer(action: Action, backend: Backend, desk: Desk) -> Callable[[], Awaitable[str]]:
    """How to do it; what it returns is said to the operator.

    Raises:
      BadMessage: it cannot be done; nothing was.
    """
    match action:
        case Lane(lane, mode):

            async def set_mode() -> str:
                count = await desk.set_mode([lane], mode)
                return f"lane {lane} is {mode}; {count:,} unfinished"

            return set_mode
        case Dead(id_, what):

            async def settle() -> str:
                done = (
                    await desk.replay(id_)
                    if what == "retry"
                    else await desk.cancel(id_, reason="dropped on the bridge")
                )
                return f"{id_}: it was {done[0].was}" if done else f"{id_}: nobody knows it"

            return settle
        case SetFlag(name, percent):
            flag = next((each for each in FLAGS if each == name), None)
            if flag is None or not (percent is None or 0 <= percent <= 100):
                raise BadMessage(f"a flag is one of {', '.join(FLAGS)}, its percent 0 to 100")

            async def set_flag() -> str:
                await write_flag(backend.redis, flag, percent)
                return f"{flag}: {'as in the settings' if percent is None else f'{percent} %'}"

            return set_flag
        case Breaker(name, what):
            circuits = {each.provider.name: each.circuit for each in backend.endpoints}
            if name not in circuits:
                raise BadMessage(f"a provider is one of {', '.join(circuits)}")

            async def move() -> str:
                if what == "hold":
                    circuits[name].hold(HOLD_S)
                    await trio.lowlevel.checkpoint()
                    return f"{name} is left alone for {HOLD_S / 60:.0f} minutes"
                await circuits[name].reset()
                return f"{name} is asked again"

            return move


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


def _app() -> Host:
    app: Any = current_app
    found: Host = app._get_current_object()  # noqa: SLF001  Quart's own way
    return found


async def _operator() -> Identity:
    """Who asks, if that is an operator.

    Raises:
      Unauthenticated, Forbidden: it is not.
    """
    authority = _app().opened().services.authority
    identity = await authority.identify_bearer(request.headers.get("Authorization", ""))
    if identity.role != "operator":
        raise Forbidden("the bridge is for operators: coach token --role operator")
    return identity
