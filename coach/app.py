"""Composition root of a web worker: opens all parts in order, and Quart-Trio's routes.

`hypercorn -k trio coach.app:app` and `coach serve` both serve `app`. Its parts live as long as the
ASGI lifespan: they are opened in one task by `async with`, and what fails in them ends the worker.
WebSockets do not come here as ASGI messages: the edge hands their connections to
`CoachApp.serve_websocket`.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import msgspec
import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, LifespanScope
from msgspec import Meta
from quart import Response, jsonify, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGILifespan
from werkzeug.exceptions import NotFound

from . import config, edge
from .acts import Erase, bulk_of, write_audit
from .backend import Backend, benches_of, open_backend
from .bridge import bridge, run_sampler
from .budget import LocalLimits, open_user_limits
from .erasure import erase_user
from .errors import BadMessage, CoachError, ConfigurationError, Forbidden, Unauthenticated
from .grading import (
    AtOnce,
    Calibrations,
    Desk,
    Grade,
    Latencies,
    Reviews,
    count_graders,
    delivery_desk,
)
from .host import caller, caller_as
from .ops import Flags, ask_for_bill, health, metrics, read_bill
from .ops import log as logging
from .providers import FirstTokens, Unpooled, open_provider, origin_of
from .review import review
from .second_grades import estimate_regrade
from .session import (
    Authority,
    Pacer,
    Records,
    Route,
    Services,
    Sessions,
    Waitable,
    open_authority,
    open_sessions,
    serve_session,
)
from .store import RedisError

log = structlog.get_logger()

WEB: Final = Path(str(files("coach") / "web"))
SAMPLE_S: Final = 1.0
DRAIN_SHARE: Final = 0.75
"""Of `server.drain_s`, what turns have to end, those of absent students too."""
DEAD_SHOWN: Final = 20
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_STATUS: Final[dict[str, int]] = {
    "bad_message": 400,
    "too_large": 413,
    "unauthenticated": 401,
    "forbidden": 403,
    "conflict": 409,
    "rate_limited": 429,
    "overloaded": 503,
    "provider_unavailable": 503,
}


@attrs.frozen(kw_only=True)
class Parts:
    """What is open while the worker serves."""

    backend: Backend
    services: Services
    sessions: Sessions
    nursery: trio.Nursery


class Lifespan(TrioASGILifespan):
    """The ASGI lifespan: the parts are open between start-up and shutdown."""

    def __init__(self, app: QuartTrio, scope: LifespanScope) -> None:
        """Made by Quart for each server."""
        super().__init__(app, scope)
        assert isinstance(app, CoachApp)
        self._app = app

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Open the parts, say so, wait for shutdown, close the parts, say so."""
        await receive()
        try:
            settings = config.load(config.path_from_environment())
            logging.configure(settings.log)
            self._app.tls = edge.open_context(settings.server)
            async with open_parts(settings) as parts:
                self._app.doors = edge.Doors(health.connections_max(settings, parts.backend.files))
                self._app.addresses = edge.Addresses(settings.server)
                self._app.settings, self._app.parts = settings, parts
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ConfigurationError as error:
            self._app.failed = True
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        except Exception:
            # hypercorn would go on serving without parts
            self._app.failed = True
            log.critical("parts_failed", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._app.parts = None
        await send({"type": "lifespan.shutdown.complete"})


class CoachApp(QuartTrio):
    """Quart-Trio's application and the WebSocket side by side."""

    asgi_lifespan_class = Lifespan

    def __init__(self) -> None:
        """Without parts: they come with the lifespan."""
        super().__init__("coach", static_folder=str(WEB), static_url_path="/static")
        # Browsers ask each time, and are told by the ETag that nothing has changed: a page and its
        # modules of different versions would not fit together after a deploy.
        self.config["SEND_FILE_MAX_AGE_DEFAULT"] = None
        self.settings = config.Settings()
        self.parts: Parts | None = None
        self.doors: edge.Doors | None = None
        self.addresses: edge.Addresses | None = None
        self.tls: ssl.SSLContext | None = None
        self.failed = False
        """True when the parts could not be opened or broke; the process must end with an error."""

    async def send_static_file(self, filename: str) -> Response:
        """A file of the pages; one whose name no system has is not found, either."""
        try:
            return await super().send_static_file(filename)
        except OSError as error:
            raise NotFound from error

    def opened(self) -> Parts:
        """The parts; only while the worker serves."""
        assert self.parts is not None
        return self.parts

    def hear_of_shutdown(self, terminated: Waitable) -> None:
        """A connection has come and knows what every one does: when the server shuts down."""
        parts = self.parts
        if parts is not None and not parts.sessions.draining:
            parts.sessions.watch(terminated, parts.nursery)

    async def serve_websocket(self, connection: edge.EdgeConnection) -> None:
        """Serve one student, from the upgrade request to the end of the connection."""
        parts = self.opened()
        if not _origin_is_welcome(connection.headers, self.settings.server.public_origins):
            await connection.refuse(403, "this origin may not connect")
            return
        connection = attrs.evolve(connection, headers={})  # a browser's are 3 KB, for hours
        await serve_session(connection, parts.services, parts.sessions)


@asynccontextmanager
async def open_parts(settings: config.Settings) -> AsyncIterator[Parts]:
    """Open what a web worker consists of.

    Raises:
      ConfigurationError: see `open_backend` and `_open_authority`.
    """
    authority = await _open_authority(settings)
    role = f"w{_slot()}"
    async with (
        open_backend(settings, role=role) as backend,
        open_user_limits(backend.redis, settings.limits) as limits,
        trio.open_nursery() as nursery,
    ):
        if authority.keys is not None:
            nursery.start_soon(authority.keys.run)
        pacer = Pacer(settings.server.delta_window_s)
        flags, unpooled = Flags(settings.rollout), Unpooled(settings)
        providers_unpooled = [
            open_provider(endpoint.settings, unpooled, cache=settings.cache)
            for endpoint in backend.endpoints
        ]
        calibrations = Calibrations(backend.rubric)
        services = Services(
            settings=settings,
            worker=backend.worker,
            authority=authority,
            limits=limits,
            local_limits=LocalLimits(settings.limits),
            routes=[
                Route(
                    provider=endpoint.provider,
                    budget=endpoint.budget,
                    circuit=endpoint.circuit,
                    warmth=endpoint.warmth,
                    first_tokens=FirstTokens(
                        s_min=settings.failover.first_token_s_min,
                        s_max=settings.failover.first_token_s_max,
                    ),
                    output_tokens_max=endpoint.settings.feedback_output_tokens_max,
                    unpooled=provider_unpooled,
                )
                for endpoint, provider_unpooled in zip(
                    backend.endpoints, providers_unpooled, strict=True
                )
            ],
            queue=backend.queue,
            at_once=AtOnce(
                benches=benches_of(backend, settings.grading),
                unpooled=providers_unpooled,
                queue=backend.queue,
                reviews=Reviews(backend.redis, backend.queue, settings.grading),
                rubric=backend.rubric,
                settings=settings.grading,
                costs=backend.costs,
                pseudonyms=backend.pseudonyms,
                calibrations=calibrations,
            ),
            rubric=backend.rubric,
            costs=backend.costs,
            pacer=pacer,
            flags=flags,
            pseudonyms=backend.pseudonyms,
        )
        records = Records(backend.redis, settings.session)
        nursery.start_soon(flags.run, backend.redis)
        nursery.start_soon(calibrations.run, backend.redis)
        nursery.start_soon(partial(run_sampler, backend.redis, worker=backend.worker))
        nursery.start_soon(pacer.run)
        nursery.start_soon(health.watch_loop)
        nursery.start_soon(health.watch_process, backend.redis.ping)
        async with (
            open_sessions(services, records, settings) as sessions,
            trio.open_nursery() as inner,
        ):
            inner.start_soon(sessions.run_pings)
            inner.start_soon(sessions.run_mailbox, backend.redis, backend.worker)
            inner.start_soon(_sample, backend, sessions, unpooled)
            log.info("worker_ready", worker=backend.worker)
            yield Parts(backend=backend, services=services, sessions=sessions, nursery=inner)
            await sessions.settle(DRAIN_SHARE)
            inner.cancel_scope.cancel("the worker shuts down")
        nursery.cancel_scope.cancel("the worker shuts down")


def _slot() -> str:
    """This worker's place among those of `coach serve`."""
    return os.environ.get("COACH_WORKER", "0")


async def _open_authority(settings: config.Settings) -> Authority:
    """Make the authority; what a URL brings comes later: an identity provider may be away.

    Raises:
      ConfigurationError: `auth.jwks_file` cannot be used, or no secret can be kept.
    """
    authority = open_authority(settings)
    if authority.keys is not None and settings.auth.jwks_file is not None:
        await authority.keys.look()
    return authority


async def _sample(backend: Backend, sessions: Sessions, unpooled: Unpooled) -> None:
    """Set the gauges once a second, until cancelled."""
    sampled_at = trio.current_time()
    while True:
        now = trio.current_time()
        metrics.writer_seconds.inc(sessions.connected * (now - sampled_at))
        sampled_at = now
        pool = backend.pool.statistics()
        metrics.sessions.set(sessions.connected)
        metrics.worker_sessions.labels(_slot()).set(sessions.connected)
        metrics.sessions_away.set(sessions.away)
        metrics.turns_running.set(sessions.turns_running)
        metrics.provider_connections.set(pool.connections)
        metrics.provider_streams.set(pool.streams)
        metrics.provider_handshakes.set(pool.handshakes + unpooled.handshakes)
        for endpoint in backend.endpoints:
            load = backend.pool.statistics(origin_of(endpoint.settings.base_url))
            metrics.endpoint_connections.labels(endpoint.provider.name).set(load.connections)
            metrics.endpoint_streams.labels(endpoint.provider.name).set(load.streams)
        with suppress(RedisError):  # the gauges keep their last values; /readyz says it is away
            await _sample_shared(backend)
        await trio.sleep(SAMPLE_S)


async def _sample_shared(backend: Backend) -> None:
    """What all workers have in common: a round trip for each shard and each endpoint.

    Raises:
      RedisError: it is away.
    """
    queue = await backend.queue.statistics()
    for lane, found in queue.lanes.items():
        metrics.queue_depth.labels(lane).set(found.ready)
        metrics.queue_oldest.labels(lane).set(found.oldest_s)
        metrics.queue_paused.labels(lane).set(found.mode == "paused")
    for state in ("delayed", "leased", "dead"):
        metrics.queue_jobs.labels(state).set(getattr(queue, state))
    metrics.graders.set(await count_graders(backend.redis))
    counts = await backend.queue.counts()
    metrics.queue_history.events = {
        (event, lane): count for (event, lane), count in counts.events.items()
    }
    for lane, latencies in counts.pickup.items():
        metrics.queue_history.pickup[lane] = _histogram(latencies)
    for lane, latencies in counts.total.items():
        metrics.queue_history.total[lane] = _histogram(latencies)
    if app.settings.webhooks.to:
        deliveries = await delivery_desk(backend.redis, app.settings).queue.statistics()
        metrics.webhook_jobs.labels("announced").set(await backend.queue.outbox())
        metrics.webhook_jobs.labels("ready").set(sum(deliveries.ready.values()))
        for state in ("delayed", "leased", "dead"):
            metrics.webhook_jobs.labels(state).set(getattr(deliveries, state))
    for endpoint in backend.endpoints:
        budget = await endpoint.budget.statistics()
        circuit = endpoint.circuit.statistics()
        metrics.circuit_share.labels(budget.endpoint).set(circuit.share)
        for lane, length in budget.line.items():
            metrics.line_length.labels(budget.endpoint, lane).set(length)
        for dimension, share in budget.used.items():
            metrics.budget_used.labels(budget.endpoint, dimension).set(share)


def _histogram(latencies: Latencies) -> metrics.Histogrammed:
    return metrics.Histogrammed(
        counts=[(bound / 1000, count) for bound, count in latencies.counts.items()],
        beyond=latencies.beyond,
        sum=latencies.sum_s,
    )


def _origin_is_welcome(headers: Mapping[bytes, bytes], public_origins: tuple[str, ...]) -> bool:
    """Browsers name the page that opens a WebSocket: it must be ours (RFC 6455 section 10.2)."""
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if not origin:
        return True  # not a browser
    if origin in {known.lower() for known in public_origins}:
        return True
    return origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1").lower()


app = CoachApp()
app.register_blueprint(bridge)
app.register_blueprint(review)
edge.install()


@app.after_request
async def _harden(response: Response) -> Response:
    headers = response.headers
    headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    return response


@app.errorhandler(CoachError)
async def _coach_error(error: CoachError) -> tuple[Response, int]:
    response = jsonify(code=error.code, message=str(error))
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return response, _STATUS.get(error.code, 500)


@app.errorhandler(RedisError)
async def _redis_error(error: Exception) -> tuple[Response, int]:
    log.warning("request_without_redis", error=str(error))
    response = jsonify(code="overloaded", message="the shared store is away")
    response.headers["Retry-After"] = "2"
    return response, 503


@app.get("/")
async def _page() -> Response:
    return await app.send_static_file("index.html")


@app.post("/api/token")
async def _token() -> dict[str, Any]:
    """A new student; or, for who brings a student's token, a newer one of the same student."""
    auth = app.settings.auth
    if auth.mode != "open":
        raise Forbidden("auth.mode is not open: tokens come from your identity provider")
    authority = app.opened().services.authority
    user, org = f"student-{secrets.token_hex(6)}", "demo"
    with suppress(Unauthenticated):  # then it is somebody new
        known = authority.recognise_bearer(
            request.headers.get("Authorization", ""), within_s=auth.renew_s
        )
        if known.role == "student":
            user, org = known.user, known.org
    token, expires_at = authority.issue(user=user, org=org, role="student")
    return {"token": token, "user": user, "org": org, "expires_at": expires_at}


@app.get("/api/assignments")
async def _assignments() -> Response:
    rubric = app.opened().backend.rubric
    return jsonify(
        [{"id": item.id, "title": item.title, "task": item.task} for item in rubric.assignments]
    )


@app.get("/api/rubric")
async def _rubric() -> dict[str, Any]:
    """How essays are graded: each criterion's share, and what an essay in each band looks like."""
    rubric = app.opened().backend.rubric
    return {"title": rubric.title, "criteria": msgspec.to_builtins(rubric.criteria)}


@app.get("/api/submissions/<submission>")
async def _submission(submission: str) -> dict[str, Any]:
    """What has become of an essay; for its author, and for educators of the org."""
    identity = await caller()
    queue = app.opened().backend.queue
    state = await queue.get(identity.org, submission)
    is_theirs = (
        state is not None and state.user == identity.user and state.kind == "grade"
    ) or identity.role == "educator"
    if state is None or not is_theirs:
        raise Forbidden("you have no submission of this id")
    failure = state.failure
    found: dict[str, Any] = {
        "submission": submission,
        "user": state.user,
        "status": state.status,
        "submitted_at": state.submitted_at,
        "place": state.place,
        "ended_at": state.ended_at,
        "retry_at": state.retry_at,
        "grade": _as_json(state.grade),
        "failure": None
        if failure is None
        else {
            "code": failure.code,
            "message": failure.message,
            "attempts": failure.attempts,
            "can_retry": failure.can_retry,
        },
    }
    if identity.role == "educator":
        found["history"] = [
            {"kind": second.kind, "at": second.ended_at, "grade": _as_json(second.grade)}
            for second in await queue.history(identity.org, submission)
        ]
    return found


def _as_json(grade: Grade | None) -> dict[str, Any] | None:
    return None if grade is None else attrs.asdict(grade)


class _Regrade(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an educator wants to have graded again."""

    submissions: Annotated[list[str], Meta(max_length=100_000)] = []
    assignment: str | None = None
    audit_percent: Annotated[float, Meta(gt=0, le=100)] | None = None
    batch: bool = False
    dry_run: bool = False
    job: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] | None = None


@app.post("/api/regrade")
async def _regrade() -> tuple[dict[str, Any], int]:
    """Have essays of the own org graded again, in the background; for educators."""
    identity = await caller_as("educator", "this is for educators")
    try:
        wanted = msgspec.json.decode(await request.get_data(), type=_Regrade)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMessage(f"not a request to regrade: {error}") from error
    backend = app.opened().backend
    bulk = bulk_of(app)
    chosen = await bulk.choose(
        identity.org,
        ids=wanted.submissions,
        assignment=wanted.assignment,
        percent=wanted.audit_percent,
    )
    prices = backend.costs.prices
    estimate = estimate_regrade(chosen, app.settings, backend.rubric, prices, batch=wanted.batch)
    currency = app.settings.costs.currency
    said: dict[str, Any] = {"job": None, "estimate": estimate.as_json(prices, currency)}
    if wanted.dry_run or not chosen:
        return said, 200
    said["job"] = await bulk.open(
        identity.org,
        "regrade" if wanted.audit_percent is None else "audit",
        [each.id for each in chosen],
        by=identity.user,
        way="batch" if wanted.batch else "live",
        job=wanted.job,
    )
    return said, 202


@app.get("/api/regrade/<job>")
async def _regrade_job(job: str) -> dict[str, Any]:
    """How far it is; for educators of the org."""
    identity = await caller_as("educator", "this is for educators")
    found = await bulk_of(app).find(job)
    if found is None or found.org != identity.org:
        raise Forbidden("your organisation has no job of this id")
    return attrs.asdict(found)


@app.get("/api/costs")
async def _costs() -> dict[str, Any]:
    """The bill, as `coach costs --json`; for operators, and for educators that of their org."""
    identity = await caller()
    if identity.role == "student":
        raise Forbidden("the bill is for educators and operators")
    asked = request.args
    org = asked.get("org") if identity.role == "operator" else identity.org
    if asked.get("org") not in (None, org):
        raise Forbidden("an educator sees the bill of the own org only")
    parts = app.opened()
    prices = parts.backend.costs.prices
    question = ask_for_bill(
        org=org,
        user=asked.get("user"),
        by=asked.get("by", "day"),
        since=asked.get("from"),
        until=asked.get("to"),
    )
    bill = await read_bill(parts.backend.redis, question)
    currency = asked.get("currency") or app.settings.costs.currency
    try:
        return bill.as_json(prices, currency)
    except ConfigurationError as error:
        raise BadMessage(f"currency: {error}") from error


@app.get("/api/queue")
async def _queue() -> dict[str, Any]:
    """How much waits, and the newest dead letters; for operators."""
    if (await caller()).role != "operator":
        raise Forbidden("the queue is for operators: coach token --role operator")
    desk = Desk(app.opened().backend.redis, app.settings.grading)
    statistics = await desk.queue.statistics()
    dead = [job async for job in desk.jobs("dead", newest_first=True, count_max=DEAD_SHOWN)]
    return {**attrs.asdict(statistics), "dead_letters": [attrs.asdict(job) for job in dead]}


@app.delete("/api/users/<user>")
async def _erase(user: str) -> dict[str, Any]:
    """Leave nothing of a user of `org` (the operator's own, if it is not said); for operators."""
    identity = await caller()
    if identity.role != "operator":
        raise Forbidden("users are erased by operators: coach token --role operator")
    backend = app.opened().backend
    org = request.args.get("org", identity.org)
    pseudonym = backend.pseudonyms.of(org=org, user=user)
    await write_audit(
        backend.redis,
        who=f"{identity.org}/{identity.user}",
        action=Erase(org=org, pseudonym=pseudonym),
    )
    erased = await erase_user(backend.redis, backend.queue, app.settings, org=org, user=user)
    return attrs.asdict(erased)


@app.get("/healthz")
async def _healthz() -> dict[str, str]:
    return {"status": "alive"}


@app.get("/readyz")
async def _readyz() -> tuple[dict[str, str], int]:
    parts = app.parts
    if parts is None or parts.sessions.draining:
        return {"status": "draining"}, 503
    try:
        with trio.fail_after(1):
            await parts.backend.redis.ping()
    except (RedisError, trio.TooSlowError):
        return {"status": "no redis"}, 503
    return {"status": "ready"}, 200


@app.get("/metrics")
async def _metrics() -> Response:
    return Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
