"""Webhooks: integrators' servers hear how essays end, signed as Standard Webhooks 1.0.0 says.

How an essay ends is put into the queue's outbox by the very script that ends it, so that no death
of a process loses it. A courier makes a delivery of it for each webhook that wants to hear, under
an id that is the same whoever makes it, and only then takes it out of the outbox. Deliveries are a
queue of their own, the same scripts under other keys: leases, fencing, fair shares by org, backoff
with full jitter, dead letters (`coach webhooks`).

    finish, fail ──> outbox ──> delivery ──POST──> 2xx: done
                                 ^     └──otherwise──> later, or too often: dead letter
                                 └── put off, while its server is left alone after a failure

News arrives once or more, never not at all, in any order; an event's `webhook-id` stays the same.
Essays are not sent, secrets are in no log, redirects are not followed.

Memory: `webhooks.concurrency` deliveries, and PASSED_MAX announcements a shard, some 10 KB each.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import secrets
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, final

import attrs
import httpx
import msgspec
import structlog
import trio

from .. import __version__
from ..errors import CoachError, Conflict
from ..ops import metrics
from ..store import RedisError, hold_lease
from .claiming import HAND_BACK_S_MAX, REDIS_PAUSE_S, Claimer, hand_back
from .desk import Desk
from .queue import Queue
from .records import Submission
from .scripts import DELIVERIES

if TYPE_CHECKING:
    from .. import config
    from ..store import Redis
    from .jobs import Announcement, Claim, Job

log = structlog.get_logger()

T = TypeVar("T")

PASSED_MAX: Final = 64
"""Announcements of a shard that are made into deliveries at once."""
LOOK_S: Final = 1.0
"""Between two looks into an outbox that was empty."""
PASS_LEASE_MS: Final = 10_000
"""One courier at a time empties an outbox; two would do each other's work again."""
LEASE_SPARE_S: Final = 15.0
"""What a lease is longer than an answer may take: for loading and settling."""
ALONE_S_MAX: Final = 60.0
"""How long a server that fails is left alone at most, with all that is for it."""
SETTLE_S_MAX: Final = 5.0
GONE: Final = 410


def sign(keys: Sequence[bytes], id_: str, at_s: int, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over `id.timestamp.body`, by each key.

    Args:
      keys: the current one first; the receiver takes any.
      id_: the header `webhook-id`; without a full stop.
      at_s: the header `webhook-timestamp`, seconds since the epoch.
      body: as it is sent.
    """
    signed = b"%s.%d.%s" % (id_.encode(), at_s, body)
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{b64encode(digest).decode()}" for digest in digests)


def event(news: Announcement) -> tuple[str, bytes]:
    """An announcement's type, and its payload: the same bytes for the same announcement."""
    state = news.state
    type_ = f"submission.{state.status}"
    data: dict[str, object] = {
        "submission": state.id,
        "org": state.org,
        "user": state.user,
        "assignment": news.assignment,
    }
    if state.grade is not None:
        data["grade"] = state.grade
    if state.failure is not None:
        failure = state.failure
        data["failure"] = {
            "code": failure.code,
            "message": failure.message,
            "can_retry": failure.can_retry,
        }
    at = datetime.fromtimestamp(news.at, UTC).isoformat(timespec="milliseconds")
    payload = {"type": type_, "timestamp": at.replace("+00:00", "Z"), "data": data}
    return type_, msgspec.json.encode(payload)


def delivery_id(webhook: str, org: str, member: bytes) -> str:
    """The `webhook-id` of an announcement: the same in every process, another for each webhook."""
    name = b"\0".join((webhook.encode(), org.encode(), member))
    return f"msg_{hashlib.sha256(name).hexdigest()[:40]}"


def delivery_settings(settings: config.Settings) -> config.Grading:
    """What the deliveries' queue goes by."""
    hooks = settings.webhooks
    return msgspec.structs.replace(
        settings.grading,
        lease_s=hooks.timeout_s + LEASE_SPARE_S,
        attempts_max=hooks.attempts_max,
        retry_base_s=hooks.retry_base_s,
        retry_s_max=hooks.retry_s_max,
        depth_max=hooks.depth_max,
        org_depth_percent=100,
        result_days=hooks.keep_days,
    )


def delivery_desk(redis: Redis, settings: config.Settings) -> Desk:
    """The operators' side of the deliveries' queue."""
    return Desk(redis, delivery_settings(settings), keys=DELIVERIES)


async def run_courier(
    redis: Redis,
    queue: Queue,
    settings: config.Settings,
    *,
    stopping: trio.Event,
    transport: httpx.AsyncBaseTransport | None = None,
    wall: Callable[[], float] = time.time,
) -> None:
    """Deliver until `stopping` is set; then end what is under way, or hand it back.

    Cancellation: what is under way is handed back, and may arrive twice.

    Args:
      redis: the caller's.
      queue: of the essays.
      settings: webhooks, and how their queue is cut into shards.
      stopping: set it to end.
      transport: in place of sockets.
      wall: the clock for `webhook-timestamp`, seconds since the epoch.
    """
    courier = Courier(redis, queue, settings, wall=wall)
    limits = httpx.Limits(max_connections=None, keepalive_expiry=30.0)
    async with (
        httpx.AsyncClient(
            transport=transport, timeout=settings.webhooks.timeout_s, trust_env=False, limits=limits
        ) as client,
        trio.open_nursery() as deliveries,
    ):
        async with trio.open_nursery() as claiming:
            for shard in queue.shards:
                claiming.start_soon(courier.pass_on, shard)
                claiming.start_soon(
                    courier.claimer.claim_jobs, shard, partial(courier.deliver, client), deliveries
                )
            await stopping.wait()
            claiming.cancel_scope.cancel("the courier stops")
        deliveries.cancel_scope.deadline = trio.current_time() + settings.grading.drain_s


@attrs.define(eq=False)
class _Receiver:
    """A webhook, and whether it is left alone just now."""

    webhook: config.Webhook
    failures: int = 0
    """In a row, of this process."""
    alone_until: float = 0.0
    """On trio's clock."""

    def alone_s(self, answer_s_max: float) -> float:
        """How long to leave it alone; 0: ask it, and after failures one request at a time."""
        now = trio.current_time()
        if now < self.alone_until:
            return self.alone_until - now
        if self.failures:
            self.alone_until = now + answer_s_max
        return 0.0

    def answered(self, *, well: bool) -> None:
        """Note how a request ended."""
        self.failures = 0 if well else self.failures + 1
        alone_s = 0.0 if well else min(ALONE_S_MAX, 2.0 ** min(self.failures, 16))
        self.alone_until = trio.current_time() + alone_s


@attrs.frozen
class _Refusal(Exception):
    """The server has not taken the news."""

    reason: str
    """Without the address, which may hold a secret."""
    outcome: str
    retry_after_s: float = 0.0
    final: bool = False


@final
class Courier:
    """One process' deliveries."""

    def __init__(
        self, redis: Redis, queue: Queue, settings: config.Settings, *, wall: Callable[[], float]
    ) -> None:
        """Nothing is claimed yet; see `run_courier`."""
        self._redis = redis
        self._queue = queue
        self._settings = settings.webhooks
        options = delivery_settings(settings)
        self._deliveries = Queue(redis, options, keys=DELIVERIES)
        self._receivers = {each.name: _Receiver(each) for each in settings.webhooks.to}
        self._name = secrets.token_hex(8)
        self._wall = wall
        self._rng = random.Random()  # noqa: S311  spreads retries, guards nothing
        self.claimer = Claimer(
            self._deliveries,
            ("submission",),
            concurrency=settings.webhooks.concurrency,
            lease_s=options.lease_s,
        )

    # -- from the outbox -----------------------------------------------------------------------

    async def pass_on(self, shard: int) -> None:
        """Make what is announced into deliveries; ends by cancellation."""
        while True:
            try:
                count = await self.pass_on_once(shard)
            except (RedisError, CoachError) as error:
                log.warning("webhooks_wait", shard=shard, error=str(error))
                count = 0
            if count < PASSED_MAX:
                await trio.sleep(LOOK_S)

    async def pass_on_once(self, shard: int) -> int:
        """Make up to PASSED_MAX announcements into deliveries; how many there were.

        Cancellation: those that are made stay announced as well, and are made again: once.

        Raises:
          RedisError, CoachError: Redis is away, or the deliveries' queue takes nothing in; what was
            not passed on is still announced.
        """
        found = await self._queue.announced(shard, PASSED_MAX)
        lease = self._queue.keys.structure(shard, "outbox:courier")
        if not found or not await hold_lease(self._redis, lease, self._name, PASS_LEASE_MS):
            return 0
        errors: list[Exception] = []

        async def pass_one(news: Announcement) -> None:
            try:
                await self._make(news)
                await self._queue.passed_on(shard, news.member)
            except (RedisError, CoachError) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for news in found:
                nursery.start_soon(pass_one, news)
        if errors:
            raise errors[0]
        return len(found)

    async def _make(self, news: Announcement) -> None:
        """A delivery for each webhook that wants to hear of it. Repeating it changes nothing."""
        type_, body = event(news)
        state = news.state
        for receiver in self._receivers.values():
            webhook = receiver.webhook
            if webhook.org not in ("*", state.org) or type_ not in webhook.events:
                continue
            delivery = Submission(
                id=delivery_id(webhook.name, state.org, news.member),
                user=state.user,
                org=state.org,
                assignment=state.id,
                text=body.decode(),
                kind="webhook",
                parameters={"to": webhook.name, "at": f"{news.at:.3f}"},
            )
            try:
                await self._deliveries.submit(delivery)
            except Conflict:
                log.warning("webhook_made_before", delivery=delivery.id, webhook=webhook.name)

    # -- to the server -------------------------------------------------------------------------

    async def deliver(self, client: httpx.AsyncClient, claim: Claim) -> None:
        """Try one delivery, and settle it; cancelled, it is handed back."""
        settled = False
        try:
            try:
                await self._deliver(client, claim)
            except RedisError as error:
                log.warning("webhook_without_redis", delivery=claim.id, error=str(error))
            settled = True
        finally:
            if not settled:
                with trio.move_on_after(HAND_BACK_S_MAX, shield=True):
                    await hand_back(self._deliveries, claim)

    async def _deliver(self, client: httpx.AsyncClient, claim: Claim) -> None:
        job = await self._deliveries.load(claim)
        receiver = None if job is None else self._receivers.get(job.parameters.get("to", ""))
        if job is None or receiver is None:
            reason = "no webhook of this name is in the settings, or it has outlived its time"
            await self._deliveries.fail(claim, reason=reason, final=True)
            return
        if claim.failures >= self._settings.attempts_max:
            reason = f"{claim.failures} attempts did not end"
            await self._deliveries.fail(claim, reason=reason, final=True)
            return
        alone_s = receiver.alone_s(self._settings.timeout_s)
        if alone_s:
            reason = "its server failed a moment ago, and is left alone"
            delay_s = alone_s + self._rng.uniform(0.0, alone_s)
            await self._deliveries.fail(claim, reason=reason, counted=False, delay_s=delay_s)
            return
        try:
            status = await self._post(client, receiver.webhook, claim.id, job.text.encode())
        except _Refusal as refusal:
            receiver.answered(well=False)
            await self._put_off(claim, receiver.webhook.name, refusal)
            return
        receiver.answered(well=True)
        await self._delivered(claim, receiver.webhook.name, job, status)

    async def _post(
        self, client: httpx.AsyncClient, webhook: config.Webhook, id_: str, body: bytes
    ) -> int:
        """Send it; the status of a server that has taken it.

        Raises:
          _Refusal: anything else.
        """
        at_s = int(self._wall())
        headers = {
            "content-type": "application/json",
            "user-agent": f"coach/{__version__}",
            "webhook-id": id_,
            "webhook-timestamp": str(at_s),
            "webhook-signature": sign(webhook.keys, id_, at_s, body),
        }
        try:
            with trio.fail_after(self._settings.timeout_s):
                # the body of the answer is nobody's business, however long it is
                async with client.stream(
                    "POST", webhook.url, content=body, headers=headers
                ) as response:
                    status = response.status_code
        except trio.TooSlowError as error:
            raise _Refusal(f"no answer within {self._settings.timeout_s:g} s", "failed") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _Refusal(f"no answer: {type(error).__name__}", "failed") from error
        if 200 <= status < 300:
            return status
        after = response.headers.get("retry-after", "")
        raise _Refusal(
            f"answered {status}",
            "refused",
            retry_after_s=float(after) if after.isascii() and after.isdigit() else 0.0,
            final=status == GONE,
        )

    async def _delivered(self, claim: Claim, name: str, job: Job, status: int) -> None:
        metrics.webhook_attempts_total.labels(name, "delivered").inc()
        metrics.webhook_seconds.observe(max(0.0, self._wall() - float(job.parameters["at"])))
        log.info("webhook_delivered", delivery=claim.id, webhook=name, status=status)
        await _settle(partial(self._deliveries.end, claim, msgspec.json.encode({"status": status})))

    async def _put_off(self, claim: Claim, name: str, refusal: _Refusal) -> None:
        most_s = self._settings.retry_s_max
        ceiling_s = min(most_s, self._settings.retry_base_s * 2.0 ** min(claim.failures, 32))
        delay_s = max(self._rng.uniform(0.0, ceiling_s), min(refusal.retry_after_s, most_s))
        failed = await _settle(
            partial(
                self._deliveries.fail,
                claim,
                reason=refusal.reason,
                final=refusal.final,
                delay_s=delay_s,
            )
        )
        is_dead = failed is not None and failed.dead is not None
        outcome = "dead" if is_dead else refusal.outcome
        metrics.webhook_attempts_total.labels(name, outcome).inc()
        level = log.error if is_dead else log.warning
        level(
            "webhook_given_up" if is_dead else "webhook_put_off",
            delivery=claim.id,
            webhook=name,
            reason=refusal.reason,
            failures=claim.failures + 1,
        )


async def _settle(operation: Callable[[], Awaitable[T]]) -> T | None:
    """Write down how an attempt ended, also when all is being cancelled.

    None: it was too late, or Redis stayed away; then the lease runs out, and it is sent again.
    """
    with trio.move_on_after(SETTLE_S_MAX, shield=True):
        while True:
            try:
                return await operation()
            except RedisError as error:
                log.warning("redis_retry", error=str(error))
                await trio.sleep(REDIS_PAUSE_S / 5)
    return None
