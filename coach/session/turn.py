"""One feedback turn: reserve, wait in line, stream, settle.

A turn is a cancel scope in its session's nursery. However it ends, the student hears of it exactly
once (`done`, or `error` with a code), and what it had reserved is settled by what it really used.
The student hears first: settling takes round trips to Redis.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, final

import attrs
import trio

from ..budget import Patience
from ..errors import CoachError
from ..ops import metrics, traces
from ..providers import feedback_prompt
from . import wire
from .attempts import Attempts

if TYPE_CHECKING:
    from ..errors import Code
    from ..ops import Flag
    from ..providers import Completion, Interest, Provider, Question, Usage
    from .attempts import Attempt
    from .auth import Identity
    from .outbox import Outbox
    from .pacer import Pacer
    from .services import Services

ANSWER_TOKENS_MIN: Final = 64
"""An answer has at least so many to be worth asking for, also where a small limit leaves fewer."""


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

    def __init__(
        self,
        *,
        request: str,
        draft: str,
        outbox: Outbox,
        pacer: Pacer,
        interest: Interest | None = None,
    ) -> None:
        """Start counting time to first token now."""
        self.request = request
        self.draft = draft
        self.interest = interest
        """Whose turn it is, as one who may ask again."""
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        """Set by the session when the turn's task has ended and everything is given back."""
        self.text: list[str] = []
        """What was shown, or is about to be."""
        self.ttft_s: float | None = None
        """From the student's question to the first text of all."""
        self.outcome: str | None = None
        """`done` or an error code, once the student was told; nothing more is sent then."""
        self._outbox = outbox
        self._pacer = pacer
        self._held: list[str] = []  # the end of `text`, which was not sent yet
        self._send_at = 0.0  # until then text is held
        self._asked_at = trio.current_time()
        self._attempt: Attempt | None = None  # of the provider that answers now
        self._provider: str | None = None  # its name, likewise
        self._flags_off: tuple[Flag, ...] = ()
        self._adds = False  # the answer is about what has changed

    # -- the sink: called synchronously by the provider connection's reader task --------------

    def on_start(self, model: str, usage: Usage) -> None:
        """The answer has begun."""
        assert self._attempt is not None
        self._attempt.model = model
        self._attempt.start(usage)

    def on_delta(self, text: str) -> None:
        """The next piece of text: one message, written by this very call, or held (pacer.py)."""
        if self.outcome is not None:
            return
        now = trio.current_time()
        attempt = self._attempt
        assert attempt is not None
        if now >= attempt.extend_at:
            attempt.extend(now)
            if self.ttft_s is None:
                self.ttft_s = now - self._asked_at
                metrics.ttft_seconds.observe(self.ttft_s)
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

    def begin(self, attempt: Attempt, provider: Provider, *, reason: str) -> None:
        """`provider` answers; what another one had begun is void, and why."""
        if self._attempt is None:
            self._say(
                wire.Started(
                    request=self.request,
                    provider=provider.name,
                    model=provider.model,
                    flags_off=self._flags_off,
                    adds=self._adds,
                )
            )
        else:
            self._held.clear()
            self.text.clear()
            self._send_at = 0.0
            self._say(wire.Restarted(request=self.request, provider=provider.name, reason=reason))
        self._attempt, self._provider = attempt, provider.name

    def retell(self) -> None:
        """Say from the beginning what was said, to a client that has missed a part of it."""
        if self._attempt is None or self.outcome is not None:
            return
        self._held.clear()
        assert self._provider is not None
        self._outbox.send(
            wire.Restarted(request=self.request, provider=self._provider, reason="resumed")
        )
        if self.text:
            self._outbox.send(wire.Delta(request=self.request, text="".join(self.text)))

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
        question: Question,
        assignment: str | None,
    ) -> None:
        """Reserve, wait, stream, settle; at the next provider if one fails (attempts.py).

        Sends `queued`, `started`, the deltas, perhaps `restarted` and other deltas, and `done`.

        Raises:
          CoachError: the turn failed; everything reserved was given back or settled. Calling
            `fail` with it is never wrong: once it was under way the student knows already.

        Cancellation: the provider's stream is reset and the reservations are settled by what was
        used so far before this returns.
        """
        services.costs.check(identity.org)
        self._adds = question.is_new
        prompt = feedback_prompt(
            rubric=services.rubric.as_text(),
            assignment=services.rubric.task(assignment),
            question=question,
            output_tokens_max=max(route.output_tokens_max for route in services.routes),
            user_id=services.pseudonyms.of(org=identity.org, user=identity.user),
        )
        size = prompt.size()
        read = max(route.provider.estimator.most(size) for route in services.routes)
        read_least = min(route.provider.estimator.least(size) for route in services.routes)
        stall_s = services.settings.failover.stall_s_max
        routes = services.routes
        self._flags_off = tuple(services.flags.off_for(identity.user))
        if self._flags_off:
            routes = [route.without(self._flags_off) for route in routes]
            for flag in self._flags_off:
                metrics.flag_off_turns_total.labels(flag).inc()
        book = partial(
            services.costs.book,
            org=identity.org,
            user=identity.user,
            assignment=services.rubric.known(assignment),
        )
        patience = Patience(services.settings.limits.wait_s)
        attempts = Attempts(
            self, routes, org=identity.org, stall_s=stall_s, book=book, patience=patience
        )
        async with services.limits_of(identity.user).reserve(
            user=identity.user,
            org=identity.org,
            tokens=read + prompt.output_tokens_max,
            tokens_least=read_least + ANSWER_TOKENS_MIN,
            patience=patience,
        ) as reservation:
            traces.current().event("within the limits")
            left = max(ANSWER_TOKENS_MIN, reservation.tokens - read)
            prompt = attrs.evolve(prompt, output_tokens_max=min(prompt.output_tokens_max, left))
            try:
                await attempts.run(prompt)
            finally:
                if attempts.spent is not None:
                    reservation.settle(attempts.spent)

    def on_position(self, position: int, eta_s: float) -> None:
        """Its place in the line has changed; `eta_s` seconds remain, as it looks now."""
        self._say(
            wire.Queued(request=self.request, position=position, eta_ms=math.ceil(eta_s * 1000))
        )
