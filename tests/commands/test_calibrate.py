"""`coach calibrate`: what an operator types after an evaluation, and what graders then find."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from typer.testing import CliRunner, Result

from coach import config
from coach.agreement import Evaluation, split
from coach.cli import cli
from coach.errors import ConfigurationError
from coach.grading import Queue, Readings, current_version, load_rubric, read_calibration
from coach.store import open_embedded, open_redis
from tests.agreement.judging import Habit, evaluated
from tests.grading.support import GRADE, essay, take
from tests.test_review import judged

pytestmark = pytest.mark.real_time


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *arguments, "--data-dir", str(folder)])


def write(folder: Path, evaluation: Evaluation) -> str:
    (folder / "evaluation.json").write_bytes(msgspec.json.encode(evaluation))
    return str(folder)


async def test_an_operator_fits_looks_goes_back_and_resets(tmp_path: Path) -> None:
    results = write(tmp_path, evaluated(120))
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:

        async def say(*arguments: str) -> str:
            result = await trio.to_thread.run_sync(run, tmp_path, *arguments)
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output

        assert await say("show") == "none: grades are as judged\n"
        assert "would be set" in await say("fit", results, "--dry-run")
        assert await current_version(redis) == 0

        said = await say("fit", results)
        assert said.startswith("calibration 1: ")
        assert "kind+narrow+strict: ± " in said
        version, calibration = await read_calibration(redis)
        assert version == 1
        assert calibration is not None
        assert calibration.lines["kind"].offset < -10
        assert calibration.lines["narrow"].scale > 1
        before, after = calibration.qwk
        assert before is not None
        assert after is not None
        assert before < after
        assert len(calibration.margins) == 7

        second = json.loads(await say("fit", results, "--stage", "offset", "--json"))
        assert (second["version"], second["in_use"]) == (2, True)
        assert {line["scale"] for line in second["lines"].values()} == {1.0}
        assert json.loads(await say("show", "--json")) == second
        assert [line.split()[0] for line in (await say("history")).splitlines()] == ["*", "1"]
        assert "calibration 1 is in use" in await say("use", "1")
        assert await current_version(redis) == 1
        assert [each["in_use"] for each in json.loads(await say("history", "--json"))] == [
            False,
            True,
        ]
        await say("reset")
        assert await current_version(redis) == 0
        refused = await trio.to_thread.run_sync(run, tmp_path, "use", "9")
        assert "no calibration 9 is kept" in str(refused.exception)


async def test_scores_that_educators_entered_are_fitted_without_asking_anybody(
    tmp_path: Path,
) -> None:
    settings = config.Grading(review_percent=0)
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        queue, rubric = Queue(redis, settings), load_rubric()
        readings = Readings(redis, queue, settings, rubric)
        for number in range(24):
            band, id_ = 1 + number % 4, f"s{number}"
            await queue.submit(essay(id_))
            claim = await take(queue)
            await queue.save(claim, "judge-1", judged("opus", band))
            await queue.finish(claim, GRADE)
            await readings.enter("school", id_, by="eva", score=20 * band - 15, blind=True)

        fit = partial(run, tmp_path, "fit", "--org", "school")
        result = await trio.to_thread.run_sync(fit)
        assert result.exit_code == 0, (result.output, result.exception)
        _, calibration = await read_calibration(redis)
        assert calibration is not None
        assert (calibration.source, calibration.essays) == ("/review, school", 24)
        assert calibration.lines["opus"](60) == pytest.approx(45, abs=1)
        nobodys = await trio.to_thread.run_sync(run, tmp_path, "fit", "--org", "other")
        assert "/review, other: no essay has both a score" in str(nobodys.exception)
    assert "name what coach evaluate wrote, or --org" in refused(tmp_path, "fit")


def refused(folder: Path, *arguments: str) -> str:
    told = run(folder, *arguments).exception
    assert isinstance(told, ConfigurationError), told
    assert "\n" not in str(told)
    return str(told)


def test_what_helps_nobody_is_not_set(tmp_path: Path) -> None:
    few = write(tmp_path, evaluated(6))
    assert "no reason to change anything" in refused(tmp_path, "fit", few)
    whole = evaluated(60, {"kind": Habit(offset=0.2)})
    # people who changed their mind about half of the class: what was fitted is wrong for the others
    unseen = set(split([each.key for each in whole.essays]).held_out)
    turned = tuple(
        msgspec.structs.replace(each, score=min(20, each.score + 6)) if at in unseen else each
        for at, each in enumerate(whole.essays)
    )
    results = write(tmp_path, msgspec.structs.replace(whole, essays=turned))
    assert "held-out essays agree less by it" in refused(tmp_path, "fit", results)
    dry = run(tmp_path, "fit", results, "--force", "--dry-run")
    assert dry.exit_code == 0


def test_what_is_no_evaluation_is_one_line(tmp_path: Path) -> None:
    assert "coach evaluate writes it" in refused(tmp_path, "fit", str(tmp_path / "none"))
    (tmp_path / "evaluation.json").write_text("{}")
    assert "is not from coach evaluate" in refused(tmp_path, "fit", str(tmp_path))
    other = write(tmp_path, msgspec.structs.replace(evaluated(9), rubric="0" * 12))
    assert "another rubric" in refused(tmp_path, "fit", other)
