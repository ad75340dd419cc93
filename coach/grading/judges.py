"""One judge: a provider's endpoint that is asked for a grade, within its budget.

A judge gets one repair: told what is wrong with its answer, it may answer again. Then it is out
for this attempt. The essay stands in the prompt as data between delimiters, never as instructions;
what is told in a repair is ours, but for quotes, which lose their angle brackets.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, final

import attrs
import msgspec
import structlog

from ..budget import Ask
from ..errors import Overloaded, TooLarge
from ..providers import Block, ProviderError, closes_gate, hold_s, judge_prompt
from ..store import RedisError
from .answers import InvalidAnswer, check_answer
from .ensemble import total
from .records import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..budget import Admission, EndpointBudget
    from ..ops import Costs, Reason
    from ..providers import Completion, Prompt, Provider, Pseudonyms, Visit, Warmth
    from ..providers import Usage as ProviderUsage
    from .answers import Answer
    from .records import Lane
    from .rubric import Rubric

log = structlog.get_logger()

ANSWERS_MAX: Final = 2
"""The first one and its repair."""
GATES_MAX: Final = 3
"""How often one request may meet a rate limit before the judge counts as away."""
GATE_S_MAX: Final = 5.0
"""A longer closing is waited for in the queue, not in a grader."""

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


@final
class Judge:
    """A provider's endpoint as a judge by one rubric."""

    def __init__(
        self,
        provider: Provider,
        budget: EndpointBudget,
        rubric: Rubric,
        *,
        costs: Costs,
        warmth: Warmth,
        pseudonyms: Pseudonyms,
        output_tokens_max: int,
    ) -> None:
        """Open nothing: all of it is the caller's."""
        self.name = provider.name
        self._provider = provider
        self._budget = budget
        self._costs = costs
        self._warmth = warmth
        self._pseudonyms = pseudonyms
        self._rubric = rubric
        self._rubric_text = rubric.as_text()
        self._schema = rubric.schema()
        self._output_tokens_max = output_tokens_max

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

        Cancellation: the provider's stream is reset and the budget settled by what may have been
        used before this returns.

        Args:
          task: what the student was asked to write.
          essay: the student's text.
          lane: where to stand in the endpoint's waiting line.
          org: whose fair share it is, and who pays.
          user: the student.
          assignment: the task's id.
          reason: what it is booked for.

        Raises:
          JudgeOut: no usable answer.
        """
        prompt = judge_prompt(
            rubric=self._rubric_text,
            assignment=task,
            essay=essay,
            schema=self._schema,
            output_tokens_max=self._output_tokens_max,
            user_id=self._pseudonyms.of(org=org, user=user) if user else None,
        )
        book = partial(
            self._costs.book,
            provider=self.name,
            asked=self._provider.model,
            org=org,
            user=user,
            assignment=self._rubric.known(assignment),
        )
        spent = Spent(book, reason)
        request, problem = prompt, ""
        for attempt in range(1, ANSWERS_MAX + 1):
            completion = await self._complete(request, spent, lane=lane, org=org)
            try:
                answer = self._check(completion, essay)
            except InvalidAnswer as error:
                log.warning(
                    "judge_invalid",
                    judge=self.name,
                    attempt=attempt,
                    evidence_missing=error.evidence_missing,
                    problems=len(error.problems),
                )
                problem = str(error)
                request = _with_note(prompt, error.problems)
                continue
            return msgspec.structs.replace(
                answer,
                usage=total(spent.usages),
                provider=self._provider.name,
                model=completion.model,
            )
        raise JudgeOut(
            f"{self.name}: {ANSWERS_MAX} invalid answers, the last: {problem}",
            "failed",
            usage=total(spent.usages),
        )

    def _check(self, completion: Completion, essay: str) -> Answer:
        if completion.stop_reason == "max_tokens":
            raise InvalidAnswer(["The answer was cut off at its length limit; be much shorter."])
        return check_answer(completion.text, self._rubric, essay)

    async def _complete(self, prompt: Prompt, spent: Spent, *, lane: Lane, org: str) -> Completion:
        """Ask within the budget; rate limits close the gate for all and are waited for."""
        estimate = self._provider.estimator.most(prompt.size())
        for gate in range(1, GATES_MAX + 1):
            try:
                return await self._admitted(prompt, estimate, spent, lane=lane, org=org)
            except ProviderError as error:
                may_wait = closes_gate(error.kind) and (hold_s(error) or 0.0) <= GATE_S_MAX
                if may_wait and gate < GATES_MAX:
                    continue  # the next admission waits until the gate opens
                raise JudgeOut(
                    f"{self.name}: {error.kind}: {error}",
                    _KIND.get(error.kind, "failed"),
                    usage=total(spent.usages),
                    retry_after_s=error.retry_after_s,
                ) from error
            except TooLarge as error:
                raise JudgeOut(str(error), "hopeless", usage=total(spent.usages)) from error
            except (Overloaded, RedisError) as error:
                raise JudgeOut(
                    f"{self.name}: not admitted: {error}",
                    "away",
                    usage=total(spent.usages),
                    retry_after_s=getattr(error, "retry_after_s", None),
                ) from error
        raise AssertionError("the last gate raises")

    async def _admitted(
        self, prompt: Prompt, estimate: int, spent: Spent, *, lane: Lane, org: str
    ) -> Completion:
        expected = max(1, estimate - self._warmth.expected_read(prompt))
        ask = Ask(input=expected, output=self._output_tokens_max)
        async with (
            self._budget.admit(ask, lane=lane, org=org, on_position=None) as admission,
            self._warmth.visit(prompt) as visit,
        ):
            # However it ends from here on, the provider may have read the prompt …
            used: Ask | None = Ask(input=estimate, output=0)
            wasted: Reason | None = "wasted-cancel"
            try:
                completion = await self._converse(prompt, admission, visit)
                usage = completion.usage
                spent.answered(completion)
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
                if closes_gate(error.kind):
                    admission.close_gate(hold_s(error) or 0.0)
                raise
            finally:
                if used is not None:
                    admission.settle(used)
                if wasted is not None:
                    spent.book(
                        reason=wasted, model=self._provider.model, usage=Usage(input=estimate)
                    )
            return completion

    async def _converse(self, prompt: Prompt, admission: Admission, visit: Visit) -> Completion:
        """Get the answer in one piece; streamed where others wait for it to begin."""
        if visit.leads:
            sink = _Beginning(visit)
            return await self._provider.stream(prompt, sink, on_headers=admission.observe)
        completion = await self._provider.complete(prompt, on_headers=admission.observe)
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
    """What one judge's answers have cost; invalid ones are among them."""

    book: Callable[..., None]
    """`Costs.book`, told whose they are."""
    reason: Reason
    usages: list[Usage] = attrs.field(factory=list)

    def answered(self, completion: Completion) -> None:
        """Book an answer."""
        self.usages.append(Usage(**attrs.asdict(completion.usage)))
        self.book(reason=self.reason, model=completion.model, usage=completion.usage)


def _with_note(prompt: Prompt, problems: tuple[str, ...]) -> Prompt:
    """The same prompt, so that its cached beginning stays, with what was wrong at its end."""
    lines = "\n".join(f"- {problem}" for problem in problems)
    note = (
        "You answered this before, and your answer could not be used:\n"
        f"{lines}\n"
        "Answer again. Copy each evidence quote letter by letter from the essay."
    ).translate({ord("<"): None, ord(">"): None})
    *earlier, last = prompt.messages
    last = attrs.evolve(last, blocks=(*last.blocks, Block(text=note)))
    return attrs.evolve(prompt, messages=(*earlier, last))
