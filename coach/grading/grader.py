"""A grader process: claims jobs, has them judged, stores the grades and tells the students.

Each claim becomes a task of its own, with a heartbeat beside it. Whatever happens to that task, the
job is finished, failed or handed back, or its lease runs out: it is never lost, and the attempt
number sees to it that no two graders write a result.

Memory: `concurrency` jobs, each an essay (100,000 characters at most) and its judges' answers
(64 KiB each).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar, final

import attrs
import msgspec
import structlog
import trio

from ..errors import CoachError
from ..ops import metrics, traces
from ..store import ConnectionLost, NotSent, RedisError
from .answers import kept_answer
from .claiming import HAND_BACK_S_MAX, REDIS_PAUSE_S, Claimer, hand_back
from .ensemble import combine, total
from .jobs import Receiver
from .judges import JudgeOut
from .panel import hear
from .records import LANES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .. import config
    from ..errors import Code
    from ..ops import Costs
    from .answers import Answer
    from .calibrations import Calibrations
    from .jobs import Claim, Job
    from .judges import Judge
    from .panel import Hearing
    from .queue import Queue
    from .records import Grade
    from .reviews import Reason, Reviews
    from .rubric import Rubric

log = structlog.get_logger()

T = TypeVar("T")

SETTLE_S_MAX: Final = 5.0
"""How long storing a result may outlast a cancellation, or wait for a Redis that restarts."""
KINDS: Final = ("grade", "regrade", "audit")
"""What this grader knows to do."""
BUDGET_S: Final = 60.0
"""Between two looks at an essay whose org has spent its budget."""


async def run_grader(
    *,
    queue: Queue,
    judges: Sequence[Judge],
    fresh: Sequence[Judge] = (),
    reviews: Reviews,
    rubric: Rubric,
    settings: config.Grading,
    costs: Costs,
    calibrations: Calibrations | None = None,
    worker: str,
    stopping: trio.Event,
) -> None:
    """Grade until `stopping` is set; then finish what is under way, or hand it back.

    Cancellation: like `stopping` without the time to finish: every job is handed back within a
    second, or comes back when its lease runs out.

    Args:
      queue: whose shards are served.
      judges: the panel; each grade asks all of them.
      fresh: the panel for second opinions; none: the same.
      reviews: where grades go that a person should look at.
      rubric: what they judge by.
      settings: lanes, concurrency, lease, heartbeat, drain time.
      costs: whose essays wait, since their org's budget is spent.
      calibrations: what scores are calibrated by; None: they are as judged.
      worker: for the log.
      stopping: set it to end.

    Raises:
      ExceptionGroup: a bug; operating errors are logged and survived.
    """
    grader = _Grader(queue, judges, fresh or judges, reviews, rubric, settings, costs, calibrations)
    claimer = Claimer(
        queue,
        [lane for lane in LANES if lane in settings.lanes],
        concurrency=settings.concurrency,
        lease_s=settings.lease_s,
    )
    log.info("grader_started", worker=worker, judges=[judge.name for judge in judges])
    async with trio.open_nursery() as grades:
        async with trio.open_nursery() as claiming:
            for shard in queue.shards:
                claiming.start_soon(claimer.claim_jobs, shard, grader.grade, grades)
            await stopping.wait()
            claiming.cancel_scope.cancel("the grader stops")
        grades.cancel_scope.deadline = trio.current_time() + settings.drain_s
    log.info("grader_stopped", worker=worker)


@final
class _Grader:
    def __init__(
        self,
        queue: Queue,
        judges: Sequence[Judge],
        fresh: Sequence[Judge],
        reviews: Reviews,
        rubric: Rubric,
        settings: config.Grading,
        costs: Costs,
        calibrations: Calibrations | None,
    ) -> None:
        self._queue = queue
        self._judges = judges
        self._fresh = fresh
        self._reviews = reviews
        self._rng = random.Random()  # noqa: S311  picks a sample, guards nothing
        self._rubric = rubric
        self._settings = settings
        self._costs = costs
        self._calibrations = calibrations

    # -- one job -------------------------------------------------------------------------------

    async def grade(self, claim: Claim) -> None:
        """Work on a claim until it is settled, lost, or cancelled: then it is handed back."""
        settled = False
        try:
            with trio.CancelScope() as lease:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_lease, claim, lease)
                    await self._work(claim)
                    settled = True
                    nursery.cancel_scope.cancel("the job is settled")
            settled = settled or lease.cancelled_caught
        finally:
            if not settled:
                with trio.move_on_after(HAND_BACK_S_MAX, shield=True):
                    await hand_back(self._queue, claim)

    async def _keep_lease(self, claim: Claim, lease: trio.CancelScope) -> None:
        """Extend the lease in time; cancel the work when it is lost or may be."""
        lease_s = self._settings.lease_s
        ends_at = trio.current_time() + lease_s
        held = True
        while held and trio.current_time() < ends_at:
            await trio.sleep(min(self._settings.heartbeat_s, ends_at - trio.current_time()))
            asked_at = trio.current_time()
            try:
                with trio.move_on_at(ends_at):
                    held = await self._queue.heartbeat(claim)
                    ends_at = asked_at + lease_s
            except RedisError as error:
                log.warning("heartbeat_failed", submission=claim.id, error=str(error))
        log.warning("lease_lost", submission=claim.id, attempt=claim.attempt)
        lease.cancel("the lease is lost")

    async def _work(self, claim: Claim) -> None:
        """Finish or fail the job. Returns in any case but cancellation: nothing else can help."""
        try:
            with traces.span("grade", "consumer") as span:
                span.set("coach.submission", claim.id)
                span.set("coach.attempt", claim.attempt)
                span.set("coach.lane", claim.lane)
                await self._judge(claim)
        except RedisError as error:
            # Not handed back: it would be claimed, and perhaps paid for, again at once.
            log.warning("grading_without_redis", submission=claim.id, error=str(error))
            await self._fail(claim, reason=f"Redis: {error}", counted=False)
        except Exception as error:
            log.exception("grading_failed", submission=claim.id)
            await self._fail(claim, reason=repr(error), code="internal")

    async def _judge(self, claim: Claim) -> None:
        job = await self._queue.load(claim)
        if job is None:
            await self._fail(claim, reason="the record has outlived its time", final=True)
            return
        if job.kind not in KINDS:
            reason = f"no grader knows the kind {job.kind!r}: update them, then `coach queue retry`"
            await self._fail(claim, reason=reason, code="internal", final=True)
            return
        if claim.failures >= self._settings.attempts_max:
            await self._fail(claim, reason=f"{claim.failures} attempts did not end", final=True)
            return
        if self._costs.is_exhausted(job.org):
            metrics.cost_budget_refusals.labels(job.org).inc()
            await self._fail(
                claim,
                reason=f"the month's budget of {job.org} is spent: coach costs budget set",
                counted=False,
                delay_s=BUDGET_S,
            )
            return
        is_second = job.kind != "grade"
        panel = self._fresh if is_second else self._judges
        quorum = min(self._settings.quorum, len(panel))
        kept = {}
        for judge in panel:
            data = job.answers.get(judge.name)
            answer = kept_answer(data, self._rubric) if data is not None else None
            if answer is not None:
                kept[judge.name] = answer
        started_at = trio.current_time()
        hearing = await hear(
            panel,
            partial(self._ask, claim, job),
            kept=kept,
            quorum=quorum,
            deadline_s=self._deadline_s(claim),
            on_answer=partial(self._keep, claim),
            on_late=partial(self._tell_late, claim, job),
        )
        if len(hearing.answers) < quorum:
            await self._give_up(claim, hearing)
            return
        usages = [answer.usage for answer in hearing.answers.values()]
        usages += [out.usage for out in hearing.outs.values()]
        grade = combine(
            self._rubric,
            hearing.answers,
            panel={judge.name: judge.provider for judge in panel},
            absent=hearing.absent(),
            usage=total(usages),
            seconds=claim.age_s + trio.current_time() - started_at,
        )
        if self._calibrations is not None:
            grade = self._calibrations.apply(grade, hearing.answers)
        look = None if is_second else self._review_reason(grade)
        if look is not None:
            grade = attrs.evolve(grade, review=True)
            await self._reviews.add(job.org, claim.id, look)
            metrics.reviews_total.labels(look).inc()
        await self._finish(claim, job, grade)
        if look == "disagreement":
            await self._ask_again(claim, job)

    def _deadline_s(self, claim: Claim) -> float:
        """How long the panel has until a quorum is enough; nobody waits for background work."""
        if claim.lane == "background":
            return inf
        whole_s = self._settings.deadline_s
        return max(whole_s - claim.age_s, whole_s / 2)

    async def _ask(self, claim: Claim, job: Job, judge: Judge) -> Answer:
        try:
            return await judge.ask(
                task=self._rubric.task(job.assignment),
                essay=job.text,
                lane=claim.lane,
                org=job.org,
                user=job.user,
                assignment=job.assignment,
                reason="grading" if job.kind == "grade" else "regrade",
            )
        except JudgeOut as out:
            log.warning("judge_out", submission=claim.id, judge=judge.name, reason=str(out))
            raise

    async def _keep(self, claim: Claim, judge: Judge, answer: Answer) -> None:
        """Save a judge's answer in the record, so that a retry need not pay for it."""
        try:
            await self._queue.save(claim, judge.name, msgspec.json.encode(answer))
        except RedisError as error:
            # The grade may still come of it; only a further attempt would pay again.
            log.warning("answer_not_kept", submission=claim.id, error=str(error))

    async def _tell_late(self, claim: Claim, job: Job) -> None:
        """The student hears that it takes longer, and that the essay is safe."""
        log.warning("grade_late", submission=claim.id, attempt=claim.attempt)
        receiver = Receiver(id=claim.id, worker=job.worker, session=job.session, user=job.user)
        payload = {"submission": claim.id, "delayed": True}
        await self._tell(partial(self._queue.mail, receiver, "grading"), payload)

    def _review_reason(self, grade: Grade) -> Reason | None:
        """Why a person should look at a grade; None: nobody need."""
        if grade.review:
            return "disagreement"
        return "sample" if self._rng.random() * 100 < self._settings.review_percent else None

    async def _ask_again(self, claim: Claim, job: Job) -> None:
        """Have a fresh panel read the essay. Failing that, a person reads it without."""
        try:
            await self._reviews.ask_again(job, claim.id)
        except (CoachError, RedisError) as error:
            log.warning("no_second_opinion", submission=claim.id, error=str(error))

    async def _give_up(self, claim: Claim, hearing: Hearing) -> None:
        """Too few judges have answered: try again later, or not, by why they are out."""
        outs = hearing.outs.values()
        kinds = {out.kind for out in outs} | ({"failed"} if hearing.late else set())
        waits = [out.retry_after_s for out in outs if out.retry_after_s is not None]
        late = [f"{name}: no answer in time" for name in hearing.late]
        await self._fail(
            claim,
            reason="; ".join([*map(str, outs), *late]),
            counted="failed" in kinds,
            # One hopeless judge of several may leave a quorum for another time.
            hopeless=kinds == {"hopeless"},
            delay_s=max(waits) if waits and kinds == {"away"} else None,
        )

    async def _finish(self, claim: Claim, job: Job, grade: Grade) -> None:
        with trio.move_on_after(SETTLE_S_MAX, shield=True):
            receiver = await _insist(partial(self._queue.finish, claim, grade))
            if receiver is None:
                log.warning("grade_dropped", submission=claim.id, attempt=claim.attempt)
                return
            log.info(
                "graded",
                submission=claim.id,
                score=grade.score,
                judges=grade.judges,
                degraded=grade.degraded_reason,
                review=grade.review,
                seconds=round(grade.seconds, 3),
            )
            metrics.grades_total.labels("degraded" if grade.degraded else "whole").inc()
            payload = {
                "submission": claim.id,
                "score": grade.score,
                "criteria": grade.criteria,
                "judges": grade.judges,
                "bands_apart": grade.bands_apart,
                "degraded": grade.degraded,
                "degraded_reason": grade.degraded_reason,
                "feedback": grade.feedback,
                "calibration": grade.calibration,
                "interval": grade.interval,
                "coverage": grade.coverage,
            }
            if job.kind == "grade":
                await self._tell(partial(self._queue.mail_all, receiver, job.org), payload)

    async def _fail(
        self,
        claim: Claim,
        *,
        reason: str,
        code: Code = "provider_unavailable",
        counted: bool = True,
        final: bool = False,
        hopeless: bool = False,
        delay_s: float | None = None,
    ) -> None:
        message = "the essay could not be graded"
        with trio.move_on_after(SETTLE_S_MAX, shield=True):
            try:
                failed = await _insist(
                    partial(
                        self._queue.fail,
                        claim,
                        reason=reason,
                        code=code,
                        message=message,
                        counted=counted,
                        final=final,
                        hopeless=hopeless,
                        delay_s=delay_s,
                    )
                )
            except RedisError as error:
                log.warning("not_put_off", submission=claim.id, error=str(error))
                return  # the lease will run out
            if failed is not None and failed.dead is not None:
                log.error("given_up", submission=claim.id, reason=reason, failures=failed.failures)
                payload = {"submission": claim.id, "code": code, "message": message}
                await self._tell(partial(self._queue.mail, failed.dead, "failed"), payload)

    async def _tell(
        self, mail: Callable[[bytes], Awaitable[None]], payload: Mapping[str, object]
    ) -> None:
        """Mail once: who misses it finds the result in the record."""
        for _ in range(2):
            try:
                await mail(msgspec.json.encode(payload))
            except NotSent:
                continue
            except RedisError as error:
                log.warning("not_mailed", submission=payload["submission"], error=str(error))
            return


async def _insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation that may be repeated while the connection is what fails.

    The caller bounds it by a deadline.
    """
    while True:
        try:
            return await operation()
        except (NotSent, ConnectionLost) as error:
            log.warning("redis_retry", error=str(error))
            await trio.sleep(REDIS_PAUSE_S / 5)
