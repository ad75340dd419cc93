"""In-memory stand-ins for a provider and its budget: faults are data, and everything is counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import trio

from coach.budget import Ask, EndpointBudget, Lane
from coach.grading.judges import Bench
from coach.grading.rubric import Rubric, load_rubric
from coach.providers import (
    Circuit,
    Completion,
    Estimator,
    FirstTokens,
    Prompt,
    Provider,
    Usage,
)
from coach.simulator import essay
from tests.support.warmth import no_warmth

RUBRIC = load_rubric()
USAGE = Usage(input=100, cache_write=10, cache_read=1_000, output=50)


def judged(
    evidence: str, *, band: int = 3, rubric: Rubric = RUBRIC, improve_first: str = "Say why."
) -> str:
    """A judge's answer with the same band and evidence everywhere."""
    judgement = {"band": band, "evidence": evidence, "reason": "It shows."}
    return json.dumps(
        {
            "criteria": {criterion.name: judgement for criterion in rubric.criteria},
            "improve_first": improve_first,
        }
    )


def essay_in(prompt: Prompt) -> str:
    """The essay that a prompt asks about."""
    return essay.essay_in("".join(block.text for block in prompt.messages[-1].blocks))


Reply = str | Exception | float
"""What a provider does: answer so, raise this, or take so many seconds and go on."""


@attrs.define(kw_only=True)
class FakeProvider:
    """Answers from `replies`, one after the other; when they are used up, well, at once."""

    name: str = "opus"
    model: str = "judge-1"
    replies: list[Reply] = attrs.field(factory=list)
    answer: Callable[[Prompt], Awaitable[str]] | None = None
    stop_reason: str = "end_turn"
    prompts: list[Prompt] = attrs.field(factory=list)
    estimator: Estimator = attrs.field(factory=Estimator)
    running: int = 0
    running_peak: int = 0

    async def complete(
        self, prompt: Prompt, *, on_headers: Callable[[Mapping[str, str]], None] | None = None
    ) -> Completion:
        self.prompts.append(prompt)
        if on_headers is not None:
            on_headers({"request-id": "r"})
        self.running += 1
        self.running_peak = max(self.running, self.running_peak)
        try:
            text = await self._text(prompt)
        finally:
            self.running -= 1
        return Completion(text=text, usage=USAGE, stop_reason=self.stop_reason, model=self.model)

    async def _text(self, prompt: Prompt) -> str:
        await trio.lowlevel.checkpoint()
        while self.replies:
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, str):
                return reply
            await trio.sleep(reply)
        if self.answer is not None:
            return await self.answer(prompt)
        return judged(essay_in(prompt)[:40])

    def as_provider(self) -> Provider:
        return cast(Provider, self)


@attrs.define
class FakeCircuit:
    """A breaker that is shut or not; remembers how each leave ended."""

    shut: bool = False
    told: list[str] = attrs.field(factory=list)
    """"ok", "fault" or "nothing"."""

    async def ask(self) -> FakeLeave | None:
        return None if self.shut else FakeLeave(self.told)

    def bypass(self) -> FakeLeave:
        return FakeLeave(self.told)


@attrs.define
class FakeLeave:
    _told: list[str]
    _ended: bool = False

    def succeeded(self) -> None:
        self._end("ok")

    def failed(self, *, is_fault: bool, hold_s: float | None = None) -> None:
        del hold_s
        self._end("fault" if is_fault else "nothing")

    def dropped(self) -> None:
        self._end("nothing")

    def _end(self, how: str) -> None:
        if not self._ended:
            self._ended = True
            self._told.append(how)


def bench_of(
    provider: FakeProvider,
    budget: FakeBudget,
    circuit: FakeCircuit | None = None,
    *,
    patience_s: float = 4.0,
    output_tokens_max: int = 1_500,
) -> Bench:
    """An endpoint of fakes."""
    return Bench(
        provider=provider.as_provider(),
        budget=budget.as_budget(),
        circuit=cast("Circuit", circuit or FakeCircuit()),
        warmth=no_warmth(),
        patience=FirstTokens(s_min=2.0, s_max=8.0, s_first=patience_s),
        output_tokens_max=output_tokens_max,
    )


@attrs.define(kw_only=True)
class FakeBudget:
    """Admits at once but for a closed gate; remembers how every admission was settled."""

    refuse: Exception | None = None
    gate_opens_at: float = 0.0
    admitted: list[tuple[Ask, Lane, str]] = attrs.field(factory=list)
    settled: list[Ask | None] = attrs.field(factory=list)
    """In the order of leaving; None: everything was given back."""
    open: int = 0
    observed: list[Mapping[str, str]] = attrs.field(factory=list)
    """Headers that may correct the window."""

    @asynccontextmanager
    async def admit(
        self, ask: Ask, *, lane: Lane, org: str, on_position: Any = None
    ) -> AsyncIterator[FakeAdmission]:
        del on_position
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        if self.gate_opens_at > trio.current_time():
            await trio.sleep_until(self.gate_opens_at)
        self.admitted.append((ask, lane, org))
        admission = FakeAdmission(self)
        self.open += 1
        try:
            yield admission
        finally:
            self.open -= 1
            self.settled.append(admission.spent)

    def as_budget(self) -> EndpointBudget:
        return cast(EndpointBudget, self)


class FakeAdmission:
    def __init__(self, budget: FakeBudget) -> None:
        self._budget = budget
        self.spent: Ask | None = None

    def settle(self, spent: Ask) -> None:
        self.spent = spent

    def observe(self, headers: Mapping[str, str]) -> None:
        self._budget.observed.append(headers)

    def close_gate(self, retry_after_s: float) -> None:
        self._budget.gate_opens_at = trio.current_time() + retry_after_s
