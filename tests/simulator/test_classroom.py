"""The load test's command line: what options ask for, several processes, what is left behind."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from coach.errors import ConfigurationError
from coach.simulator.classroom import _parser, main, plan_from
from coach.simulator.crowd import Crowd, run_crowd
from coach.simulator.host import Host, descendants, role_of, topmost
from coach.simulator.plan import Plan
from coach.simulator.verdict import judge
from coach.simulator.watch import Targets, Watch
from tests.support.fake_coach import FakeCoach, open_fake_coach

real_time = pytest.mark.real_time


def planned(line: str) -> Plan:
    return plan_from(_parser().parse_args(line.split()))


@pytest.mark.parametrize(
    ("line", "writers", "seconds", "last_s"),
    [
        ("", 60, 60, 5.0),
        ("--writers 10 --seconds 30", 10, 30, 3.0),
        ("--writers 10 --ramp 20 --seconds 1m", 10, 60, 18.0),
        ("--ramp 1:10:20s", 10, 80, 20.0),
        ("--steps 5,10:30s", 10, 94.8, 34.8),
        ("--writers 5 --spike 30@20s --seconds 1h", 35, 3600, 20.0),
        ("--ramp 1:10:20s --spike 3@5s --spike 2@50s", 15, 110, 50.0),
    ],
)
def test_options_say_who_arrives_when(
    line: str, writers: int, seconds: float, last_s: float
) -> None:
    """As many arrivals as writers, in their order, and time to write after the last of them."""
    plan = planned(line)
    arrivals = plan.arrivals_s()
    assert plan.writers == writers
    assert plan.seconds == pytest.approx(seconds)
    assert len(arrivals) == writers
    assert list(arrivals) == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(last_s, abs=0.5)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--ramp 1:10:20s --writers 5", "omit --writers"),
        ("--steps 1,2:5s --ramp 5", "exclude"),
        ("--ramp 1:2", "FIRST:LAST:TIME"),
        ("--ramp soon", "not a time"),
        ("--orgs 3", "--secret"),
        ("--secret env:NOBODY_HAS_SET_THIS", "NOBODY_HAS_SET_THIS"),
        ("--processes 0", "processes"),
        ("--url http://example.org", "--allow-remote"),
    ],
)
def test_a_contradiction_is_told_in_one_line(
    line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code says that nothing was begun."""
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_secret_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines are seen by everybody on a machine."""
    monkeypatch.setenv("SIGNING_KEY", "from there")
    assert planned("--secret env:SIGNING_KEY --orgs 2").secret == "from there"


@real_time
async def test_processes_share_the_students_and_what_they_saw_is_summed_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everybody is served once, and a watcher beside them sees it grow."""
    monkeypatch.setattr("coach.simulator.crowd.START_S", 0.8)
    monkeypatch.setattr("coach.simulator.watch.SAMPLE_S", 0.4)
    fake = FakeCoach(first_token_s=0.02, event_s=0.002, grade_s=0.05)
    async with open_fake_coach(fake) as coach, trio.open_nursery() as nursery:
        plan = Plan(url=coach.url, writers=5, seconds=2, ramp_s=0.1, grace_s=5, turn_every_s=1)
        crowd = Crowd(plan)
        watch = Watch(crowd, Targets(url=coach.url))
        nursery.start_soon(watch.run)
        report = await run_crowd(crowd, processes=2)
        nursery.cancel_scope.cancel("the run has ended")
    assert report.ok, report.as_dict()
    assert report.tally.submissions == 5
    assert len(coach.said("submit")) == 5
    assert len(crowd.pids) == 2
    assert crowd.presence.finished == 5
    assert max(sample.writers for sample in watch.samples) > 0
    assert any(sample.busiest("load generator") > 0 for sample in watch.samples)
    assert judge(watch.samples).most > 0


@real_time
async def test_a_process_that_dies_ends_the_run_and_leaves_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the dead one saw is not known, so nothing is reported."""
    monkeypatch.setattr("coach.simulator.crowd.START_S", 0.0)
    async with open_fake_coach(FakeCoach()) as coach:
        crowd = Crowd(Plan(url=coach.url, writers=2, seconds=2, ramp_s=0, grace_s=0))

        async def run() -> None:
            with pytest.raises(ConfigurationError, match="has died"):
                await run_crowd(crowd, processes=2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            os.kill(crowd.pids[0], signal.SIGKILL)
    for pid in crowd.pids:
        assert role_of(pid) is None


@real_time
async def test_a_server_that_answers_drop_by_drop_does_not_stop_the_watcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it would have said is not known in those samples; all else is."""
    monkeypatch.setattr("coach.simulator.watch.SAMPLE_S", 0.1)
    monkeypatch.setattr("coach.simulator.watch.ASK_S_MAX", 0.2)

    async def dribble(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"H")
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, dribble, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        watch = Watch(Crowd(Plan(url=url)), Targets(url=url))
        with trio.move_on_after(1):
            await watch.run()
        nursery.cancel_scope.cancel("seen enough")
    assert len(watch.samples) >= 2
    assert all(sample.sessions is None for sample in watch.samples)


@real_time
async def test_the_server_s_processes_are_found_by_its_port() -> None:
    """Here it is this process, whose descendants are the server's."""
    async with open_fake_coach(FakeCoach()) as coach:
        port = int(coach.url.rpartition(":")[2])
        top = topmost(port)
        assert top is not None
        assert os.getpid() in descendants(top)
        host = Host(port, [os.getpid()])
        assert host.look() == []
        for _ in range(1000):
            pass
        (mine,) = (usage for usage in host.look() if usage.pid == os.getpid())
        assert mine.role == "load generator"
        assert mine.files > 3
        assert mine.memory_mb > 10
    assert topmost(port) is None


def test_the_command_leaves_figures_and_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the students' word; the last lines say what broke first, and where it is."""
    fake = FakeCoach(first_token_s=0.02, event_s=0.002, grade_s=0.05)
    codes = []

    async def serve_and_run() -> None:
        async with open_fake_coach(fake) as coach:
            options = f"--url {coach.url} --writers 2 --seconds 2 --turn-every 1".split()
            files = ["--json", f"{tmp_path}/run.json", "--report", f"{tmp_path}/report"]
            run = partial(main, [*options, *files])
            codes.append(await trio.to_thread.run_sync(run))

    trio.run(serve_and_run)
    said = " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "run.json").read_text())
    assert codes == [0], said
    assert figures["graded"] == 2
    assert figures["verdict"]["words"][0].split(":")[0] in said
    assert "The report:" in said
    assert (tmp_path / "report" / "index.html").exists()
