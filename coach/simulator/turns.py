"""Admitted requests while they are answered: a timer each, on the account's wheel; no I/O."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from .account import Account
from .answers import NOTHING, Plan, Text, compose, lengthened, limited, plan_stream
from .cache import CachePlan
from .dialect import Request, Shape, Usage
from .exchange import Exchange
from .faults import LATE_S, FaultName
from .pacing import Timer

HEAD_SHARE: Final = 0.5
"""Of the time to the first token: when headers and message_start go, and cache entries begin."""
PING_S: Final = 5.0
"""Between pings while a first token is late."""


class Turn(Timer):
    """One request from its admission until it is answered, cancelled or its connection is lost."""

    __slots__ = ("account", "cache_plan", "exchange", "fault", "request", "request_id", "usage")

    def __init__(
        self,
        account: Account,
        exchange: Exchange,
        request: Request,
        cache_plan: CachePlan,
        fault: FaultName | None,
        request_id: str,
    ) -> None:
        super().__init__()
        self.account = account
        self.exchange = exchange
        self.request = request
        self.cache_plan = cache_plan
        self.usage = Usage(
            cache_plan.uncached, cache_plan.write, cache_plan.write_hour, cache_plan.read
        )
        self.fault = fault
        self.request_id = request_id

    def begin(self) -> None:
        """Start answering; a `silent` request is never answered and ends by being cancelled."""
        self.exchange.work = self
        self.account.statistics.opened()
        if self.fault != "silent":
            self._begin(self.account.clock())

    def cancelled(self, *, by_reset: bool) -> None:
        """The client gave up: nothing more is generated, paid or remembered."""
        statistics = self.account.statistics
        self.account.wheel.cancel(self)
        statistics.streams_open -= 1
        if by_reset:
            statistics.streams_cancelled += 1
        else:
            statistics.streams_lost += 1

    def _begin(self, now: float) -> None:
        raise NotImplementedError

    def _start(self, content_type: bytes, length: int | None = None) -> None:
        id_header = self.account.dialect.request_id_header
        headers = [(b"content-type", content_type), (id_header, self.request_id.encode())]
        if length is None:
            headers.append((b"cache-control", b"no-cache"))
        else:
            headers.append((b"content-length", b"%d" % length))
        self.exchange.start(200, [*headers, *self.account.limits_headers()])
        self.account.cache.commit(self.cache_plan, self.account.clock())

    def _composed(self) -> Text:
        return compose(self.request, self.fault, gullible=self.account.settings.gullible)

    def _shape(self) -> Shape:
        dialect = self.account.dialect
        message_id = self.account.new_id(dialect.id_prefix)
        return dialect.shape(self.request, self.usage, message_id, self.account.wall())

    def _finished(self) -> None:
        self.exchange.work = None
        self.account.statistics.streams_open -= 1
        self.account.statistics.streams_finished += 1

    def _broken_off(self) -> None:
        self._finished()
        if self.fault == "disconnect":
            self.exchange.abort()
        else:
            self.account.statistics.resets_sent += 1
            self.exchange.reset()


class StreamedTurn(Turn):
    """Server-sent events: the head, then delta by delta at the stream's own pace."""

    __slots__ = ("_ends_at", "_first", "_index", "_interval", "_plan")

    def _begin(self, now: float) -> None:
        settings = self.account.settings
        ttft = self.account.draw_s(settings.ttft_ms, settings.ttft_jitter_ms)
        self.account.statistics.ttft_s.append(ttft)
        self._interval = 1 / settings.events_per_s
        self._ends_at: float | None = None
        if self.request.schema is not None:  # JSON takes as long as in one piece
            whole_s = self.account.draw_s(settings.judge_ms, settings.judge_jitter_ms)
            self._ends_at = now + whole_s
        self._plan: Plan | None = None
        self._index = 0
        # of the next delta
        self._first = now + ttft
        if self.fault == "late_first_token":
            self._first += LATE_S
        self.account.wheel.schedule(self, now + ttft * HEAD_SHARE)

    def fire(self, now: float) -> None:
        """Send what is due, and wait for the next."""
        plan = self._plan
        if plan is None or (self._index == 0 and now < self._first):
            self._open(now)
            return
        deltas, tokens, index, due = plan.deltas, plan.tokens, self._index, self.due
        stamp = self.account.settings.stamp
        begun = index
        while index < len(deltas) and due <= now:
            delta = deltas[index]
            self.exchange.write(plan.shape.stamped(delta, time.monotonic()) if stamp else delta)
            self.account.spend_output(tokens[index], self.request.kind)
            due += self._interval
            if index == 0:
                # Streams that began together must not go on in step.
                due += self._interval * (self.account.rng.random() - 0.5)
            index += 1
        self.account.statistics.events_sent += index - begun
        self._index = index
        if index < len(deltas):
            self.account.wheel.schedule(self, due)
        else:
            self._close(plan)

    def _open(self, now: float) -> None:
        """Headers and the events before the first delta; then pings while that is late."""
        if self._plan is None:
            text = self._composed()
            number_as = None
            if self.request.schema is None:
                text = lengthened(text, self.account.settings.feedback_events_min)
                number_as = self.request_id if self.account.settings.number else None
            self._plan = plan = plan_stream(
                self.request, text, self._shape(), self.fault, number_as=number_as
            )
            if self._ends_at is not None:
                rest_s = max(0.0, self._ends_at - self._first)
                self._interval = rest_s / max(1, len(plan.deltas))
            self._start(b"text/event-stream; charset=utf-8")
            self.exchange.write(plan.shape.prologue)
            self.account.statistics.events_sent += plan.shape.prologue_events
        else:
            self.exchange.write(self._plan.shape.ping)
            self.account.statistics.events_sent += 1
        self.account.wheel.schedule(self, min(self._first, now + PING_S))

    def _close(self, plan: Plan) -> None:
        if plan.epilogue:
            self.exchange.write(plan.epilogue)
            self.account.statistics.events_sent += plan.epilogue_events
        if plan.ending == "stall":
            return
        if plan.ending in ("cut", "disconnect"):
            self._broken_off()
            return
        self._finished()
        self.exchange.end()


class WholeTurn(Turn):
    """One JSON message, after as long as the model would take to write it."""

    __slots__ = ("_body", "_output_tokens")

    def _begin(self, now: float) -> None:
        account, request = self.account, self.request
        text, stop_reason = limited(self._composed(), request.output_tokens_max)
        if self.fault == "filtered":
            text, stop_reason = NOTHING, "refusal"
        self._output_tokens = max(1, sum(text.tokens))
        self._body = msgspec.json.encode(
            self._shape().whole("".join(text.pieces), stop_reason, self._output_tokens)
        )
        if self.fault == "malformed":
            self._body = self._body[: len(self._body) // 2]
        account.wheel.schedule(self, now + self._delay_s(len(text.pieces)))

    def fire(self, now: float) -> None:
        """Send the answer, or the half that a fault leaves of it."""
        self.account.spend_output(self._output_tokens, self.request.kind)
        self._start(b"application/json", len(self._body))
        if self.fault not in ("cut", "disconnect", "stall", "no_end", "error_event"):
            self._finished()
            self.exchange.write(self._body)
            self.exchange.end()
            return
        self.exchange.write(self._body[: len(self._body) // 2])
        if self.fault != "stall":
            self._broken_off()

    def _delay_s(self, pieces: int) -> float:
        account, settings = self.account, self.account.settings
        if self.request.schema is None:
            delay = account.draw_s(settings.ttft_ms, settings.ttft_jitter_ms)
            delay += pieces / settings.events_per_s
        else:
            delay = account.draw_s(settings.judge_ms, settings.judge_jitter_ms)
        return delay + LATE_S if self.fault == "late_first_token" else delay
