"""The educators' page over HTTP, with a real Redis: whose essays are seen, and what is entered."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from coach.agreement import read_essays
from coach.app import app
from coach.grading import Answer, Claim, Reviews, Submission
from coach.grading.answers import Judgement
from coach.grading.reviews import second_id

from .test_app import GRADE, Opened, answer, opened

pytestmark = pytest.mark.real_time

NAMES = ("content", "structure", "language", "spelling-punctuation-grammar")


def judged(provider: str, band: int, evidence: str = "calm") -> bytes:
    """A judge's answer with one band on every criterion."""
    judgement = Judgement(band=band, evidence=evidence, reason="So it is.")
    return msgspec.json.encode(
        Answer(
            criteria=dict.fromkeys(NAMES, judgement),
            improve_first="More.",
            provider=provider,
            model="sim-1",
        )
    )


async def graded(
    served: Opened,
    id_: str,
    bands: Mapping[str, int],
    *,
    org: str = "demo",
    text: str = "The sea was calm.",
    assignment: str = "x",
    evidence: str = "calm",
) -> None:
    """An essay with a grade and its judges' answers, by seat; each seat asks its own provider."""
    queue = served.parts.backend.queue
    await queue.submit(Submission(id=id_, user="ana", org=org, assignment=assignment, text=text))
    claim = await queue.claim(0, ["submission"])
    assert isinstance(claim, Claim)
    for seat, band in bands.items():
        await queue.save(claim, seat, judged(f"at-{seat}", band, evidence))
    await queue.finish(claim, GRADE)


async def ask(
    served: Opened, method: str, path: str, body: object = None, *, user: str = "eva"
) -> tuple[int, Any]:
    """What an educator of the org demo is answered."""
    response = await app.test_client().open(
        path, method=method, json=body, headers=served.bearer(user, role="educator")
    )
    return response.status_code, await response.get_json()


async def reviews_of(served: Opened) -> Reviews:
    backend = served.parts.backend
    return Reviews(backend.redis, backend.queue, app.settings.grading)


async def test_educators_see_the_reviews_of_their_own_org_with_how_far_judges_are_apart(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as served:
        await graded(served, "s-1", {"a": 1, "b": 4})
        reviews = await reviews_of(served)
        await reviews.add("demo", "s-1", "disagreement")
        await reviews.add("school", "s-2", "sample")
        await reviews.add("demo", "s-3", "sample")  # whose essay has outlived its time
        for role in ("student", "operator"):
            assert (await answer("/api/reviews", served.bearer(role=role)))[0] == 403
        status, told = await ask(served, "GET", "/api/reviews")
        one = await ask(served, "GET", "/api/reviews/s-1")
        assert (await ask(served, "GET", "/api/reviews/s-2"))[0] == 403
        assert (await ask(served, "DELETE", "/api/reviews/s-2"))[0] == 403
        assert (await ask(served, "DELETE", "/api/reviews/s-1"))[0] == 200
        _, left = await ask(served, "GET", "/api/reviews")
    assert status == 200
    assert [(each["submission"], each["grade"] is None) for each in told] == [
        ("s-3", True),
        ("s-1", False),
    ]
    assert one == (200, told[1])
    assert (told[1]["user"], told[1]["bands_apart"], told[1]["scores"]) == ("ana", 3, [])
    assert told[1]["points_apart"] > 20
    assert [each["submission"] for each in left] == ["s-3"]


async def test_an_essay_is_shown_with_each_judge_and_the_second_panel(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        await graded(served, "s-1", {"judge-1": 2, "judge-2": 3})
        queue = served.parts.backend.queue
        await queue.note_again("demo", "s-1", second_id("s-1"), "regrade")
        await graded(served, second_id("s-1"), {"judge-1": 5})
        await graded(served, "other", {"a": 1}, org="school")
        status, told = await ask(served, "GET", "/api/readings/s-1")
        for nobodys in ("other", "s-9", second_id("other")):
            assert (await ask(served, "GET", f"/api/readings/{nobodys}"))[0] == 403
    assert status == 200
    assert told["text"] == "The sea was calm."
    assert [each["name"] for each in told["criteria"]] == list(NAMES)
    assert [(each["judge"], each["provider"], each["model"]) for each in told["judges"]] == [
        ("judge-1", "at-judge-1", "sim-1"),
        ("judge-2", "at-judge-2", "sim-1"),
    ]
    assert told["judges"][0]["criteria"]["content"] == {
        "band": 2,
        "evidence": "calm",
        "reason": "So it is.",
    }
    assert told["grade"]["score"] == told["second"]["score"] == GRADE.score
    assert [each["judge"] for each in told["second_judges"]] == ["judge-1"]


async def test_an_assignments_essays_are_listed_and_counted_for_their_org_alone(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as served:
        for id_ in ("s-1", "s-2"):
            await graded(served, id_, {"a": 2})
        await graded(served, "other", {"a": 2}, org="school")
        await graded(served, "y-1", {"a": 2}, assignment="y")
        queue = served.parts.backend.queue
        await queue.submit(Submission(id="s-3", user="ben", org="demo", assignment="x", text="C."))
        await ask(served, "PUT", "/api/readings/s-1/score", {"score": 61})
        status, told = await ask(served, "GET", "/api/assignments/x/submissions")
        await served.parts.backend.redis.delete(queue.record("demo", "s-2"))
        _, left = await ask(served, "GET", "/api/assignments/x/submissions")
        response = await app.test_client().get(
            "/api/assignments/x/grades.csv", headers=served.bearer("eva", role="educator")
        )
        table = list(csv.DictReader((await response.get_data(as_text=True)).splitlines()))
    assert (status, told["total"]) == (200, 3)
    assert [
        (each["submission"], each["user"], each["status"], each["score"], len(each["scores"]))
        for each in told["submissions"]
    ] == [
        ("s-3", "ben", "open", None, 0),
        ("s-2", "ana", "graded", GRADE.score, 0),
        ("s-1", "ana", "graded", GRADE.score, 1),
    ]
    assert [each["submission"] for each in left["submissions"]] == ["s-3", "s-1"]
    assert [(row["id"], row["score"], row["people_mean"]) for row in table] == [
        ("s-3", "", ""),
        ("s-1", str(GRADE.score), "61.0"),
    ]


async def test_a_persons_score_is_kept_with_their_name_and_replaced_or_taken_back_by_them(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as served:
        await graded(served, "s-1", {"a": 2})
        path = "/api/readings/s-1/score"
        await ask(served, "PUT", path, {"score": 60, "blind": True})
        await ask(served, "PUT", path, {"score": 80}, user="ben")
        status, told = await ask(served, "PUT", path, {"score": 70})
        assert status == 200
        scores = (await ask(served, "GET", "/api/readings/s-1"))[1]["scores"]
        assert told["scores"] == scores
        assert [(each["by"], each["score"], each["blind"]) for each in scores] == [
            ("ben", 80, False),
            ("eva", 70, False),
        ]
        assert scores[0]["at"] <= scores[1]["at"]
        assert (await ask(served, "PUT", path, {"score": None}))[1]["scores"] == scores[:1]
        for wrong in ({"score": 101}, {"score": -1}, {"score": "x"}, {}, {"score": 1, "by": "x"}):
            assert (await ask(served, "PUT", path, wrong))[0] == 400
        assert (await ask(served, "PUT", "/api/readings/s-9/score", {"score": 1}))[0] == 403
        assert await served.parts.backend.redis.exists("submission:{0}:s-9") == 0


async def test_the_table_is_what_coach_evaluate_reads(tmp_path: Path) -> None:
    """Of one assignment or all; what a spreadsheet would run is quoted, and read unquoted."""
    async with opened(tmp_path) as served:
        texts = {"s-1": '=1+1 is\n"two", she said.', "s-2": "Calm, 'and' grey.", "s-3": "Wild."}
        for number, (id_, text) in enumerate(texts.items()):
            await graded(served, id_, {"a": 2}, text=text, assignment="y" if id_ == "s-3" else "x")
            for user in ("eva", "ben"):
                body = {"score": 40 + 10 * number}
                await ask(served, "PUT", f"/api/readings/{id_}/score", body, user=user)
        await graded(served, "s-4", {"a": 2})  # nobody has scored it
        headers = served.bearer("eva", role="educator")
        client = app.test_client()
        response = await client.get("/api/scores.csv?assignment=x", headers=headers)
        of_x = await response.get_data(as_text=False)
        everything = await (await client.get("/api/scores.csv", headers=headers)).get_data(
            as_text=False
        )
    assert response.headers["Content-Disposition"].startswith("attachment")
    assert b"'=1+1" in of_x
    found = read_essays(of_x, low=0, high=100)
    assert [(each.id, each.text, each.raters) for each in found.essays] == [
        ("s-1", texts["s-1"], (40, 40)),
        ("s-2", texts["s-2"], (50, 50)),
    ]
    assert [each.id for each in read_essays(everything).essays] == list(texts)
    assert attrs.asdict(found.scale) == {"low": 0, "high": 100, "step": 1.0}
