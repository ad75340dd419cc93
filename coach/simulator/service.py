"""The provider itself: what it says to which request, and when; no I/O, the caller has the clock.

Everything that takes time is a timer on one wheel; a shell fires the wheel and sends what the
exchanges have gathered. Requests arrive by `receive`.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from . import messages
from .answers import NOTHING, Plan, compose, limited, plan_stream
from .cache import CachePlan, PromptCache
from .exchange import Exchange, Headers
from .faults import LATE_S, RETRY_AFTER_S, FaultName, Faults, Rule, rules_from_json
from .messages import ApiError, Request, Usage, invalid, parse_request
from .pacing import Timer, Wheel
from .quota import Quota
from .settings import Settings, changed
from .statistics import Statistics

HEAD_SHARE: Final = 0.5
"""Of the time to the first token: when headers and message_start go."""
PING_S: Final = 5.0
"""Between pings while a first token is late."""
JSON_TYPE: Final = (b"content-type", b"application/json")

_REFUSALS: Final[dict[FaultName, tuple[int, str, str]]] = {
    "rate_limited": (
        429,
        "rate_limit_error",
        "This request would exceed your account's rate limit. Please try again later.",
    ),
    "spend_limit": (
        429,
        "rate_limit_error",
        "You have reached your specified API usage limits.",
    ),
    "server_error": (500, "api_error", "Internal server error"),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "bad_parameter": (400, "invalid_request_error", "metadata: Extra inputs are not permitted"),
}


class Service:
    """One simulated account at a provider.

    Args:
      settings: how it behaves at first.
      faults: what goes wrong at first.
      clock: seconds, monotonic.
      wall: seconds since the epoch, for the reset times in headers.
    """

    def __init__(
        self,
        settings: Settings,
        faults: dict[FaultName, Rule],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.faults = Faults(faults)
        self.statistics = Statistics()
        self.wheel = Wheel()
        self.rng = random.Random(settings.seed)  # noqa: S311 - a seed replays a run
        self.clock = clock
        self.on_change: Callable[[Settings], None] = lambda _: None
        """Called when `POST /control` has changed the settings."""
        self._wall = wall
        self._quota = self._new_quota(settings)
        self.cache = PromptCache(ttl_s=settings.cache_ttl_s, tokens_min=settings.cache_tokens_min)

    def receive(self, exchange: Exchange) -> None:
        """Answer one request, now or by timers."""
        path = urlsplit(exchange.path.decode("latin-1")).path
        known = _ROUTES.get(path)
        request_id = f"req_{self._id()}"
        try:
            if known is None:
                raise ApiError(404, "not_found_error", f"Not found: {path}")
            method, answer = known
            if exchange.method != method:
                raise ApiError(405, "invalid_request_error", "Method Not Allowed")
            if exchange.too_large:
                raise ApiError(413, "request_too_large", "Request exceeds the maximum size")
            answer(self, exchange, request_id)
        except ApiError as error:
            self._refuse(exchange, error, request_id)

    def spend_output(self, tokens: int) -> None:
        """Output has been generated."""
        self.statistics.output_tokens += tokens
        self._quota.spend_output(tokens, self.clock())

    def _messages(self, exchange: Exchange, request_id: str) -> None:
        now = self.clock()
        self.statistics.requests += 1
        self._authenticate(exchange)
        request = parse_request(exchange.body)
        kind: Literal["feedback", "judge"] = "feedback" if request.schema is None else "judge"
        if kind == "judge":
            self.statistics.judge_requests += 1
        fault = self.faults.draw(kind, self.rng)
        if self._fails_at_once(exchange, fault, request, request_id):
            return
        plan = self.cache.plan(request.model, request.blocks, now)
        shortage = self._quota.admit(plan.uncached + plan.write, now)
        if shortage is not None:
            raise _QuotaError(shortage.dimension, shortage.limit, shortage.retry_after_s)
        self.cache.touch(plan, now)
        usage = Usage(plan.uncached, plan.write, plan.write_hour, plan.read)
        self.statistics.input_tokens += usage.input
        self.statistics.cache_write_tokens += usage.cache_write
        self.statistics.cache_read_tokens += usage.cache_read
        answer = StreamedAnswer if request.stream else WholeAnswer
        answer(self, exchange, request, usage, plan, fault, request_id).begin(now)

    def _fails_at_once(
        self, exchange: Exchange, fault: FaultName | None, request: Request, request_id: str
    ) -> bool:
        """Refuse by status (raises), or below HTTP's statuses (True)."""
        if fault == "too_long" or request.input_tokens > self.settings.context_tokens_max:
            tokens, most = request.input_tokens, self.settings.context_tokens_max
            tokens = max(tokens, most + 1)
            raise invalid(f"prompt is too long: {tokens} tokens > {most} maximum")
        if fault in _REFUSALS:
            status, kind, message = _REFUSALS[fault]
            if fault == "rate_limited":
                raise _RateLimited(message, RETRY_AFTER_S)
            raise ApiError(status, kind, message)
        if fault == "unavailable":
            self._respond(exchange, 503, b"upstream connect error", request_id, b"text/plain")
            self.statistics.errors_sent += 1
            return True
        if fault == "reset":
            exchange.abort()
        elif fault == "refused_stream":
            exchange.refuse()
            self.statistics.resets_sent += 1
        elif fault == "goaway":
            exchange.go_away()
        else:
            return False
        return True

    def _count_tokens(self, exchange: Exchange, request_id: str) -> None:
        self._authenticate(exchange)
        body = msgspec.json.encode({"input_tokens": messages.count_tokens(exchange.body)})
        self._respond(exchange, 200, body, request_id)

    def _stats(self, exchange: Exchange, request_id: str) -> None:
        numbers = self.statistics.as_json()
        numbers["cache_entries"] = len(self.cache)
        numbers["timers"] = len(self.wheel)
        for name, count in self.faults.injected.items():
            numbers[f"fault_{name}"] = count
        self._respond(exchange, 200, msgspec.json.encode(numbers), request_id)

    def _control(self, exchange: Exchange, request_id: str) -> None:
        try:
            changes = msgspec.json.decode(exchange.body, type=dict[str, object])
            rules = rules_from_json(changes.pop("faults", {})) if "faults" in changes else None
            settings = changed(self.settings, changes)
        except msgspec.MsgspecError as error:
            raise invalid(str(error)) from error
        if rules is not None:
            self.faults.set(rules)
        self._apply(settings)
        self._respond(exchange, 200, msgspec.json.encode(settings), request_id)

    def _apply(self, settings: Settings) -> None:
        before, self.settings = self.settings, settings
        quota = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
        if any(getattr(before, name) != getattr(settings, name) for name in quota):
            self._quota = self._new_quota(settings)
        self.cache.ttl_s = settings.cache_ttl_s
        self.cache.tokens_min = settings.cache_tokens_min
        if settings.seed != before.seed:
            self.rng.seed(settings.seed)
        self.on_change(settings)

    def _new_quota(self, settings: Settings) -> Quota:
        return Quota(
            {
                "requests": settings.requests_per_minute,
                "input-tokens": settings.input_tokens_per_minute,
                "output-tokens": settings.output_tokens_per_minute,
            },
            self.clock(),
        )

    def _authenticate(self, exchange: Exchange) -> None:
        key = exchange.headers.get(b"x-api-key", b"").decode("latin-1")
        if not key:
            raise ApiError(401, "authentication_error", "x-api-key header is required")
        if self.settings.api_key is not None and key != self.settings.api_key:
            raise ApiError(401, "authentication_error", "invalid x-api-key")
        if b"anthropic-version" not in exchange.headers:
            raise invalid("anthropic-version: header is required")

    def limits_headers(self) -> list[tuple[bytes, bytes]]:
        """`anthropic-ratelimit-*` as of now."""
        headers = []
        now, wall = self.clock(), self._wall()
        for dimension, limit, left, full_s in self._quota.states(now):
            name = f"anthropic-ratelimit-{dimension}-".encode()
            headers += [
                (name + b"limit", b"%d" % limit),
                (name + b"remaining", b"%d" % left),
                (name + b"reset", rfc3339(wall + full_s)),
            ]
        return headers

    def draw_s(self, mean_ms: float, jitter_ms: float) -> float:
        """A latency: log-normal with this mean and standard deviation."""
        if mean_ms <= 0 or jitter_ms <= 0:
            return mean_ms / 1_000
        variance = math.log1p((jitter_ms / mean_ms) ** 2)
        mu = math.log(mean_ms) - variance / 2
        return self.rng.lognormvariate(mu, math.sqrt(variance)) / 1_000

    def _refuse(self, exchange: Exchange, error: ApiError, request_id: str) -> None:
        self.statistics.errors_sent += 1
        extra: list[tuple[bytes, bytes]] = []
        if error.status == 429:
            self.statistics.rate_limited += 1
            extra = self.limits_headers()
        if isinstance(error, _RateLimited):
            extra.append((b"retry-after", b"%d" % error.retry_after_s))
        retry = b"true" if error.status in (408, 409, 429) or error.status >= 500 else b"false"
        extra.append((b"x-should-retry", retry))
        self._respond(exchange, error.status, error.body(request_id), request_id, extra=extra)

    def _respond(
        self,
        exchange: Exchange,
        status: int,
        body: bytes,
        request_id: str,
        content_type: bytes = b"application/json",
        *,
        extra: Headers = (),
    ) -> None:
        exchange.start(
            status,
            [
                (b"content-type", content_type),
                (b"content-length", b"%d" % len(body)),
                (b"request-id", request_id.encode()),
                *extra,
            ],
        )
        exchange.write(body)
        exchange.end()

    def _id(self) -> str:
        return f"01{self.rng.getrandbits(112):028x}"

    def message_id(self) -> str:
        """A new message's id."""
        return f"msg_{self._id()}"


class _RateLimited(ApiError):
    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(429, "rate_limit_error", message)
        self.retry_after_s = retry_after_s


class _QuotaError(_RateLimited):
    def __init__(self, dimension: str, limit: int, retry_after_s: int) -> None:
        what = dimension.replace("-", " ")
        super().__init__(
            "This request would exceed your organization's rate limit of "
            f"{limit:,} {what} per minute. Please reduce the prompt length or the maximum tokens "
            "requested, or try again later.",
            retry_after_s,
        )


class Answer(Timer):
    """An admitted request until it is answered, cancelled or its connection is lost."""

    __slots__ = ("cache_plan", "exchange", "fault", "request", "request_id", "service", "usage")

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        request: Request,
        usage: Usage,
        cache_plan: CachePlan,
        fault: FaultName | None,
        request_id: str,
    ) -> None:
        super().__init__()
        self.service = service
        self.exchange = exchange
        self.request = request
        self.usage = usage
        self.cache_plan = cache_plan
        self.fault = fault
        self.request_id = request_id

    def begin(self, now: float) -> None:
        """Start answering."""
        self.exchange.work = self
        self.service.statistics.opened()
        if self.fault != "silent":
            self._begin(now)

    def cancelled(self, *, by_reset: bool) -> None:
        statistics = self.service.statistics
        self.service.wheel.cancel(self)
        statistics.streams_open -= 1
        if by_reset:
            statistics.streams_cancelled += 1
        else:
            statistics.streams_lost += 1

    def _begin(self, now: float) -> None:
        raise NotImplementedError

    def _finished(self) -> None:
        self.exchange.work = None
        self.service.statistics.streams_open -= 1
        self.service.statistics.streams_finished += 1

    def _start(self, content_type: bytes, length: int | None = None) -> None:
        headers = [(b"content-type", content_type), (b"request-id", self.request_id.encode())]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        else:
            headers.append((b"cache-control", b"no-cache"))
        self.exchange.start(200, [*headers, *self.service.limits_headers()])


class StreamedAnswer(Answer):
    """Server-sent events: head, then delta by delta at the stream's own pace."""

    __slots__ = ("_deltas", "_first", "_index", "_interval", "_plan", "_tokens")

    _plan: Plan | None

    def _begin(self, now: float) -> None:
        settings = self.service.settings
        ttft = self.service.draw_s(settings.ttft_ms, settings.ttft_jitter_ms)
        self.service.statistics.ttft_s.append(ttft)
        self._interval = 1 / settings.events_per_s
        self._plan = None
        self._index = -1
        self._first = now + ttft
        self.service.wheel.schedule(self, now + ttft * HEAD_SHARE)

    def fire(self, now: float) -> None:
        index = self._index
        if index < 0:
            self._open(now)
            return
        statistics = self.service.statistics
        if index < len(self._deltas):
            self.exchange.write(self._deltas[index])
            statistics.events_sent += 1
            self.service.spend_output(self._tokens[index])
            self._index = index = index + 1
        if index < len(self._deltas):
            due = self.due + self._interval
            if index == 1:
                # Streams that began together must not go on in step.
                due += self._interval * (self.service.rng.random() - 0.5)
            self.service.wheel.schedule(self, due)
        else:
            self._close()

    def _open(self, now: float) -> None:
        if self._plan is None:
            plan = self._plan = plan_stream(
                self.request,
                compose(self.request, self.fault),
                self.usage,
                self.service.message_id(),
                self.fault,
            )
            self._deltas, self._tokens = plan.deltas, plan.tokens
            self._start(b"text/event-stream; charset=utf-8")
            self.exchange.write(plan.prologue)
            self.service.statistics.events_sent += 3
            self.service.cache.commit(self.cache_plan, now)
            if self.fault == "late_first_token":
                self._first += LATE_S
        elif now < self._first:
            self.exchange.write(messages.PING)
            self.service.statistics.events_sent += 1
        if self._first - now > PING_S:
            self.service.wheel.schedule(self, now + PING_S)
        else:
            self._index = 0
            self.service.wheel.schedule(self, self._first)

    def _close(self) -> None:
        plan = self._plan
        assert plan is not None
        if plan.epilogue:
            self.exchange.write(plan.epilogue)
            self.service.statistics.events_sent += plan.epilogue_events
        if plan.ending == "stall":
            return
        self._finished()
        if plan.ending == "cut":
            self.service.statistics.resets_sent += 1
            self.exchange.reset()
        elif plan.ending == "disconnect":
            self.exchange.abort()
        else:
            self.exchange.end()


class WholeAnswer(Answer):
    """One JSON message, after as long as the model would take to write it."""

    __slots__ = ("_body", "_output")

    def _begin(self, now: float) -> None:
        service, settings = self.service, self.service.settings
        text, stop_reason = limited(
            compose(self.request, self.fault), self.request.output_tokens_max
        )
        if self.fault == "filtered":
            text, stop_reason = NOTHING, "refusal"
        self._output = max(1, sum(text.tokens))
        message = messages.message_json(
            service.message_id(),
            self.request.model,
            "".join(text.pieces),
            stop_reason,
            self.usage,
            output=self._output,
        )
        self._body = msgspec.json.encode(message)
        if self.fault == "malformed":
            self._body = self._body[: len(self._body) // 2]
        if self.request.schema is not None:
            delay = service.draw_s(settings.judge_ms, settings.judge_jitter_ms)
        else:
            delay = service.draw_s(settings.ttft_ms, settings.ttft_jitter_ms)
            delay += len(text.pieces) / settings.events_per_s
        if self.fault == "late_first_token":
            delay += LATE_S
        service.wheel.schedule(self, now + delay)

    def fire(self, now: float) -> None:
        broken = self.fault in ("cut", "disconnect", "stall", "no_end", "error_event")
        self.service.cache.commit(self.cache_plan, now)
        self.service.spend_output(self._output)
        self._start(b"application/json", len(self._body))
        if not broken:
            self._finished()
            self.exchange.write(self._body)
            self.exchange.end()
            return
        self.exchange.write(self._body[: len(self._body) // 2])
        if self.fault == "stall":
            return
        self._finished()
        if self.fault == "disconnect":
            self.exchange.abort()
        else:
            self.service.statistics.resets_sent += 1
            self.exchange.reset()

def rfc3339(seconds: float) -> bytes:
    """A time since the epoch, in whole seconds."""
    at = dt.datetime.fromtimestamp(math.ceil(seconds), tz=dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


_ROUTES: Final = {
    "/v1/messages": (b"POST", Service._messages),
    "/v1/messages/count_tokens": (b"POST", Service._count_tokens),
    "/stats": (b"GET", Service._stats),
    "/control": (b"POST", Service._control),
}
