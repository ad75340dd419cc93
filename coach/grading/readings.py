"""An essay with all that was said of it: by the judges, by a second panel, and by people.

People's scores are in the essay's record in Redis, a field for each person, and end with it; a list
for each org says which of its essays have any. They are what calibration learns from, so each says
whether the person had seen the judges' grade before: who has is drawn towards it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING, Final, Literal

import attrs
import msgspec

from ..errors import Conflict, Forbidden
from ..store import script
from .answers import kept_answer
from .calibration import panel_score
from .records import Grade

if TYPE_CHECKING:
    from .. import config
    from ..store import Redis
    from .answers import Answer
    from .queue import Queue
    from .rubric import Rubric

SCORE_MAX: Final = 100
PEOPLE_MAX: Final = 8
"""May score one essay."""
SCORED_MAX: Final = 20_000
"""Essays of an org on the list of those with scores; as many as `coach evaluate` takes."""
LISTED_MAX: Final = 1_000
"""Essays of an assignment that are listed; the newest."""
PAGE: Final = 100
"""Records that are read in one round trip."""
_AGAIN: Final = b"again:"
_PERSON: Final = b"person:"
_DAY_S: Final = 86_400
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
COLUMNS: Final = (
    *("id", "assignment", "essay", "score", "score2"),
    *("by", "at", "blind", "by2", "at2", "blind2", "grade"),
)

GRADES: Final = (
    *("id", "user", "submitted_at", "status", "score"),
    *("degraded", "review", "people", "people_mean"),
)


@attrs.frozen(kw_only=True)
class PersonsScore:
    """What a person gives an essay."""

    by: str
    """The educator, as the token says."""
    score: int
    """0..100."""
    blind: bool
    """Whether it was given before the person had seen what the judges gave."""
    at: float
    """Seconds since the epoch, on Redis' clock."""


@attrs.frozen(kw_only=True)
class JudgeView:
    """One judge beside the others."""

    judge: str
    """Its seat."""
    provider: str
    model: str
    score: int
    """Of 0..100, as it judged, alone."""
    answer: Answer


@attrs.frozen(kw_only=True)
class Reading:
    """An essay and what was said of it."""

    submission: str
    user: str
    assignment: str
    text: str = attrs.field(repr=False)
    submitted_at: float
    """Seconds since the epoch, on Redis' clock."""
    grade: Grade | None
    """As the student was told; None: there is none yet."""
    judges: tuple[JudgeView, ...]
    """By seat; none where they judged by another rubric, or their answers were not kept (flag
    `queue` off)."""
    second: Grade | None
    """A fresh panel's, the newest."""
    second_judges: tuple[JudgeView, ...]
    scores: tuple[PersonsScore, ...]
    """In the order in which they were entered."""

    @property
    def bands_apart(self) -> int:
        """Between the highest and the lowest judge, on the criterion where that is most."""
        by_criterion: dict[str, list[int]] = {}
        for view in self.judges:
            for name, judgement in view.answer.criteria.items():
                by_criterion.setdefault(name, []).append(judgement.band)
        return max((max(bands) - min(bands) for bands in by_criterion.values()), default=0)

    @property
    def points_apart(self) -> int:
        """Between the highest and the lowest judge's whole score, of 100."""
        scores = [view.score for view in self.judges]
        return max(scores) - min(scores) if scores else 0


@attrs.frozen(kw_only=True)
class HandedIn:
    """An essay among others of its assignment."""

    submission: str
    user: str
    submitted_at: float
    """Seconds since the epoch, on Redis' clock."""
    status: Literal["open", "graded", "failed"]
    score: int | None
    """Of the grade; None: there is none."""
    degraded: bool
    review: bool
    """A person should look, or should have."""
    scores: tuple[PersonsScore, ...]


class Readings:
    """A handle on an org's essays and people's scores of them; holds no state of its own.

    Every method is a checkpoint and raises `RedisError` where Redis does not answer.
    """

    def __init__(
        self, redis: Redis, queue: Queue, settings: config.Grading, rubric: Rubric | None
    ) -> None:
        """Open nothing: all are the caller's. Without a rubric, readings are without judges."""
        self._redis = redis
        self._queue = queue
        self._ttl_s = settings.result_days * _DAY_S
        self._rubric = rubric

    async def find(self, org: str, submission: str) -> Reading | None:
        """One essay of the org; None: it has none of this id.

        A round trip, and another for each time that it was graded again.
        """
        record = await self._record(org, submission)
        if record is None or record[b"kind"] != b"grade":
            return None
        second = await self._newest_second(org, record)
        return Reading(
            submission=submission,
            user=record[b"user"].decode(),
            assignment=record[b"assignment"].decode(),
            text=record[b"text"].decode(),
            submitted_at=int(record[b"submitted_ms"]) / 1000,
            grade=_grade(record),
            judges=self._judges(record),
            second=_grade(second),
            second_judges=self._judges(second),
            scores=_scores(record),
        )

    async def handed_in(
        self, org: str, assignment: str, *, count_max: int = LISTED_MAX
    ) -> tuple[int, list[HandedIn]]:
        """How many essays of an assignment are kept, and the newest of them, newest first."""
        key = self._queue.keys.index(self._queue.shard(org), org, assignment)
        total = await self._redis.execute_command("ZCARD", key)
        ids = await self._redis.execute_command("ZREVRANGE", key, 0, count_max - 1)
        found: list[HandedIn] = []
        for start in range(0, len(ids), PAGE):
            found += await self._look_at(org, [id_.decode() for id_ in ids[start : start + PAGE]])
        return total, found

    async def _look_at(self, org: str, ids: Sequence[str]) -> list[HandedIn]:
        """Without the texts; the fields of people's scores are known only where there are any."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.execute_command("ZMSCORE", self._key(org), *ids)
        fields = ("org", "kind", "user", "submitted_ms", "status", "grade")
        for id_ in ids:
            pipe.execute_command("HMGET", self._queue.record(org, id_), *fields)
        scored, *records = await pipe.execute()
        found = []
        for id_, entered, values in zip(ids, scored, records, strict=True):
            record = dict(zip(map(str.encode, fields), values, strict=True))
            if (record[b"org"], record[b"kind"]) != (org.encode(), b"grade"):
                continue  # it has outlived its time
            whole = None if entered is None else await self._record(org, id_)
            grade = _grade(record)
            found.append(
                HandedIn(
                    submission=id_,
                    user=record[b"user"].decode(),
                    submitted_at=int(record[b"submitted_ms"]) / 1000,
                    status=_STATUS.get(record[b"status"], "open"),
                    score=None if grade is None else grade.score,
                    degraded=grade is not None and grade.degraded,
                    review=grade is not None and grade.review,
                    scores=_scores(whole or {}),
                )
            )
        return found

    async def scored(self, org: str, assignment: str | None = None) -> AsyncIterator[Reading]:
        """The org's essays that people have scored, those of an assignment or all; oldest first."""
        for id_ in await self._redis.execute_command("ZRANGE", self._key(org), 0, -1):
            reading = await self.find(org, id_.decode())
            if reading is None or not reading.scores:
                continue  # it has outlived its time
            if assignment is None or reading.assignment == assignment:
                yield reading

    async def enter(self, org: str, submission: str, *, by: str, score: int, blind: bool) -> None:
        """Write down a person's score, in place of an earlier one. Repeating it is harmless.

        Args:
          org: whose essay it is.
          submission: its id.
          by: the person.
          score: 0 to 100.
          blind: whether the person had not seen what the judges gave.

        Raises:
          Forbidden: the org has no such essay.
          Conflict: PEOPLE_MAX others have scored it.
        """
        reply = await self._enter(org, submission, by, score, blind=blind)
        if reply == b"full":
            raise Conflict(f"{PEOPLE_MAX} people have scored this essay, which is enough")

    async def withdraw(self, org: str, submission: str, *, by: str) -> None:
        """Take a person's score back. Repeating it is harmless.

        Raises:
          Forbidden: the org has no such essay.
        """
        await self._enter(org, submission, by, -1, blind=False)

    async def forget(self, org: str, *, user: str, essays: Sequence[str]) -> int:
        """Erase what a person gave others' essays, and their own essays from the list.

        Args:
          org: whose both are.
          user: the person.
          essays: theirs; the records, and others' scores in them, are gone already.

        Returns:
          How many scores of theirs there were.
        """
        if essays:
            await self._redis.execute_command("ZREM", self._key(org), *essays)
        given = [
            reading.submission
            async for reading in self.scored(org)
            if any(score.by == user for score in reading.scores)
        ]
        for submission in given:
            await self.withdraw(org, submission, by=user)
        return len(given)

    async def _enter(self, org: str, submission: str, by: str, score: int, *, blind: bool) -> bytes:
        reply = await script("score_enter")(
            self._redis,
            [self._queue.record(org, submission), self._key(org)],
            [submission, org, by, score, int(blind), self._ttl_s, PEOPLE_MAX, SCORED_MAX],
        )
        if reply[0] == b"unknown":
            raise Forbidden("your organisation has no essay of this id")
        answer: bytes = reply[0]
        return answer

    async def _newest_second(
        self, org: str, record: Mapping[bytes, bytes]
    ) -> Mapping[bytes, bytes]:
        """The record of the newest further grade (see `Queue.history`); empty: there is none."""
        newest: Mapping[bytes, bytes] = {}
        for name in record:
            if name.startswith(_AGAIN):
                found = await self._record(org, name.removeprefix(_AGAIN).decode()) or {}
                if found.get(b"status") == b"graded" and _ended(found) >= _ended(newest):
                    newest = found
        return newest

    async def _record(self, org: str, submission: str) -> dict[bytes, bytes] | None:
        record: dict[bytes, bytes] = await self._redis.execute_command(
            "HGETALL", self._queue.record(org, submission)
        )
        return record if record.get(b"org") == org.encode() and b"text" in record else None

    def _judges(self, record: Mapping[bytes, bytes]) -> tuple[JudgeView, ...]:
        prefix, rubric = b"judge:", self._rubric
        views: list[JudgeView] = []
        if rubric is None:
            return ()
        for name in sorted(name for name in record if name.startswith(prefix)):
            answer = kept_answer(record[name], rubric)
            if answer is None:
                continue
            judge = name.removeprefix(prefix).decode()
            bands = {judge: {key: each.band for key, each in answer.criteria.items()}}
            views.append(
                JudgeView(
                    judge=judge,
                    provider=answer.provider,
                    model=answer.model,
                    score=int(panel_score(rubric, bands) + 0.5),
                    answer=answer,
                )
            )
        return tuple(views)

    def _key(self, org: str) -> str:
        return f"scored:{{{self._queue.shard(org)}}}:{org}"


_STATUS: Final[dict[bytes, Literal["graded", "failed"]]] = {
    b"graded": "graded",
    b"failed": "failed",
}


def _grade(record: Mapping[bytes, bytes]) -> Grade | None:
    if record.get(b"status") != b"graded":
        return None
    return msgspec.json.decode(record[b"grade"], type=Grade)


def _ended(record: Mapping[bytes, bytes]) -> int:
    return int(record.get(b"ended_ms", 0))


def _scores(record: Mapping[bytes, bytes]) -> tuple[PersonsScore, ...]:
    found = []
    for name, value in record.items():
        if name.startswith(_PERSON):
            score, blind, at_ms = map(int, value.split())
            by = name.removeprefix(_PERSON).decode()
            found.append(PersonsScore(by=by, score=score, blind=bool(blind), at=at_ms / 1000))
    return tuple(sorted(found, key=lambda each: (each.at, each.by)))


# -- as a table ----------------------------------------------------------------------------------


def scored_heading() -> str:
    """The first line of the table of scored essays: what `coach evaluate` reads."""
    return _line(COLUMNS)


def grades_heading() -> str:
    """The first line of the table of an assignment's essays."""
    return _line(GRADES)


def grades_row(essay: HandedIn) -> str:
    """An essay's line: its grade, and the mean of what people give it."""
    people = [score.score for score in essay.scores]
    return _line(
        (
            essay.submission,
            essay.user,
            datetime.fromtimestamp(essay.submitted_at, UTC).isoformat(timespec="seconds"),
            essay.status,
            "" if essay.score is None else essay.score,
            int(essay.degraded),
            int(essay.review),
            len(people),
            f"{fmean(people):.1f}" if people else "",
        )
    )


def scored_row(reading: Reading) -> str:
    """A scored essay's line: the first two people's scores, and the grade beside them."""
    first, second = [*reading.scores, None][:2]
    assert first is not None
    grade = reading.grade
    return _line(
        (
            reading.submission,
            reading.assignment,
            _no_formula(reading.text),
            first.score,
            "" if second is None else second.score,
            *_who(first),
            *(("", "", "") if second is None else _who(second)),
            "" if grade is None else grade.score,
        )
    )


def _who(score: PersonsScore) -> tuple[str, str, int]:
    return score.by, f"{score.at:.0f}", int(score.blind)


def _no_formula(text: str) -> str:
    """Words that a spreadsheet would run are quoted; `coach evaluate` takes the quote off."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _line(cells: tuple[object, ...]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
