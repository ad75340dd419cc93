"""Runs async tests on trio's mock clock under a deadlock guard, unless they are real_time."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

TESTS = Path(__file__).parent
GUARD_S = 86_400.0
REAL_GUARD_S = 90.0
STACKS = ("system/", "web/", "commands/", "test_cli.py", "test_demo.py", "test_supervisor.py")
"""Tests that start many processes each: where several tests run at once, one of these does."""

# Speed is the business of scripts/bench. In a fresh clone the first use of st.text() builds
# hypothesis' tables of Unicode, which takes over a second.
settings.register_profile("coach", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("coach")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that start stacks together, in one process after another."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(STACKS):
            item.add_marker(pytest.mark.xdist_group("stacks"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Give each `async def test_*` its own run.

    On the mock clock time jumps as soon as every task waits: no test sleeps for real, and a
    deadlock jumps to the guard and fails in milliseconds. Tests marked `real_time` talk to real
    sockets and processes and get the real clock and a guard of their own. Async fixtures are not
    supported: open resources with `async with` inside the test.
    """
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return
    real = pyfuncitem.get_closest_marker("real_time") is not None

    def run(**fixtures: object) -> None:
        async def guarded() -> None:
            with trio.fail_after(REAL_GUARD_S if real else GUARD_S):
                await test(**fixtures)

        trio.run(guarded, clock=None if real else MockClock(autojump_threshold=0))

    pyfuncitem.obj = run


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the shell that runs the tests must not leak into them."""
    for name in list(os.environ):
        if name.startswith("COACH_"):
            monkeypatch.delenv(name)
