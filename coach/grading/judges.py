"""One judge: a seat on the panel that asks a provider's endpoint for a grade, within its budget.

A judge has an order of endpoints. One that is away, or refuses, is left for the next at once;
beside one that is silent for longer than its answers take, the next is asked as well, and the first
usable answer counts. So one provider's death costs no judge.

A judge gets one repair: told what is wrong with its answer, it may answer again. Then it is out
for this attempt. The essay stands in the prompt as data between delimiters, never as instructions;
what is told in a repair is ours alone.

Judges are worth their number as far as they err apart. What does most is another provider's model,
so seats begin with one endpoint after the other (`seat_panel`); a further model of the same
provider, as a `[[provider]]` of its own, comes next. Seats that must share an endpoint read by
another lens: from which end of the scale they look at it, since readers err towards the end they
began at, and the median of both ends and the middle cancels that. A lens stands behind the essay:
the beginning of the prompt, which providers cache, is the same for all seats.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Literal, final

import attrs
import msgspec
import structlog
import trio

from ..budget import Ask
from ..errors import Overloaded, TooLarge
from ..nurseries import open_plain_nursery
from ..ops import metrics, traces
from ..providers import (
    Block,
    ProviderError,
    closes_gate,
    hold_s,
    is_fault,
    is_final,
    judge_prompt,
)
from ..store import RedisError
from .answers import InvalidAnswer, Problem, check_answer
from .ensemble import total
from .records import Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from ..budget import Admission, EndpointBudget, FreeAdmission, Ungoverned
    from ..ops import Costs, Reason
    from ..providers import (
        Circuit,
        Completion,
        FirstTokens,
        Leave,
        Prompt,
        Provider,
        Pseudonyms,
        Visit,
        Warmth,
    )
    from ..providers import Usage as ProviderUsage
    from .answers import Answer
    from .records import Lane
    from .rubric import Rubric

log = structlog.get_logger()

OUTPUT_TOKENS_USUAL: Final = 400
"""Of a judge's answer, for estimates before there are any."""
ANSWERS_MAX: Final = 2
"""The first one and its repair."""
GATES_MAX: Final = 3
"""How often one request may meet a rate limit where there is no other endpoint to go to."""
GATE_S_MAX: Final = 5.0
"""A longer closing is waited for in the queue, not in a grader."""
LINE_S_MAX: Final = 2.0
"""How long a student's essay stands in one endpoint's line before it goes to the next's."""
LENSES: Final = (
    "For each criterion find the evidence first, then the band that it fits.",
    (
        "For each criterion read the bands from the highest downwards, and take the first one "
        "whose description the essay as a whole reaches."
    ),
    (
        "For each criterion read the bands from the lowest upwards, and go on for as long as the "
        "essay as a whole reaches the next description."
    ),
)

Kind = Literal["away", "failed", "hopeless"]

_KIND: Final[dict[str, Kind]] = {
    "rate_limited": "away",
    "accelerated": "away",
    "overloaded": "away",
    "spend_cap": "away",  # the operator's to mend, like "auth"
    "server_error": "away",
    "unreachable": "away",
    "auth": "away",  # the operator's to mend; essays wait until then
    "filtered": "hopeless",
    "too_long": "hopeless",
}
"""By `ProviderError.kind`; every other one is `failed`."""
_UNREAD: Final = frozenset(
    [
        *("rate_limited", "accelerated", "overloaded", "spend_cap"),
        *("unreachable", "auth", "refused"),
    ]
)
"""Kinds after which the provider charges nothing, since it never read the prompt."""


class JudgeOut(Exception):
    """This judge gives no answer in this attempt."""

    def __init__(
        self,
        reason: str,
        kind: Kind,
        *,
        usage: Usage | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        """`away`: it could not be asked; `failed`: it was; `hopeless`: it would fail again."""
        self.usage = usage or Usage()
        """What it cost all the same."""
        self.retry_after_s = retry_after_s


@attrs.frozen(kw_only=True)
class Bench:
    """A provider's endpoint where judges are asked, and what guards it."""

    provider: Provider
    budget: EndpointBudget | Ungoverned
    circuit: Circuit
    warmth: Warmth
    patience: FirstTokens
    """How long whole answers take here."""
    output_tokens_max: int


def seat_panel(
    benches: Sequence[Bench],
    rubric: Rubric,
    *,
    costs: Costs,
    pseudonyms: Pseudonyms,
    judges: int,
    fresh: bool = False,
) -> tuple[Judge, ...]:
    """Seat judges over the endpoints there are.

    Args:
      benches: one or more, in order of preference.
      rubric: what they judge by.
      costs: where every answer is booked.
      pseudonyms: what providers call students.
      judges: how many seats, 1 or more.
      fresh: as a second opinion: every seat begins with another endpoint than in the usual panel,
        where there are several.
    """
    count = len(benches)
    panel = []
    for seat in range(judges):
        first = (seat + fresh) % count
        panel.append(
            Judge(
                f"judge-{seat + 1}",
                [*benches[first:], *benches[:first]],
                rubric,
                costs=costs,
                pseudonyms=pseudonyms,
                lens=LENSES[seat % len(LENSES)],
            )
        )
    return tuple(panel)


@final
class Judge:
    """A seat on the panel, judging by one rubric."""

    def __init__(
        self,
        name: str,
        benches: Sequence[Bench],
        rubric: Rubric,
        *,
        costs: Costs,
        pseudonyms: Pseudonyms,
        lens: str,
    ) -> None:
        """Open nothing: the endpoints are the caller's.

        Args:
          name: of the seat; its answers are kept under it.
          benches: where it asks, in this order.
          rubric: what it judges by.
          costs: where every answer is booked.
          pseudonyms: what providers call students.
          lens: how it is told to read; one sentence or more.
        """
        self.name = name
        self.provider = benches[0].provider.name
        """Whose answer is its own; others' stand in for it."""
        self._benches = tuple(benches)
        self._costs = costs
        self._pseudonyms = pseudonyms
        self._rubric = rubric
        self._rubric_text = rubric.as_text()
        self._schema = rubric.schema()
        self._lens = Block(lens)

    async def ask(
        self,
        *,
        task: str,
        essay: str,
        lane: Lane,
        org: str,
        user: str = "",
        assignment: str | None = None,
        reason: Reason = "grading",
    ) -> Answer:
        """Have an essay judged.

        Cancellation: the providers' streams are reset and the budgets settled by what may have been
        used before this returns.

        Args:
          task: what the student was asked to write.
          essay: the student's text.
          lane: where to stand in the endpoints' waiting lines; students' essays leave a long one
            for the next endpoint's.
          org: whose fair share it is, and who pays.
          user: the student.
          assignment: the task's id.
          reason: what it is booked for.

        Raises:
          JudgeOut: no usable answer.
        """
        prompt = self.prompt(task=task, essay=essay, org=org, user=user)
        book = partial(
            self._costs.book, org=org, user=user, assignment=self._rubric.known(assignment)
        )
        race = _Race(Spent(book, reason), lane, org, untried=len(self._benches))
        with traces.span(self.name) as span:
            span.set("coach.org", org)
            async with open_plain_nursery() as nursery:
                await self._go_through(race, prompt, essay, nursery)
                await race.wait_until(race.is_over)
                nursery.cancel_scope.cancel("the judge has answered, or is out")
            if race.answer is not None:
                return msgspec.structs.replace(race.answer, usage=total(race.spent.usages))
            raise self._out(race)

    def prompt(self, *, task: str, essay: str, org: str, user: str) -> Prompt:
        """What this judge asks; `ask` says what the arguments are."""
        prompt = judge_prompt(
            rubric=self._rubric_text,
            assignment=task,
            essay=essay,
            schema=self._schema,
            output_tokens_max=self._benches[0].output_tokens_max,
            user_id=self._pseudonyms.of(org=org, user=user) if user else None,
        )
        *earlier, last = prompt.messages
        last = attrs.evolve(last, blocks=(*last.blocks, self._lens))
        return attrs.evolve(prompt, messages=(*earlier, last))

    async def _go_through(
        self, race: _Race, prompt: Prompt, essay: str, nursery: trio.Nursery
    ) -> None:
        """Ask at one endpoint after the other; last where the breaker lets nobody in."""
        left_out = []
        for bench in self._benches:
            leave = await bench.circuit.ask()
            if leave is None:
                left_out.append(bench)
                continue
            await self._begin(race, bench, leave, partial(self._compete, prompt, essay), nursery)
            if race.is_decided:
                return
        for bench in left_out:
            leave = bench.circuit.bypass()
            await self._begin(race, bench, leave, partial(self._compete, prompt, essay), nursery)
            if race.is_decided:
                return

    async def _begin(
        self,
        race: _Race,
        bench: Bench,
        leave: Leave,
        compete: Callable[[_Attempt], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        """Ask at an endpoint; return when it is time to ask at the next as well."""
        race.untried -= 1
        attempt = _Attempt(race, bench, leave, is_last=not race.untried)
        race.running += 1
        nursery.start_soon(compete, attempt)
        await attempt.wait_late(inf if race.lane == "background" else LINE_S_MAX)

    async def _compete(self, prompt: Prompt, essay: str, attempt: _Attempt) -> None:
        """Ask at one endpoint, on behalf of a race that others may win."""
        race = attempt.race
        try:
            with attempt.scope:
                answer = await self._ask_at(attempt, prompt, essay)
                race.answer = race.answer or answer
            if attempt.scope.cancelled_caught:
                race.outs.append(JudgeOut(f"{attempt.bench.provider.name}: a long line", "away"))
        except JudgeOut as out:
            race.outs.append(out)
        finally:
            attempt.leave.dropped()
            attempt.has_ended = True
            race.running -= 1
            race.stir()

    def _out(self, race: _Race) -> JudgeOut:
        """Why there is no answer, of all endpoints together."""
        kinds = {out.kind for out in race.outs}
        kind: Kind
        if race.verdict is not None:
            kind = race.verdict
        elif "failed" in kinds:
            kind = "failed"
        else:
            kind = "hopeless" if kinds == {"hopeless"} else "away"
        waits = [out.retry_after_s for out in race.outs if out.retry_after_s is not None]
        return JudgeOut(
            f"{self.name}: " + "; ".join(map(str, race.outs)),
            kind,
            usage=total(race.spent.usages),
            retry_after_s=min(waits, default=None),
        )

    async def _ask_at(self, attempt: _Attempt, prompt: Prompt, essay: str) -> Answer:
        name = attempt.bench.provider.name
        prompt = attrs.evolve(prompt, output_tokens_max=attempt.bench.output_tokens_max)
        request, reason = prompt, ""
        for number in range(1, ANSWERS_MAX + 1):
            completion = await self._complete(attempt, request)
            try:
                answer = self.check(completion, essay)
            except InvalidAnswer as error:
                self._count("evidence_missing" if error.evidence_missing else "invalid", name)
                log.warning(
                    "judge_invalid",
                    judge=self.name,
                    provider=name,
                    attempt=number,
                    evidence_missing=error.evidence_missing,
                    problems=len(error.problems),
                )
                reason = str(error)
                request = _with_note(prompt, error.problems)
                continue
            self._count("usable", name)
            return msgspec.structs.replace(answer, provider=name, model=completion.model)
        attempt.race.verdict = "failed"
        raise JudgeOut(f"{name}: {ANSWERS_MAX} invalid answers, the last: {reason}", "failed")

    def _count(self, outcome: str, provider: str) -> None:
        metrics.judge_answers_total.labels(self.name, provider, outcome).inc()

    def check(self, completion: Completion, essay: str) -> Answer:
        """What an answer is worth.

        Raises:
          InvalidAnswer: nothing; it says why.
        """
        if completion.stop_reason == "max_tokens":
            problem = Problem("The answer was cut off at its length limit; be much shorter.")
            raise InvalidAnswer([problem])
        return check_answer(completion.text, self._rubric, essay)

    async def _complete(self, attempt: _Attempt, prompt: Prompt) -> Completion:
        """Ask within the budget; rate limits close the gate for all.

        They are waited for only at the last endpoint, since others may be free.
        """
        name = attempt.bench.provider.name
        gates_max = GATES_MAX if attempt.is_last else 1
        for gate in range(1, gates_max + 1):
            try:
                return await self._admitted(attempt, prompt)
            except ProviderError as error:
                may_wait = closes_gate(error.kind) and (hold_s(error) or 0.0) <= GATE_S_MAX
                if may_wait and gate < gates_max:
                    continue  # the next admission waits until the gate opens
                if is_final(error.kind):
                    attempt.race.verdict = "hopeless"
                raise JudgeOut(
                    f"{name}: {error.kind}: {error}",
                    _KIND.get(error.kind, "failed"),
                    retry_after_s=error.retry_after_s,
                ) from error
            except TooLarge as error:
                # for this endpoint's quota: another's may be larger
                raise JudgeOut(f"{name}: {error}", "hopeless") from error
            except (Overloaded, RedisError) as error:
                raise JudgeOut(
                    f"{name}: not admitted: {error}",
                    "away",
                    retry_after_s=getattr(error, "retry_after_s", None),
                ) from error
        raise AssertionError("the last gate raises")

    async def _admitted(self, attempt: _Attempt, prompt: Prompt) -> Completion:
        bench, spent = attempt.bench, attempt.race.spent
        estimate = bench.provider.estimator.most(prompt.size())
        expected = max(1, estimate - bench.warmth.expected_read(prompt))
        ask = Ask(input=expected, output=bench.output_tokens_max)
        async with (
            bench.budget.admit(
                ask, lane=attempt.race.lane, org=attempt.race.org, on_position=None
            ) as admission,
            bench.warmth.visit(prompt) as visit,
        ):
            traces.current().event("admitted", coach_provider=bench.provider.name)
            # However it ends from here on, the provider may have read the prompt …
            used: Ask | None = Ask(input=estimate, output=0)
            wasted: Reason | None = "wasted-cancel"
            try:
                with attempt.sending():
                    completion = await _converse(bench.provider, prompt, admission, visit)
                usage = completion.usage
                spent.answered(bench.provider, completion)
                wasted = None
                used = Ask(input=usage.input + usage.cache_write, output=usage.output)
            except ProviderError as error:
                visit.failed()
                # an error status is no answer, and costs nothing
                wasted = "wasted-failover" if error.status is None else None
                if error.kind in _UNREAD:
                    wasted = None
                    # … but for these: a request and no tokens, or (nobody heard it) nothing at all
                    used = None if error.kind == "unreachable" else Ask(input=0, output=0)
                alone_s = hold_s(error)
                if alone_s is not None and closes_gate(error.kind):
                    admission.close_gate(alone_s)
                attempt.leave.failed(is_fault=is_fault(error.kind), hold_s=alone_s)
                raise
            finally:
                if used is not None:
                    admission.settle(used)
                if wasted is not None:
                    spent.wasted(bench.provider, wasted, Usage(input=estimate))
            attempt.leave.succeeded()
            return completion


async def _converse(
    provider: Provider, prompt: Prompt, admission: Admission | FreeAdmission, visit: Visit
) -> Completion:
    """Get the answer in one piece; streamed where others wait for it to begin."""
    if visit.leads:
        return await provider.stream(prompt, _Beginning(visit), on_headers=admission.observe)
    completion = await provider.complete(prompt, on_headers=admission.observe)
    visit.began(completion.usage)
    return completion


@final
class _Beginning:
    """A sink that only wants to know when the answer begins."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def on_start(self, model: str, usage: ProviderUsage) -> None:
        """It begins."""
        del model
        self._visit.began(usage)

    def on_delta(self, text: str) -> None:
        """The whole answer is returned in the end."""


@attrs.frozen
class Spent:
    """What one judge's answers have cost, wherever it asked; invalid ones are among them."""

    book: Callable[..., None]
    """`Costs.book`, told whose they are."""
    reason: Reason
    usages: list[Usage] = attrs.field(factory=list)

    def answered(self, provider: Provider, completion: Completion) -> None:
        """Book an answer."""
        self.usages.append(Usage(**attrs.asdict(completion.usage)))
        self.book(
            reason=self.reason,
            provider=provider.name,
            asked=provider.model,
            model=completion.model,
            usage=completion.usage,
        )

    def wasted(self, provider: Provider, reason: Reason, usage: Usage) -> None:
        """Book what was read, perhaps, for no answer."""
        self.book(
            reason=reason,
            provider=provider.name,
            asked=provider.model,
            model=provider.model,
            usage=usage,
        )


@attrs.define(eq=False)
class _Race:
    """One judge's attempts at several endpoints; the first usable answer wins."""

    spent: Spent
    lane: Lane
    org: str
    untried: int
    """Endpoints at which nobody has asked."""
    running: int = 0
    answer: Answer | None = None
    outs: list[JudgeOut] = attrs.field(factory=list)
    verdict: Kind | None = None
    """Nobody further is to be asked: it is about the text, or the judge is out by rule."""
    _stirred: trio.Event = attrs.field(factory=trio.Event)

    @property
    def is_decided(self) -> bool:
        """Whether nobody further need be asked."""
        return self.answer is not None or self.verdict is not None

    def is_over(self) -> bool:
        """Whether there is an answer, or nobody left who could give one."""
        return self.answer is not None or self.verdict == "hopeless" or not self.running

    def stir(self) -> None:
        """Something has changed."""
        self._stirred.set()
        self._stirred = trio.Event()

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until a change has made something true."""
        while not holds():
            await self._stirred.wait()


@attrs.define(eq=False)
class _Attempt:
    """A judge's request to one endpoint, a repair included."""

    race: _Race
    bench: Bench
    leave: Leave
    is_last: bool
    """There is no further endpoint to go to."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    has_ended: bool = False
    is_sent: bool = False
    """Let in by the endpoint's budget."""

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around a request. One that is given up later than answers come counts as a fault."""
        self.is_sent = True
        self.race.stir()
        sent_at = trio.current_time()
        try:
            yield
            self.bench.patience.observe(trio.current_time() - sent_at)
        except trio.Cancelled:
            if trio.current_time() - sent_at >= self.bench.patience.deadline_s:
                self.leave.failed(is_fault=True)
            raise

    async def wait_late(self, line_s: float) -> None:
        """Wait until it has ended, or takes longer than it should, or another has won.

        What stands in the line for longer than `line_s` leaves it; a late answer may still come.
        """
        if self.is_last:
            return
        race = self.race
        with trio.move_on_after(line_s):
            await race.wait_until(lambda: self.is_sent or self.has_ended or race.is_decided)
        if not (self.is_sent or self.has_ended):
            self.scope.cancel("the line is long, and there are others")
            return
        with trio.move_on_after(self.bench.patience.deadline_s):
            await race.wait_until(lambda: self.has_ended or race.is_decided)


def _with_note(prompt: Prompt, problems: Sequence[Problem]) -> Prompt:
    """The same prompt, so that its cached beginning stays, with what was wrong at its end."""
    lines = "\n".join(f"- {problem.told}" for problem in problems)
    note = (
        "You answered this before, and your answer could not be used:\n"
        f"{lines}\n"
        "Answer again. Copy each evidence quote letter by letter from the essay."
    )
    *earlier, last = prompt.messages
    last = attrs.evolve(last, blocks=(*last.blocks, Block(text=note)))
    return attrs.evolve(prompt, messages=(*earlier, last))
