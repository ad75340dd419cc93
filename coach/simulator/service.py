"""The provider's HTTP API: which request gets which answer; no I/O, the caller has the clock.

What takes time is a timer on the account's wheel; a shell calls `tick` when one is due and sends
what the exchanges have gathered. Requests arrive by `receive`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import msgspec

from .account import Account
from .dialect import ApiError, Request
from .exchange import Exchange, Headers
from .faults import FaultName, rules_from_json
from .settings import Settings, changed
from .turns import StreamedTurn, WholeTurn

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
        self._dialect = account.dialect
        self._on_change = on_change
        self._batch_pages = account.dialect.batch_pages(account)
        self._routes: dict[str, tuple[bytes, Callable[[Exchange, str], None]]] = {
            self._dialect.path: (b"POST", self._ask),
            "/stats": (b"GET", self._stats),
            "/control": (b"POST", self._control),
        }
        for path, page in self._dialect.pages.items():
            self._routes[path] = (b"POST", partial(self._page, page))

    def receive(self, exchange: Exchange) -> None:
        """Answer one request, now or by timers."""
        request_id = self.account.new_id("req")
        path = urlsplit(exchange.path.decode("latin-1")).path
        try:
            route = self._routes.get(path)
            if route is None:
                self._batch(exchange, request_id)
                return
            method, answer = route
            if exchange.method != method:
                raise self._dialect.invalid("Method Not Allowed", 405)
            if exchange.too_large:
                raise self._dialect.too_large()
            answer(exchange, request_id)
        except ApiError as error:
            self._refuse(exchange, error, request_id)

    def tick(self, now: float) -> None:
        """Do what is due at `now`."""
        self.account.wheel.fire(now)
        self.account.settle()

    def _ask(self, exchange: Exchange, request_id: str) -> None:
        account, statistics = self.account, self.account.statistics
        statistics.requests += 1
        self._dialect.check_key(exchange.headers, account.settings.api_key)
        request = self._dialect.parse(exchange.body)
        kind = request.kind
        statistics.judge_requests += kind == "judge"
        fault = account.faults.draw(kind, account.rng)
        self._check(request, fault)
        if self._breaks_off(exchange, fault, request_id):
            account.count_failed(request)
            return
        now = account.clock()
        plan = account.cache.plan(request.model + request.cache_key, request.blocks, now)
        shortage = account.admit(request, plan.uncached + plan.write)
        if shortage is not None:
            raise self._dialect.over_quota(shortage, request.model)
        account.cache.touch(plan, now)
        statistics.input_tokens += plan.uncached
        statistics.cache_write_tokens += plan.write
        statistics.cache_read_tokens += plan.read
        sums = statistics.sums[kind]
        sums.let_in += 1
        sums.input_tokens += plan.uncached
        sums.cache_write_tokens += plan.write
        sums.cache_read_tokens += plan.read
        turn = StreamedTurn if request.stream else WholeTurn
        turn(account, exchange, request, plan, fault, request_id).begin()

    def _page(self, page: Callable[[bytes], object], exchange: Exchange, request_id: str) -> None:
        self._dialect.check_key(exchange.headers, self.account.settings.api_key)
        body = msgspec.json.encode(page(exchange.body))
        self._respond(exchange, 200, JSON, body, request_id)

    def _batch(self, exchange: Exchange, request_id: str) -> None:
        """What is none of the paths above is about batches, or nothing."""
        path = exchange.path.decode("latin-1")
        if not path.startswith("/v1/"):
            raise self._dialect.not_found(exchange.method.decode("latin-1"), path)
        self._dialect.check_key(exchange.headers, self.account.settings.api_key)
        if exchange.too_large:
            raise self._dialect.too_large()
        content_type, body = self._batch_pages.answer(
            exchange.method, path, exchange.headers, exchange.body
        )
        self._respond(exchange, 200, content_type, body, request_id)

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
            raise self._dialect.invalid(str(error)) from error
        if rules is not None:
            self.account.faults.replace(rules)
        self.account.change(settings)
        self._on_change(settings)
        body = msgspec.json.encode({**msgspec.structs.asdict(settings), "faults": rules or {}})
        self._respond(exchange, 200, JSON, body, request_id)

    def _check(self, request: Request, fault: FaultName | None) -> None:
        """Refuse with a status, by a fault or because the prompt is too long."""
        most = self.account.settings.context_tokens_max
        error = None if fault is None else self._dialect.refusal(fault)
        if fault == "too_long" or request.input_tokens > most:
            error = self._dialect.too_long(max(request.input_tokens, most + 1), most)
        if error is not None:
            self.account.count_failed(request)
            raise error

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
        self.account.statistics.errors_sent += 1
        extra = [*self._dialect.error_headers(error)]
        if error.status == 429:
            self.account.statistics.rate_limited += 1
            extra += self.account.limits_headers()
        body = msgspec.json.encode(self._dialect.error_json(error, request_id))
        self._respond(exchange, error.status, JSON, body, request_id, extra=extra)

    def _respond(
        self,
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
            (self._dialect.request_id_header, request_id.encode()),
        ]
        exchange.start(status, [*headers, *extra])
        exchange.write(body)
        exchange.end()
