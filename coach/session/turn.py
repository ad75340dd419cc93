"""One feedback turn: reserve, wait in line, stream, settle.

A turn is a cancel scope in its session's nursery. However it ends, the student hears of it exactly
once (`done`, or `error` with a code), and what it had reserved is settled by what it really used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from ..budget import Ask
from ..errors import CoachError
from ..ops import metrics
from ..providers import ProviderError, Usage, estimate_tokens, feedback_prompt
from . import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..budget import Admission, Reservation
    from ..providers import Completion, Prompt
    from .auth import Identity
    from .outbox import Outbox
    from .services import Route, Services

GATE_S: Final = 1.0
"""How long an endpoint's gate stays closed where a refusing provider does not say."""


@final
class Turn:
    """A running turn; also the sink that the provider's connection calls for every delta."""

    def __init__(self, *, request: str, draft: str, outbox: Outbox) -> None:
        """Start counting time to first token now."""
        self.request = request
        self.draft = draft
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        """Set by the session when the turn's task has ended and everything is given back."""
        self.text: list[str] = []
        self._outbox = outbox
        self._asked_at = trio.current_time()
        self._usage: Usage | None = None
        self._sent = False  # the provider has the request, or may have it
        self._whole = False  # the answer came to its end: `_usage` is what it cost
        self._ended = False  # the student was told how it ended; nothing more is sent

    # -- the sink: called synchronously by the provider connection's reader task --------------

    def on_start(self, model: str, usage: Usage) -> None:
        """The answer has begun."""
        del model  # `started` named it already
        self._usage = usage

    def on_delta(self, text: str) -> None:
        """The next piece of text: one message, written by this very call."""
        if self._ended:
            return
        if not self.text:
            metrics.ttft_seconds.observe(trio.current_time() - self._asked_at)
        self.text.append(text)
        self._outbox.send(wire.Delta(request=self.request, text=text))

    # -- how it ends ---------------------------------------------------------------------------

    def finish(self, completion: Completion, provider: str) -> None:
        """Tell the student that the feedback is complete."""
        usage = completion.usage
        for kind, count in attrs.asdict(usage).items():
            metrics.tokens_total.labels(provider, kind).inc(count)
        fresh = usage.input + usage.cache_write
        self._end(
            wire.Done(
                request=self.request,
                usage=wire.TokenUsage(input=fresh, cached=usage.cache_read, output=usage.output),
                stop_reason=completion.stop_reason,
            ),
            "done",
        )

    def fail(self, error: CoachError) -> None:
        """Tell the student that there will be no (more) feedback."""
        self._end(error_message(error, request=self.request), error.code)

    def cancel(self, reason: str) -> None:
        """End it from outside: the student is told at once, the provider's stream is reset soon."""
        self._end(wire.Error(code="cancelled", message=reason, request=self.request), "cancelled")
        self.scope.cancel(reason)

    def _end(self, message: wire.ServerMessage, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        metrics.turns_total.labels(outcome).inc()
        self._outbox.send(message)

    # -- the conversation ----------------------------------------------------------------------

    async def run(
        self,
        services: Services,
        identity: Identity,
        *,
        text: str,
        focus: str | None,
        assignment: str,
        history: Sequence[tuple[str, str]],
    ) -> None:
        """Reserve, wait, stream, settle. Sends `queued`, `started`, the deltas and `done`.

        Raises:
          CoachError: the turn failed; everything reserved was given back or settled. The caller
            tells the student with `fail`.

        Cancellation: the provider's stream is reset and the reservations are settled by what was
        used so far before this returns.
        """
        route = services.routes[0]
        prompt = feedback_prompt(
            rubric=services.rubric.as_text(),
            assignment=assignment,
            history=history,
            draft=text,
            focus=focus,
            output_tokens_max=route.output_tokens_max,
        )
        ask = Ask(input=estimate_tokens(prompt.characters()), output=route.output_tokens_max)
        async with (
            services.limits.reserve(
                user=identity.user, org=identity.org, tokens=ask.input + ask.output
            ) as reservation,
            route.budget.admit(
                ask, lane="interactive", org=identity.org, on_position=self._on_position
            ) as admission,
        ):
            try:
                completion = await self._stream(route, prompt, admission)
            finally:
                self._settle(ask, reservation, admission)
        self.finish(completion, route.provider.name)

    async def _stream(self, route: Route, prompt: Prompt, admission: Admission) -> Completion:
        provider = route.provider
        self._outbox.send(
            wire.Started(request=self.request, provider=provider.name, model=provider.model)
        )
        self._sent = True
        try:
            completion = await provider.stream(prompt, self, on_headers=admission.observe)
        except ProviderError as error:
            if error.kind in {"rate_limited", "overloaded"}:
                admission.close_gate(error.retry_after_s or GATE_S)
            raise
        self._usage, self._whole = completion.usage, True
        return completion

    def _settle(self, ask: Ask, reservation: Reservation, admission: Admission) -> None:
        if not self._sent:
            return
        usage = self._usage
        if usage is None:  # it never answered: it may have read the prompt
            spent, total = Ask(input=ask.input, output=0), ask.input
        else:
            cut = self.text and not self._whole  # then the count is from its beginning
            shown = estimate_tokens(sum(map(len, self.text))) if cut else 0
            spent = Ask(input=usage.input + usage.cache_write, output=max(usage.output, shown))
            total = spent.input + usage.cache_read + spent.output
        admission.settle(spent)
        reservation.settle(total)

    def _on_position(self, position: int, eta_s: float) -> None:
        if not self._ended:
            self._outbox.send(
                wire.Queued(request=self.request, position=position, eta_ms=math.ceil(eta_s * 1000))
            )


def error_message(
    error: CoachError, *, request: str | None = None, submission: str | None = None
) -> wire.Error:
    """Put an error into the client's words."""
    metrics.client_errors_total.labels(error.code).inc()
    return wire.Error(
        code=error.code,
        message=str(error),
        request=request,
        submission=submission,
        retry_after_ms=(
            None if error.retry_after_s is None else math.ceil(error.retry_after_s * 1000)
        ),
    )
