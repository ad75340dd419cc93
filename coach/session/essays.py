"""The essays of a session, from the student's `submit` until their end was told.

A session waits for the grade of each, by mail, and asks the queue now and then, should the mail be
lost. Whoever comes back hears what has happened meanwhile: to these, and to essays that the same
student has handed in elsewhere. An essay that is graded at once (flag `queue` off) is in no queue:
it is graded to its end where it was handed in, also when the session moves.

Memory: `SUBMISSIONS_MAX` essays, and `TOLD_MAX` names.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Final, cast, final

import attrs
import msgspec
import structlog
import trio

from ..errors import BadMessage, CoachError, Conflict, Overloaded, TooLarge
from ..grading import Receiver, Submission
from ..ops import metrics
from ..store import RedisError
from . import wire
from .turn import Interrupted
from .wire import error_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..errors import Code
    from ..grading import Grade, SubmissionState
    from ..ops import Flag
    from .services import Services
    from .session import Session

log = structlog.get_logger()

TOLD_MAX: Final = 64
"""Submissions of which a session knows that it has told their end."""
SUBMISSIONS_MAX: Final = 8
"""Submissions of one session that may wait for their grade."""
PLACE_S: Final = 1.5
"""Between two looks at the place of an essay that no grader has yet."""
GRADE_POLL_S: Final = 10.0
"""How long a session trusts its mailbox before it asks the queue itself."""
ADOPTED_POLL_S: Final = 1.0
"""Likewise, of a submission whose mail goes to the worker that had the session before."""


@final
class Essays:
    """What one session has handed in, and what it has told of its author's essays."""

    __slots__ = ("_awaited", "_services", "_session", "_told", "_unheard")

    def __init__(self, session: Session, services: Services) -> None:
        """Without any, for `session`, which has them and is not kept by them."""
        self._session: Session = weakref.proxy(session)
        self._services = services
        self._awaited: dict[str, _Pending] = {}  # by submission, while its grade is awaited
        self._told: dict[str, None] = {}  # submissions whose end was told, the oldest first
        self._unheard: list[str] = []  # those of which the student was away

    @property
    def awaited(self) -> tuple[str, ...]:
        """Those whose grade is awaited, or that are about to be taken in."""
        return tuple(self._awaited)

    @property
    def taken_in(self) -> tuple[str, ...]:
        """Those that were taken in and whose grade is awaited."""
        return tuple(name for name, each in self._awaited.items() if each.is_taken_in)

    @property
    def at_once(self) -> tuple[str, ...]:
        """Those that are graded at once, here or where the session was before."""
        return tuple(name for name, each in self._awaited.items() if each.is_at_once)

    @property
    def graded_here(self) -> bool:
        """Some are graded at once, and here: nobody else will grade them."""
        return any(self._graded_here())

    def _graded_here(self) -> Iterator[_Pending]:
        return (
            each for each in self._awaited.values() if each.is_at_once and each.text is not None
        )

    async def wait_at_once(self) -> None:
        """Wait until those that are graded at once have come to their end."""
        for pending in list(self._awaited.values()):
            if pending.is_at_once:
                await pending.come.wait()

    # -- the session moves, and comes back -------------------------------------------------------

    def move(self) -> None:
        """Another worker waits for the grades now. Not a checkpoint."""
        for pending in self._awaited.values():
            if not pending.is_at_once:
                pending.scope.cancel("another worker has the session")

    def interrupt(self, reason: str) -> None:
        """Grade nothing to its end any more. Not a checkpoint."""
        for pending in self._graded_here():
            pending.scope.cancel(reason)

    def relay(self, message: wire.Grade | wire.Error | wire.Grading) -> None:
        """Take in what the worker that had the session before says of one. Not a checkpoint."""
        pending = self._awaited.get(message.submission or "")
        if pending is not None and pending.is_at_once:
            self.deliver(message.submission or "", message)

    def relayed_all(self) -> None:
        """That worker has nothing more to say. Not a checkpoint."""
        for pending in self._awaited.values():
            pending.is_at_once &= pending.text is not None  # else it is known now, or lost

    def heard(self) -> None:
        """The student is there again, and hears what was told meanwhile. Not a checkpoint."""
        if self._unheard:
            self._session.start(self._mark_told, *self._unheard)
            self._unheard.clear()

    # -- handing in, and waiting ---------------------------------------------------------------

    def submit(self, message: wire.Submit) -> None:
        """The student hands an essay in. Not a checkpoint."""
        limits = self._services.settings.server
        known = self._awaited.get(message.submission)
        if known is not None and known.text in {message.text, None}:
            if known.is_taken_in:
                self._session.outbox.send(wire.Grading(submission=message.submission))
            return
        error: CoachError | None = None
        if known is not None:
            error = Conflict("this submission id is in use for another text")
        elif not message.text.strip():
            error = BadMessage("the essay is empty")
        elif len(message.text) > limits.draft_chars_max:
            error = TooLarge(f"an essay may have {limits.draft_chars_max} characters")
        elif len(self._awaited) >= SUBMISSIONS_MAX:
            error = Overloaded("too many submissions wait for their grade", retry_after_s=5.0)
        if error is not None:
            self._session.outbox.send(error_message(error, submission=message.submission))
            return
        pending = self._awaited[message.submission] = _Pending(message.text)
        self._session.start(self._run, message.submission, pending, message)

    def adopt(self, submission: str, *, is_at_once: bool) -> None:
        """Wait for the grade of an essay that was handed in on another worker.

        `is_at_once`: it is graded there, and in no queue. Not a checkpoint.
        """
        pending = _Pending(None, is_taken_in=True, is_at_once=is_at_once)
        self._awaited[submission] = pending
        self._session.start(self._run, submission, pending, None)

    async def _run(self, submission: str, pending: _Pending, message: wire.Submit | None) -> None:
        answer: wire.Grade | wire.Error | None = None
        is_end = False
        try:
            with pending.scope:
                if message is None:
                    answer = await self._await_answer(submission, pending, poll_s=ADOPTED_POLL_S)
                else:
                    answer = await self._submit(message, pending)
                is_end = True
        except CoachError as error:
            answer = error_message(error, submission=submission)
        except RedisError as error:
            log.warning("submission_without_redis", error=str(error))
            away = Overloaded("the shared store is away: submit again", retry_after_s=2.0)
            answer = error_message(away, submission=submission)
        except Exception:
            log.exception("submission_failed", session=self._session.id, submission=submission)
            bug = CoachError("something went wrong on our side: submit again")
            answer = error_message(bug, submission=submission)
        finally:
            del self._awaited[submission]
            pending.come.set()
            self._session.changed()
        if answer is None:
            return  # another worker waits for it now
        if is_end:
            self._tell_end(submission, answer)
        else:
            self._session.outbox.send(answer)
        outcome = answer.code if isinstance(answer, wire.Error) else "graded"
        metrics.submissions_total.labels(outcome).inc()

    async def _submit(self, message: wire.Submit, pending: _Pending) -> wire.Grade | wire.Error:
        """Hand the essay in, say `grading`, and wait for what becomes of it."""
        submitted_at, identity = trio.current_time(), self._session.identity
        services, off = self._services, tuple(self._services.flags.off_for(identity.user))
        for flag in off:
            metrics.flag_off_submissions_total.labels(flag).inc()
        submission = Submission(
            id=message.submission,
            user=identity.user,
            org=identity.org,
            assignment=message.assignment,
            text=message.text,
            lane="submission",
            worker=services.worker,
            session=self._session.id,
        )
        state: SubmissionState | None = None
        inbox = services.queue.inbox
        async with services.limits_of(identity.user).reserve(
            user=identity.user, org=identity.org, tokens=0
        ) as reservation:
            await inbox.expect(identity.org, identity.user, submission.id)
            if "queue" not in off or await self._must_queue(submission):
                state = await services.queue.submit(submission)
            reservation.settle(0)
            pending.is_taken_in, pending.is_at_once = True, state is None
            self._session.outbox.send(wire.Grading(submission=submission.id, flags_off=off))
            self._session.changed()
        answer = None if state is None else _answer(state)
        if answer is None:
            if state is None:
                answer = await self._grade_at_once(submission, off)
            else:
                services.costs.check_grading(identity.org)
                answer = await self._await_answer(submission.id, pending, poll_s=GRADE_POLL_S)
            if isinstance(answer, wire.Grade):
                metrics.score_seconds.observe(trio.current_time() - submitted_at)
        return answer

    async def _must_queue(self, submission: Submission) -> bool:
        """Whether it goes into the queue all the same: known there, or it waits for money."""
        services = self._services
        if services.costs.is_exhausted(submission.org):
            return True
        return await services.queue.get(submission.org, submission.id) is not None

    async def _grade_at_once(self, submission: Submission, off: tuple[Flag, ...]) -> wire.Grade:
        """Have it graded here and now: for whom the flag `queue` is off."""
        late = wire.Grading(submission=submission.id, delayed=True, flags_off=off)
        grade = await self._services.at_once.grade(
            submission, off=off, on_late=partial(self._session.outbox.send, late)
        )
        answer = _graded(submission.id, grade)
        nobody = Receiver(id=submission.id, worker="", session="", user=submission.user)
        try:
            payload = msgspec.json.encode(answer)
            await self._services.queue.mail_all(nobody, submission.org, payload)
        except RedisError as error:
            log.warning("not_mailed", submission=submission.id, error=str(error))
        return answer

    async def _await_answer(
        self, submission: str, pending: _Pending, *, poll_s: float
    ) -> wire.Grade | wire.Error:
        """Wait for the mail; say the essay's place in the queue while it has one.

        The queue is asked now and then, should the mail be lost. Redis may be away meanwhile: the
        submission is on its disk.
        """
        place: int | None = None
        wait_s = min(poll_s, PLACE_S)
        while True:
            with trio.move_on_after(wait_s):
                await pending.come.wait()
            if pending.answer is not None:
                return pending.answer
            wait_s = poll_s
            try:
                state = await self._services.queue.get(self._session.identity.org, submission)
            except RedisError as error:
                log.warning("grade_waits_for_redis", submission=submission, error=str(error))
                continue
            if state is None:
                if pending.is_at_once:
                    continue  # it is graded where the session was before
                raise Interrupted("this submission is not known any more: submit again")
            answer = _answer(state)
            if answer is not None:
                return answer
            if state.place is not None:
                wait_s = min(poll_s, PLACE_S)
            if state.place != place:
                place = state.place
                self._session.outbox.send(
                    wire.Grading(submission=submission)
                    if place is None
                    else wire.Queued(submission=submission, position=place)
                )

    def deliver(self, submission: str, answer: wire.Grade | wire.Error | wire.Grading) -> None:
        """Take in the answer to a submission of this session, or news of it. Not a checkpoint."""
        pending = self._awaited.get(submission)
        if pending is None:
            return
        if isinstance(answer, wire.Grading):
            if pending.is_taken_in and pending.answer is None:
                self._session.outbox.send(answer)
        else:
            pending.answer = answer
            pending.come.set()

    def recall(self, state: SubmissionState) -> None:
        """The student has come, and may not have heard of this essay. Not a checkpoint."""
        answer = _answer(state)
        if answer is not None:
            self.hear_of(state.id, answer)

    def hear_of(self, submission: str, answer: wire.Grade | wire.Error) -> None:
        """An essay of the student's has come to an end, handed in wherever. Not a checkpoint."""
        if submission in self._awaited:
            self.deliver(submission, answer)
        elif submission not in self._told and not self._session.is_over:
            self._tell_end(submission, answer)

    def _tell_end(self, submission: str, answer: wire.Grade | wire.Error) -> None:
        self._told[submission] = None
        if len(self._told) > TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._session.outbox.send(answer)
        if self._session.link is None:
            self._unheard.append(submission)
        else:
            self._session.start(self._mark_told, submission)

    async def _mark_told(self, *submissions: str) -> None:
        """It need not be told at the next hello."""
        who = self._session.identity
        try:
            await self._services.queue.inbox.told(who.org, who.user, *submissions)
        except RedisError as error:
            log.warning("inbox_without_redis", session=self._session.id, error=str(error))


@attrs.define(eq=False)
class _Pending:
    """A submission whose answer is awaited; it may come before the submission is acknowledged."""

    text: str | None
    """None where another worker has taken it in."""
    is_taken_in: bool = False
    """The student was told that it is on disk, or graded at once."""
    is_at_once: bool = False
    """It is graded at once, here or where the session was before, and is in no queue."""
    answer: wire.Grade | wire.Error | None = None
    come: trio.Event = attrs.field(factory=trio.Event)
    """Set with `answer`, and once nobody waits for one."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


def _answer(state: SubmissionState) -> wire.Grade | wire.Error | None:
    """What the student is told of a submission that has come to an end; None: it has not."""
    if state.grade is not None:
        return _graded(state.id, state.grade)
    if state.failure is not None:
        return wire.Error(
            code=cast("Code", state.failure.code),
            message=state.failure.message,
            submission=state.id,
        )
    return None


def _graded(submission: str, grade: Grade) -> wire.Grade:
    return msgspec.convert({"submission": submission, **msgspec.to_builtins(grade)}, wire.Grade)
