"""The provider's HTTP API: which request gets which answer; no I/O, the caller has the clock.

What takes time is a timer on the account's wheel; a shell calls `tick` when one is due and sends
what the exchanges have gathered. Requests arrive by `receive`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from . import messages
from .account import Account
from .exchange import Exchange, Headers
from .faults import RETRY_AFTER_S, FaultName, rules_from_json
from .messages import ApiError, Request, invalid, parse_request
from .quota import Shortage
from .settings import Settings, changed
from .turns import StreamedTurn, WholeTurn

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
JSON: Final = b"application/json"


class Service:
    """Routes, refusals and the operator's two pages.

    Args:
      account: what all requests share.
      on_change: called when `POST /control` has changed the settings.
    """

    def __init__(
        self, account: Account, *, on_change: Callable[[Settings], None] = lambda _: None
    ) -> None:
        self.account = account
        self._on_change = on_change
        self._routes: dict[str, tuple[bytes, Callable[[Exchange, str], None]]] = {
            "/v1/messages": (b"POST", self._messages),
            "/v1/messages/count_tokens": (b"POST", self._count_tokens),
            "/stats": (b"GET", self._stats),
            "/control": (b"POST", self._control),
        }

    def receive(self, exchange: Exchange) -> None:
        """Answer one request, now or by timers."""
        request_id = self.account.new_id("req")
        path = urlsplit(exchange.path.decode("latin-1")).path
        try:
            route = self._routes.get(path)
            if route is None:
                raise ApiError(404, "not_found_error", f"Not found: {path}")
            method, answer = route
            if exchange.method != method:
                raise invalid("Method Not Allowed", 405)
            if exchange.too_large:
                raise ApiError(413, "request_too_large", "Request exceeds the maximum size")
            answer(exchange, request_id)
        except ApiError as error:
            self._refuse(exchange, error, request_id)

    def tick(self, now: float) -> None:
        """Do what is due at `now`."""
        self.account.wheel.fire(now)
        self.account.settle()

    def _messages(self, exchange: Exchange, request_id: str) -> None:
        account, statistics = self.account, self.account.statistics
        statistics.requests += 1
        self._authenticate(exchange)
        request = parse_request(exchange.body)
        kind: Literal["feedback", "judge"] = "feedback" if request.schema is None else "judge"
        statistics.judge_requests += kind == "judge"
        fault = account.faults.draw(kind, account.rng)
        self._check(request, fault)
        if self._breaks_off(exchange, fault, request_id):
            return
        now = account.clock()
        plan = account.cache.plan(request.model, request.blocks, now)
        shortage = account.admit(plan.uncached + plan.write)
        if shortage is not None:
            raise _over_quota(shortage)
        account.cache.touch(plan, now)
        statistics.input_tokens += plan.uncached
        statistics.cache_write_tokens += plan.write
        statistics.cache_read_tokens += plan.read
        turn = StreamedTurn if request.stream else WholeTurn
        turn(account, exchange, request, plan, fault, request_id).begin()

    def _count_tokens(self, exchange: Exchange, request_id: str) -> None:
        self._authenticate(exchange)
        body = msgspec.json.encode({"input_tokens": messages.count_tokens(exchange.body)})
        self._respond(exchange, 200, JSON, body, request_id)

    def _stats(self, exchange: Exchange, request_id: str) -> None:
        self.account.settle()
        numbers = self.account.statistics.as_json()
        numbers["cache_entries"] = len(self.account.cache)
        numbers["timers"] = len(self.account.wheel)
        for name, count in self.account.faults.injected.items():
            numbers[f"fault_{name}"] = count
        self._respond(exchange, 200, JSON, msgspec.json.encode(numbers), request_id)

    def _control(self, exchange: Exchange, request_id: str) -> None:
        try:
            changes = msgspec.json.decode(exchange.body, type=dict[str, object])
            rules = rules_from_json(changes.pop("faults")) if "faults" in changes else None
            settings = changed(self.account.settings, changes)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise invalid(str(error)) from error
        if rules is not None:
            self.account.faults.replace(rules)
        self.account.change(settings)
        self._on_change(settings)
        body = msgspec.json.encode({**msgspec.structs.asdict(settings), "faults": rules or {}})
        self._respond(exchange, 200, JSON, body, request_id)

    def _authenticate(self, exchange: Exchange) -> None:
        key = exchange.headers.get(b"x-api-key", b"").decode("latin-1")
        if not key:
            raise ApiError(401, "authentication_error", "x-api-key header is required")
        if self.account.settings.api_key not in (None, key):
            raise ApiError(401, "authentication_error", "invalid x-api-key")
        if b"anthropic-version" not in exchange.headers:
            raise invalid("anthropic-version: header is required")

    def _check(self, request: Request, fault: FaultName | None) -> None:
        """Refuse with a status, by a fault or because the prompt is too long."""
        most = self.account.settings.context_tokens_max
        if fault == "too_long" or request.input_tokens > most:
            tokens = max(request.input_tokens, most + 1)
            raise invalid(f"prompt is too long: {tokens} tokens > {most} maximum")
        if fault in _REFUSALS:
            status, kind, message = _REFUSALS[fault]
            retry_after_s = RETRY_AFTER_S if fault == "rate_limited" else None
            raise ApiError(status, kind, message, retry_after_s=retry_after_s)

    def _breaks_off(self, exchange: Exchange, fault: FaultName | None, request_id: str) -> bool:
        """Whether a fault below or beside the API has dealt with the request."""
        match fault:
            case "unavailable":
                self.account.statistics.errors_sent += 1
                body = b"upstream connect error or disconnect/reset before headers"
                self._respond(exchange, 503, b"text/plain", body, request_id)
            case "reset":
                exchange.abort()
            case "refused_stream":
                self.account.statistics.resets_sent += 1
                exchange.refuse()
            case "goaway":
                exchange.go_away()
            case _:
                return False
        return True

    def _refuse(self, exchange: Exchange, error: ApiError, request_id: str) -> None:
        retry = b"true" if error.status == 429 or error.status >= 500 else b"false"
        extra = [(b"x-should-retry", retry)]
        self.account.statistics.errors_sent += 1
        if error.status == 429:
            self.account.statistics.rate_limited += 1
            extra += self.account.limits_headers()
        if error.retry_after_s is not None:
            extra.append((b"retry-after", b"%d" % error.retry_after_s))
        body = error.body(request_id)
        self._respond(exchange, error.status, JSON, body, request_id, extra=extra)

    @staticmethod
    def _respond(
        exchange: Exchange,
        status: int,
        content_type: bytes,
        body: bytes,
        request_id: str,
        *,
        extra: Headers = (),
    ) -> None:
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"request-id", request_id.encode()),
        ]
        exchange.start(status, [*headers, *extra])
        exchange.write(body)
        exchange.end()


def _over_quota(shortage: Shortage) -> ApiError:
    what = shortage.dimension.replace("-", " ")
    return ApiError(
        429,
        "rate_limit_error",
        "This request would exceed your organization's rate limit of "
        f"{shortage.limit:,} {what} per minute. Please reduce the prompt length or the maximum "
        "tokens requested, or try again later.",
        retry_after_s=shortage.retry_after_s,
    )
