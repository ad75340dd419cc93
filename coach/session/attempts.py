"""A turn's way through the providers: in order of preference, until one has answered.

A fault before the first text moves on unseen; after it the student's page is told to drop what it
shows. A first token that is late, and a stall, are faults as well. What each attempt has cost is
booked on the provider that was asked.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from ..budget import Ask
from ..errors import Forbidden, Overloaded, TooLarge
from ..nurseries import open_plain_nursery
from ..ops import metrics, traces
from ..providers import (
    ProviderError,
    Usage,
    closes_gate,
    estimate_tokens,
    hold_s,
    is_fault,
    is_final,
    size_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..budget import Admission, FreeAdmission, Patience
    from ..errors import CoachError
    from ..ops import Reason
    from ..providers import FirstTokens, Leave, Prompt, Provider, Visit
    from .services import Route
    from .turn import Turn

    Book = Callable[..., None]

EXTENSIONS: Final = 8
"""How often a stalled answer's deadline is moved within it: it may come so much of it early."""
SETTLE_S: Final = 0.25
"""How long a failed attempt's settlement lets the next one's admission go first."""
RETRY_S: Final = 2.0
"""When to ask again after all providers have failed, where none of them says."""


@final
class Attempt:
    """One provider's answer while it comes: its deadline, and what it cost so far."""

    __slots__ = (
        "_asked_at",
        "_first_tokens",
        "_stall_s",
        "_visit",
        "begun",
        "extend_at",
        "failed",
        "model",
        "refused",
        "scope",
        "unread",
        "usage",
        "whole",
    )

    def __init__(
        self,
        first_tokens: FirstTokens,
        *,
        deadline_s: float,
        stall_s: float,
        visit: Visit | None = None,
    ) -> None:
        """Begin to wait: for the first text `deadline_s`, then `stall_s` for any more.

        `visit` hears when the answer begins: others may wait for that.
        """
        self._visit = visit
        self._asked_at = trio.current_time()
        self._first_tokens = first_tokens
        self._stall_s = stall_s
        self.scope = trio.CancelScope(deadline=self._asked_at + deadline_s)
        self.begun = False
        """Text has come."""
        self.extend_at = 0.0
        """Text that comes from then on must call `extend`."""
        self.usage: Usage | None = None
        """As the provider has counted so far."""
        self.model = ""
        """The one that answers, by its own word."""
        self.failed = False
        """It was not cancelled: the provider did not give a whole answer."""
        self.unread = False
        """It failed before the provider can have read anything."""
        self.refused = False
        """The provider answered that it would not answer."""
        self.whole = False
        """The answer came to its end: `usage` is what it cost."""

    def start(self, usage: Usage) -> None:
        """The answer begins."""
        self.usage = usage
        if self._visit is not None:
            self._visit.began(usage)

    def extend(self, now: float) -> None:
        """Wait on, since text has come. Needed a few times within a stall, not for each piece."""
        if not self.begun:
            self.begun = True
            self._first_tokens.observe(now - self._asked_at)
        self.scope.deadline = now + self._stall_s
        self.extend_at = now + self._stall_s / EXTENSIONS

    def late(self, provider: str) -> ProviderError:
        """Why it was given up at its deadline."""
        waited_s = trio.current_time() - self._asked_at
        what = "no more text came" if self.begun else f"no text came within {waited_s:.1f} s"
        return ProviderError(
            f"{provider}: {what}", kind="stalled", provider=provider, tokens_shown=self.begun
        )

    @property
    def reason(self) -> Reason:
        """What its cost is booked for, when it has ended."""
        if self.whole:
            return "feedback"
        return "wasted-failover" if self.failed else "wasted-cancel"

    def used(self, ask: Ask, text: Sequence[str]) -> Usage:
        """What the provider counts, as far as anybody can know.

        Without an answer it may have read the prompt, where it was sent. Of an answer that was cut
        the output was counted at its beginning only.
        """
        if self.usage is None:
            return Usage(0 if self.refused else ask.input, 0, 0, 0)
        if self.whole or not text:
            return self.usage
        shown = estimate_tokens(sum(map(size_of, text)))
        return attrs.evolve(self.usage, output=max(self.usage.output, shown))


@final
class Attempts:
    """The attempts of one turn."""

    def __init__(
        self,
        turn: Turn,
        routes: Sequence[Route],
        *,
        org: str,
        stall_s: float,
        book: Book,
        patience: Patience,
    ) -> None:
        """Ask the providers of `routes` on behalf of `turn`; nothing is sent yet.

        Args:
          turn: is told what happens, and gets the text.
          routes: one or more, in order of preference.
          org: whose turn it is.
          stall_s: silence between two pieces of text that counts as a fault.
          book: `Costs.book`, told whose turn it is: books what each attempt has cost.
          patience: how long the turn waits for Redis yet, over all providers' budgets.
        """
        self._turn = turn
        self._routes = routes
        self._org = org
        self._book = book
        self._patience = patience
        self._stall_s = stall_s
        self._untried = len(routes)
        self._failures: list[ProviderError | Overloaded | TooLarge] = []
        self._verdict: CoachError | None = None  # nobody will answer; the student was told
        self._moved_on = trio.Event()  # who has failed before may settle: see `_ask`
        self.spent: int | None = None
        """Tokens of all attempts; None: nobody was asked."""

    async def run(self, prompt: Prompt) -> None:
        """Ask until somebody has answered. The student was told of either end before settling.

        Those whose breaker lets nobody in are asked last: then there is nobody else.

        Raises:
          ProviderError, Overloaded: nobody has; the first one's reason that may pass.
          TooLarge, Forbidden: it is about the text, and asking elsewhere cannot mend it.

        Cancellation: the provider's stream is reset, its budget settled by what came.
        """
        async with open_plain_nursery() as asked:
            try:
                await self._go_through(prompt, asked)
            finally:
                self._moved_on.set()
        if self._verdict is not None:
            raise self._verdict

    async def _go_through(self, prompt: Prompt, asked: trio.Nursery) -> None:
        left_out: list[Route] = []
        for route in self._routes:
            leave = await route.circuit.ask()
            if leave is None:
                left_out.append(route)
            elif await asked.start(self._ask, route, leave, prompt):
                return
        for route in left_out:
            if await asked.start(self._ask, route, route.circuit.bypass(), prompt):
                return

    async def _ask(
        self,
        route: Route,
        leave: Leave,
        prompt: Prompt,
        *,
        task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Ask one provider; starts with whether the turn has ended: else the next one is asked.

        What it has cost is settled when that one has let the turn in, or soon: when a provider
        dies, its turns' settlements must not stand in Redis before their admissions elsewhere.
        """
        self._untried -= 1
        output = min(prompt.output_tokens_max, route.output_tokens_max)
        prompt = attrs.evolve(prompt, output_tokens_max=output)
        ask = Ask(input=route.provider.estimator.most(prompt.size()), output=output)
        reserved = attrs.evolve(ask, input=max(1, ask.input - route.warmth.expected_read(prompt)))
        has_ended = moves_on = False
        wished_at = trio.current_time()
        try:
            async with route.budget.admit(
                reserved,
                lane="interactive",
                org=self._org,
                on_position=self._turn.on_position,
                patience=self._patience,
            ) as admission:
                waited_s = trio.current_time() - wished_at
                metrics.budget_wait_seconds.labels(route.provider.name).observe(waited_s)
                traces.current().event(
                    "admitted", coach_provider=route.provider.name, coach_waited=waited_s
                )
                has_ended = await self._converse(route, leave, prompt, ask, admission)
                has_ended = has_ended or self._verdict is not None
                if not has_ended:
                    moves_on, self._moved_on = True, trio.Event()
                    moved_on = self._moved_on
                    task_status.started(False)
                    with trio.move_on_after(SETTLE_S):
                        await moved_on.wait()
        except (Overloaded, TooLarge) as error:
            self._failed(route, error)
            has_ended = self._verdict is not None
        finally:
            leave.dropped()
        if not moves_on:
            task_status.started(has_ended)

    async def _converse(
        self,
        route: Route,
        leave: Leave,
        prompt: Prompt,
        ask: Ask,
        admission: Admission | FreeAdmission,
    ) -> bool:
        """Stream one provider's answer, and settle what it cost."""
        self._moved_on.set()
        await trio.lowlevel.checkpoint_if_cancelled()  # in the moment of its admission
        turn, provider = self._turn, route.provider
        async with route.warmth.visit(prompt, turn.interest) as visit:
            attempt = Attempt(
                route.first_tokens,
                # who has nobody to go to is as patient as the pool is
                deadline_s=route.first_tokens.deadline_s if self._untried else inf,
                stall_s=self._stall_s if self._untried else inf,
                visit=visit,
            )
            turn.begin(attempt, provider, reason=self._reason)
            try:
                with attempt.scope:
                    completion = await provider.stream(prompt, turn, on_headers=admission.observe)
                    attempt.usage, attempt.whole = completion.usage, True
                    attempt.model = completion.model
                if not attempt.whole:
                    raise attempt.late(provider.name)
                leave.succeeded()
                turn.finish(completion)
            except ProviderError as error:
                visit.failed()
                attempt.failed, attempt.refused = True, error.status is not None
                attempt.unread = attempt.usage is None and error.kind == "unreachable"
                alone_s = hold_s(error)
                if alone_s is not None and closes_gate(error.kind):
                    admission.close_gate(alone_s)
                leave.failed(is_fault=is_fault(error.kind), hold_s=alone_s)
                self._failed(route, error)
            finally:
                self._settle(provider, attempt, attempt.used(ask, turn.text), admission)
        return attempt.whole

    @property
    def _reason(self) -> str:
        """Why the provider before did not answer."""
        if not self._failures:
            return ""
        last = self._failures[-1]
        return last.kind if isinstance(last, ProviderError) else last.code

    def _failed(self, route: Route, error: ProviderError | Overloaded | TooLarge) -> None:
        """Go on, or tell the student that there is nobody who could answer."""
        self._failures.append(error)
        if isinstance(error, ProviderError) and is_final(error.kind):
            self._verdict = _about_the_text(error)
        elif not self._untried:
            waits_s = [each.retry_after_s for each in self._failures]
            may_pass = [each for each in self._failures if not isinstance(each, TooLarge)]
            self._verdict = (may_pass or self._failures)[0]
            if may_pass:
                self._verdict.retry_after_s = min(filter(None, waits_s), default=RETRY_S)
        else:
            metrics.failovers_total.labels(route.provider.name, self._reason).inc()
            return
        self._turn.fail(self._verdict)

    def _settle(
        self,
        provider: Provider,
        attempt: Attempt,
        used: Usage,
        admission: Admission | FreeAdmission,
    ) -> None:
        if not attempt.unread:
            self._book(
                reason=attempt.reason,
                provider=provider.name,
                model=attempt.model or provider.model,
                asked=provider.model,
                usage=used,
            )
        for kind, count in attrs.asdict(used).items():
            metrics.tokens_total.labels(provider.name, kind).inc(count)
        fresh = used.input + used.cache_write
        admission.settle(Ask(input=fresh, output=used.output))
        self.spent = (self.spent or 0) + fresh + used.cache_read + used.output


def _about_the_text(error: ProviderError) -> CoachError:
    """What the student hears of a text that no provider will, or may, comment on."""
    reason: CoachError
    if error.kind == "too_long":
        reason = TooLarge("this draft is longer than the model can read in one piece")
    else:
        reason = Forbidden("the provider's content filter keeps the model from commenting on this")
    reason.__cause__ = error
    return reason
