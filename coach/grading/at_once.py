"""Grades made inside the request, without the queue; for the flag `queue`.

Servers without a queue do so: whoever takes the essay in asks the judges and waits. The same panel
reads it by the same rules, and the grade is kept like any other. What is missing is what the queue
is for: nothing is on disk until the grade is, so that an essay whose process goes away meanwhile is
lost, or whose student leaves for good; nobody tries again; nothing bounds how many are graded at
once; and one that is handed in again meanwhile is graded again.

Memory: for each essay its text and its judges' answers (64 KiB each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import attrs
import structlog
import trio

from ..budget import Ungoverned
from ..errors import ProviderUnavailable
from ..ops import metrics, traces
from ..store import RedisError
from .ensemble import combine, total
from .judges import JudgeOut, seat_panel
from .panel import hear
from .queue import written

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from .. import config
    from ..ops import Costs, Flag
    from ..providers import Provider, Pseudonyms
    from .answers import Answer
    from .calibrations import Calibrations
    from .judges import Bench, Judge
    from .queue import Queue
    from .records import Grade, Submission
    from .reviews import Reviews
    from .rubric import Rubric

log = structlog.get_logger()

RETRY_S: Final = 10.0
"""When to hand in again where the judges do not say."""
_UNGOVERNED: Final = Ungoverned()


@attrs.frozen(kw_only=True)
class AtOnce:
    """What grades inside a request; holds no state of its own."""

    benches: Sequence[Bench]
    """In the order of preference."""
    unpooled: Sequence[Provider]
    """The same endpoints over a connection for each request; for whom the flag `pool` is off."""
    queue: Queue
    """Where grades are kept."""
    reviews: Reviews
    rubric: Rubric
    settings: config.Grading
    costs: Costs
    pseudonyms: Pseudonyms
    calibrations: Calibrations

    async def grade(
        self, submission: Submission, *, off: Collection[Flag], on_late: Callable[[], None]
    ) -> Grade:
        """Have an essay judged, and keep the grade.

        Cancellation: the judges' requests are given up and settled, and nothing is kept.

        Args:
          submission: the essay.
          off: the flags that are off for its student.
          on_late: called when the deadline has passed without a quorum.

        Raises:
          BadMessage: the id or the text has characters that it may not have; nobody was asked.
          ProviderUnavailable: too few judges have answered. What they cost is lost.
        """
        written(submission)
        with traces.span("grade") as span:
            span.set("coach.submission", submission.id)
            span.set("coach.lane", submission.lane)
            return await _Grading(self, submission, self._panel(off), on_late).run()

    def _panel(self, off: Collection[Flag]) -> tuple[Judge, ...]:
        benches = self.benches
        if "pool" in off:
            pairs = zip(benches, self.unpooled, strict=True)
            benches = [attrs.evolve(bench, provider=provider) for bench, provider in pairs]
        if "backpressure" in off:
            benches = [attrs.evolve(bench, budget=_UNGOVERNED) for bench in benches]
        return seat_panel(
            benches,
            self.rubric,
            costs=self.costs,
            pseudonyms=self.pseudonyms,
            judges=self.settings.judges,
        )


@final
@attrs.define
class _Grading:
    _parts: AtOnce
    _submission: Submission
    _panel: Sequence[Judge]
    _on_late: Callable[[], None]

    async def run(self) -> Grade:
        parts, submission = self._parts, self._submission
        quorum = min(parts.settings.quorum, len(self._panel))
        began_at = trio.current_time()
        hearing = await hear(
            self._panel,
            self._ask,
            kept={},
            quorum=quorum,
            deadline_s=parts.settings.deadline_s,
            on_answer=_nothing,
            on_late=self._tell_late,
        )
        if len(hearing.answers) < quorum:
            waits = [out.retry_after_s for out in hearing.outs.values() if out.retry_after_s]
            log.warning("given_up_at_once", submission=submission.id, outs=hearing.absent())
            raise ProviderUnavailable(
                "the essay could not be graded: hand it in again",
                retry_after_s=max(waits, default=RETRY_S),
            )
        usages = [answer.usage for answer in hearing.answers.values()]
        usages += [out.usage for out in hearing.outs.values()]
        grade = combine(
            parts.rubric,
            hearing.answers,
            panel={judge.name: judge.provider for judge in self._panel},
            absent=hearing.absent(),
            usage=total(usages),
            seconds=trio.current_time() - began_at,
        )
        grade = parts.calibrations.apply(grade, hearing.answers)
        await self._keep(grade)
        metrics.grades_total.labels("degraded" if grade.degraded else "whole").inc()
        return grade

    async def _keep(self, grade: Grade) -> None:
        """Keep it as a server without a queue writes it into its database: once."""
        parts, submission = self._parts, self._submission
        try:
            if await parts.queue.keep(submission, grade) and grade.review:
                await parts.reviews.add(submission.org, submission.id, "disagreement")
                metrics.reviews_total.labels("disagreement").inc()
        except RedisError as error:
            log.warning("grade_not_kept", submission=submission.id, error=str(error))

    async def _ask(self, judge: Judge) -> Answer:
        submission = self._submission
        try:
            return await judge.ask(
                task=self._parts.rubric.task(submission.assignment),
                essay=submission.text,
                lane=submission.lane,
                org=submission.org,
                user=submission.user,
                assignment=submission.assignment,
            )
        except JudgeOut as out:
            log.warning("judge_out", submission=submission.id, judge=judge.name, reason=str(out))
            raise

    async def _tell_late(self) -> None:
        await trio.lowlevel.checkpoint()
        self._on_late()


async def _nothing(_judge: Judge, _answer: Answer) -> None:
    """No later attempt asks for what has been answered."""
    await trio.lowlevel.checkpoint()
