"""The educators' page: grades that a person should look at, judges side by side, people's scores.

An educator sees the essays of the own org and nobody else's. Scores that people enter are kept in
the essays' records; `coach calibrate fit --org` and the table that is downloaded here read them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
import msgspec
from msgspec import Meta
from quart import Blueprint, Response, jsonify, request

from .errors import BadMessage, Forbidden
from .grading import (
    SCORE_MAX,
    Readings,
    Reviews,
    grades_heading,
    grades_row,
    scored_heading,
    scored_row,
)
from .host import caller_as, current_host

if TYPE_CHECKING:
    from .grading import JudgeView, Reading, Review
    from .session import Identity

review = Blueprint("review", __name__)

TABLE_MAX: Final = 20_000
"""Rows of a table of grades: 2 MB."""
NO_REVIEW: Final = "your organisation has no review of this id"
NO_ESSAY: Final = "your organisation has no essay of this id"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person gives an essay; null takes it back."""

    score: Annotated[int, Meta(ge=0, le=SCORE_MAX)] | None
    blind: bool = False


@review.get("/review")
async def _page() -> Response:
    return await current_host().send_static_file("review.html")


# -- the list ------------------------------------------------------------------------------------


@review.get("/api/reviews")
async def _list() -> Response:
    """Grades that a person should look at, the newest first."""
    org = (await _educator()).org
    readings = _readings()
    return jsonify(
        [
            _listed(found, await readings.find(org, found.submission))
            for found in await _reviews().newest(org)
        ]
    )


@review.get("/api/reviews/<submission>")
async def _one(submission: str) -> dict[str, Any]:
    """One of them."""
    org = (await _educator()).org
    found = await _reviews().find(org, submission)
    if found is None:
        raise Forbidden(NO_REVIEW)
    return _listed(found, await _readings().find(org, submission))


@review.delete("/api/reviews/<submission>")
async def _done(submission: str) -> dict[str, Any]:
    """Take one off the list: a person has looked at it."""
    if not await _reviews().done((await _educator()).org, submission):
        raise Forbidden(NO_REVIEW)
    return {"submission": submission}


def _listed(found: Review, reading: Reading | None) -> dict[str, Any]:
    """A review with what one needs to choose among many; an essay may have outlived its time."""
    if reading is None:
        return attrs.asdict(found)
    return {**attrs.asdict(found), **_summary(reading)}


def _summary(reading: Reading) -> dict[str, Any]:
    return {
        "user": reading.user,
        "assignment": reading.assignment,
        "submitted_at": reading.submitted_at,
        "bands_apart": reading.bands_apart,
        "points_apart": reading.points_apart,
        "scores": [attrs.asdict(score) for score in reading.scores],
    }


# -- one essay -----------------------------------------------------------------------------------


@review.get("/api/readings/<submission>")
async def _reading(submission: str) -> dict[str, Any]:
    """An essay, its grades, what each judge said of it, and people's scores."""
    who = await _educator()
    reading = await _readings().find(who.org, submission)
    if reading is None:
        raise Forbidden(NO_ESSAY)
    rubric = current_host().opened().backend.rubric
    second = None if reading.second is None else attrs.asdict(reading.second)
    return {
        "you": who.user,
        "submission": reading.submission,
        **_summary(reading),
        "text": reading.text,
        "task": rubric.task(reading.assignment),
        "criteria": [
            {"name": each.name, "label": each.label, "bands": each.bands, "weight": each.weight}
            for each in rubric.criteria
        ],
        "grade": None if reading.grade is None else attrs.asdict(reading.grade),
        "judges": [_judge(view) for view in reading.judges],
        "second": second,
        "second_judges": [_judge(view) for view in reading.second_judges],
    }


def _judge(view: JudgeView) -> Mapping[str, Any]:
    return {
        "judge": view.judge,
        "provider": view.provider,
        "model": view.model,
        "score": view.score,
        "criteria": msgspec.to_builtins(view.answer.criteria),
        "improve_first": view.answer.improve_first,
    }


@review.put("/api/readings/<submission>/score")
async def _score(submission: str) -> dict[str, Any]:
    """Enter the educator's own score, in place of an earlier one; null takes it back."""
    who = await _educator()
    try:
        given = msgspec.json.decode(await request.get_data(), type=Score)
    except msgspec.MsgspecError as error:
        raise BadMessage(f"not a score of 0 to {SCORE_MAX}: {error}") from error
    readings = _readings()
    if given.score is None:
        await readings.withdraw(who.org, submission, by=who.user)
    else:
        await readings.enter(who.org, submission, by=who.user, score=given.score, blind=given.blind)
    reading = await readings.find(who.org, submission)
    return {"scores": [] if reading is None else _summary(reading)["scores"]}


# -- an assignment -------------------------------------------------------------------------------


@review.get("/api/assignments/<assignment>/submissions")
async def _submissions(assignment: str) -> dict[str, Any]:
    """The essays of an assignment, the newest first, and how many there are."""
    total, essays = await _readings().handed_in((await _educator()).org, assignment)
    return {"total": total, "submissions": [attrs.asdict(essay) for essay in essays]}


@review.get("/api/assignments/<assignment>/grades.csv")
async def _grades(assignment: str) -> Response:
    """All of them as a table, without texts."""
    org = (await _educator()).org
    _, essays = await _readings().handed_in(org, assignment, count_max=TABLE_MAX)
    lines = [grades_heading(), *map(grades_row, essays)]
    return _table("".join(lines), "grades.csv")


@review.get("/api/scores.csv")
async def _scores() -> Response:
    """The essays that people have scored, for `coach evaluate`: of ?assignment=, or all."""
    org = (await _educator()).org
    readings, assignment = _readings(), request.args.get("assignment")

    async def lines() -> AsyncIterator[str]:
        yield scored_heading()
        async for reading in readings.scored(org, assignment):
            yield scored_row(reading)

    return _table(lines(), "scores.csv")


def _table(lines: str | AsyncIterator[str], name: str) -> Response:
    response = Response(lines, content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Cache-Control"] = "no-store"
    response.timeout = None
    return response


def _reviews() -> Reviews:
    app = current_host()
    backend = app.opened().backend
    return Reviews(backend.redis, backend.queue, app.settings.grading)


def _readings() -> Readings:
    app = current_host()
    backend = app.opened().backend
    return Readings(backend.redis, backend.queue, app.settings.grading, backend.rubric)


async def _educator() -> Identity:
    return await caller_as("educator", "reviews are for educators")
