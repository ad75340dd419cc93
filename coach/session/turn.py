"""One feedback turn: reserve, wait in line, stream, settle.

A turn is a cancel scope in its session's nursery. However it ends, the student hears of it exactly
once (`done`, or `error` with a code), and what it had reserved is settled by what it really used.
The student hears first: settling takes round trips to Redis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final, final

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
    from ..errors import Code
    from ..providers import Completion, Prompt
    from .auth import Identity
    from .outbox import Outbox
    from .pacer import Pacer
    from .services import Route, Services

GATE_S: Final = 1.0
"""How long an endpoint's gate stays closed where a refusing provider does not say."""


class TurnCancelled(CoachError):
    """The client wants no more of it."""

    code: ClassVar[Code] = "cancelled"


class Interrupted(CoachError):
    """The server cannot go on with it; asking again may succeed."""

    code: ClassVar[Code] = "interrupted"
    retry_after_s = 1.0


@final
class Turn:
    """A running turn; also the sink that the provider's connection calls for every delta."""

    def __init__(self, *, request: str, draft: str, outbox: Outbox, pacer: Pacer) -> None:
        """Start counting time to first token now."""
        self.request = request
        self.draft = draft
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        """Set by the session when the turn's task has ended and everything is given back."""
        self.text: list[str] = []
        """What was shown, or is about to be."""
        self.outcome: str | None = None
        """`done` or an error code, once the student was told; nothing more is sent then."""
        self._outbox = outbox
        self._pacer = pacer
        self._held: list[str] = []  # the end of `text`, which was not sent yet
        self._send_at = 0.0  # until then text is held
        self._asked_at = trio.current_time()
        self._usage: Usage | None = None
        self._sent = False  # the provider has the request, or may have it
        self._refused = False  # the provider answered that it would not answer
        self._whole = False  # the answer came to its end: `_usage` is what it cost

    # -- the sink: called synchronously by the provider connection's reader task --------------

    def on_start(self, model: str, usage: Usage) -> None:
        """The answer has begun."""
        del model  # `started` named it already
        self._usage = usage

    def on_delta(self, text: str) -> None:
        """The next piece of text: one message, written by this very call, or held (pacer.py)."""
        if self.outcome is not None:
            return
        now = trio.current_time()
        if not self.text:
            metrics.ttft_seconds.observe(now - self._asked_at)
        self.text.append(text)
        if self._held:
            self._held.append(text)
        elif now < self._send_at:
            self._held.append(text)
            self._pacer.flush_at(self._send_at, self)
        else:
            self._send_at = now + self._pacer.window_s
            self._outbox.send(wire.Delta(request=self.request, text=text))

    def flush(self) -> None:
        """Send what is held. Called by the pacer, and before anything else is said."""
        if not self._held:
            return
        text = "".join(self._held)
        self._held.clear()
        self._send_at = trio.current_time() + self._pacer.window_s
        self._outbox.send(wire.Delta(request=self.request, text=text))

    # -- how it ends ---------------------------------------------------------------------------

    def finish(self, completion: Completion) -> None:
        """Tell the student that the feedback is complete."""
        usage = completion.usage
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
        self._end(wire.error_message(error, request=self.request), error.code)

    def cancel(self, error: CoachError) -> None:
        """End it from outside: the student is told at once, the provider's stream is reset soon."""
        self.fail(error)
        self.scope.cancel(str(error))

    def _end(self, message: wire.ServerMessage, outcome: str) -> None:
        self._say(message)
        if self.outcome is None:
            self.outcome = outcome
            metrics.turns_total.labels(outcome).inc()

    def _say(self, message: wire.ServerMessage) -> None:
        if self.outcome is None:
            self.flush()
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
          CoachError: the turn failed; everything reserved was given back or settled. Calling
            `fail` with it is never wrong: once it was under way the student knows already.

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
                self.finish(await self._stream(route, prompt, admission))
            except CoachError as error:
                self.fail(error)
                raise
            finally:
                self._settle(route.provider.name, ask, reservation, admission)

    async def _stream(self, route: Route, prompt: Prompt, admission: Admission) -> Completion:
        provider = route.provider
        await trio.lowlevel.checkpoint_if_cancelled()  # in the moment of its admission
        self._say(wire.Started(request=self.request, provider=provider.name, model=provider.model))
        self._sent = True
        try:
            completion = await provider.stream(prompt, self, on_headers=admission.observe)
        except ProviderError as error:
            self._refused = error.status is not None
            if error.kind in {"rate_limited", "overloaded"}:
                admission.close_gate(error.retry_after_s or GATE_S)
            raise
        self._usage, self._whole = completion.usage, True
        return completion

    def _settle(
        self, provider: str, ask: Ask, reservation: Reservation, admission: Admission
    ) -> None:
        if not self._sent:
            return
        used = self._used(ask)
        for kind, count in attrs.asdict(used).items():
            metrics.tokens_total.labels(provider, kind).inc(count)
        fresh = used.input + used.cache_write
        admission.settle(Ask(input=fresh, output=used.output))
        reservation.settle(fresh + used.cache_read + used.output)

    def _used(self, ask: Ask) -> Usage:
        """What the provider counts, as far as anybody can know.

        Without an answer it may have read the prompt. Of an answer that was cut the output was
        counted at its beginning only.
        """
        if self._usage is None:
            return Usage(0 if self._refused else ask.input, 0, 0, 0)
        if self._whole or not self.text:
            return self._usage
        shown = estimate_tokens(sum(map(len, self.text)))
        return attrs.evolve(self._usage, output=max(self._usage.output, shown))

    def _on_position(self, position: int, eta_s: float) -> None:
        self._say(
            wire.Queued(request=self.request, position=position, eta_ms=math.ceil(eta_s * 1000))
        )
