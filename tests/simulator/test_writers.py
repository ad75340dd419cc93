"""A class of simulated students against a small server: right, wrong in named ways, and absent."""

from __future__ import annotations

from functools import partial
from typing import Any

import jwt
import pytest
import trio

from coach.errors import ConfigurationError
from coach.simulator.conversation import Tally
from coach.simulator.corpus import Essay, load_essays
from coach.simulator.writers import (
    Plan,
    Student,
    check_loopback,
    check_reachable,
    simulate,
)
from tests.support.fake_coach import FakeCoach, open_fake_coach

real_time = pytest.mark.real_time
BRISK: dict[str, Any] = {"first_token_s": 0.02, "event_s": 0.002, "grade_s": 0.05}


def plan(coach: FakeCoach, **changes: Any) -> Plan:
    return Plan(
        **{"url": coach.url, "writers": 3, "seconds": 2.5, "ramp_s": 0.2, "grace_s": 1, **changes}
    )


@real_time
async def test_every_student_writes_submits_and_is_graded() -> None:
    """Their drafts and essays arrive as they stand in the files; all is measured; no error."""
    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        report = await simulate(plan(coach, turn_every_s=1))
    figures = report.as_dict()
    assert report.ok, figures
    assert figures["submissions"] == figures["graded"] == 3
    assert figures["turns"] == figures["completed"] + figures["superseded"] > 3
    assert figures["errors"] == {}
    assert figures["ttft_ms"]["p50"] >= 20
    essays = {essay.text for essay in load_essays()}
    handed_in = [said["text"] for said in coach.heard if said["type"] == "submit"]
    assert len(handed_in) == 3
    assert essays.issuperset(handed_in)
    assert any(said["type"] == "ack" for said in coach.heard)


def _skip_seq(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**message, "seq": 99}] if message["type"] == "grading" else [message]


def _lose(kind: str) -> Any:
    return lambda message: [] if message["type"] == kind else [message]


@real_time
@pytest.mark.parametrize(
    ("mutate", "code"),
    [(_skip_seq, "protocol_seq"), (_lose("done"), "protocol_no_end"), (_lose("grade"), None)],
    ids=["seq", "no done", "no grade"],
)
async def test_a_faulty_server_fails_the_run(mutate: Any, code: str | None) -> None:
    """A lost grade shows as ungraded, the others as errors; the run ends in time all the same."""
    async with open_fake_coach(FakeCoach(mutate=mutate, **BRISK)) as coach:
        with trio.fail_after(12):
            report = await simulate(plan(coach, writers=1))
    assert not report.ok
    assert code is None or report.tally.errors[code] > 0
    assert code is not None or report.tally.graded == 0


@real_time
async def test_a_refused_and_a_lost_connection_are_counted() -> None:
    """And the students concerned end early instead of hanging."""
    async with open_fake_coach(FakeCoach(refuse_sockets=True)) as coach:
        report = await simulate(plan(coach))
    assert report.tally.errors == {"connect_failed": 3}

    async with open_fake_coach(FakeCoach()) as coach, trio.open_nursery() as nursery:

        async def cut() -> None:
            await trio.sleep(0.5)
            await coach.cut()

        nursery.start_soon(cut)
        with trio.fail_after(4):
            report = await simulate(plan(coach))
    assert report.tally.errors["closed_1006"] == 3
    assert not report.ok


@real_time
async def test_an_absent_server_is_one_line() -> None:
    """The line says where it looked."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(ConfigurationError, match=f"no coach answers at http://127.0.0.1:{port}"):
        await check_reachable(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["http://localhost:1", "https://127.8.0.1", "http://[::1]:8000"])
def test_this_machine_may_be_loaded(url: str) -> None:
    """Every spelling of loopback."""
    check_loopback(url)


@pytest.mark.parametrize(
    "url",
    ["http://example.org", "http://10.0.0.1:8000", "http://localhost.example.org", "ftp://x", ""],
)
def test_other_machines_may_not(url: str) -> None:
    """Unless the caller says so, which skips this check."""
    with pytest.raises(ConfigurationError):
        check_loopback(url)


@pytest.mark.parametrize(
    "changes",
    [
        {"writers": 0},
        {"seconds": 1},
        {"ramp_s": 40},
        {"turn_every_s": 0.1},
        {"arrivals": (0.0, 1.0)},
        {"writers": 1, "arrivals": (59.0,)},
        {"time_scale": 0},
        {"flaky": 2},
        {"orgs": 3},
    ],
)
def test_a_plan_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigurationError):
        Plan(**changes)


@real_time
async def test_a_flaky_phone_comes_back_and_hands_in_what_was_typed_meanwhile() -> None:
    """Turns that went down with its network are no errors; the draft is sent whole again."""
    flaky = {"flaky": 1.0, "online_s": 0.5, "offline_s": (0.1, 0.2), "half_open": 0.5}
    async with open_fake_coach(FakeCoach(first_token_s=0.2, event_s=0.01, grade_s=0.05)) as coach:
        report = await simulate(plan(coach, writers=4, seconds=3, turn_every_s=1, **flaky))
    tally = report.tally
    assert report.ok, dict(tally.errors)
    assert tally.reconnects == coach.connections - 4 > 0
    assert tally.turns == tally.completed + tally.superseded + tally.dropped
    texts = {essay.text for essay in load_essays()}
    for said in coach.said("draft"):
        assert any(len(said["text"]) <= len(text) + 20 for text in texts)
    assert coach.said("draft")


@real_time
async def test_a_phone_that_loses_its_network_as_it_hands_in_does_so_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection still stands there, for a moment, and would take the essay down with it."""
    hand_in = Student._hand_in

    async def lose_and_hand_in(student: Student, essay: Essay, submission: str) -> None:
        assert student._link is not None
        student._link.patience.cancel()
        await hand_in(student, essay, submission)

    monkeypatch.setattr(Student, "_hand_in", lose_and_hand_in)
    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        report = await simulate(plan(coach, offline_s=(0.05, 0.1)))
    assert report.ok, report.as_dict()
    assert report.tally.reconnects == report.tally.graded == 3


@real_time
async def test_processes_share_a_class_of_several_schools() -> None:
    """Each student is in one of them, with a user and an org signed by the secret; who puts the
    essay aside for minutes still hands in within the run."""
    secret = "a secret of at least thirty-two bytes"
    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        tallies = [Tally(), Tally()]
        async with trio.open_nursery() as nursery:
            for number, tally in enumerate(tallies):
                part = plan(
                    coach,
                    writers=7,
                    orgs=3,
                    secret=secret,
                    long_pauses=1.0,
                    part=(number, 2),
                )
                nursery.start_soon(partial(simulate, part, tally=tally))
    assert [tally.submissions for tally in tallies] == [4, 3]
    assert [tally.graded for tally in tallies] == [4, 3]
    tokens = [said["token"] for said in coach.said("hello")]
    claims = [jwt.decode(token, secret, algorithms=["HS256"]) for token in tokens]
    assert len({each["sub"] for each in claims}) == 7
    assert len({each["org"] for each in claims}) > 1
