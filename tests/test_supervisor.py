"""`coach serve` with a small application: real workers, killed, replaced, drained, refused.

Where the exit code or a terminal matters the supervisor is a process of its own; elsewhere it runs
in the test, so that its patience can be shortened.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio_websocket import ConnectionClosed

from coach import config, supervisor
from coach.child import Process, exited, is_running, stop_child
from coach.errors import ConfigurationError
from tests.support.stack import (
    children_of,
    connections_of,
    family_of,
    free_port,
    open_websocket,
    start_python,
    until,
)
from tests.support.tls import Certificates

pytestmark = pytest.mark.real_time

TINY = "tests.support.tiny_app:app"
NO_REDIS = "redis://127.0.0.1:1"
"""So that the supervisor embeds none; the small application needs none."""
DRAIN_S = 1.0


@attrs.frozen
class Running:
    """A supervisor that is a process of its own."""

    process: Process
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> set[int]:
        return children_of(self.process.pid)

    async def answers(self, path: str = "/") -> int:
        """Ask on a new connection; returns the pid of the worker that answers."""
        head = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(head.encode())
            with trio.fail_after(5):
                answer = b"".join([bytes(data) async for data in stream])
        return int(answer.rpartition(b"hello ")[2])

    async def ends(self, *, within_s: float = 3.0) -> int:
        """Wait for its end; returns the exit code. No worker is left then."""
        workers = self.workers
        with trio.fail_after(within_s):
            code = await exited(self.process)
        assert not any(map(is_running, workers))
        return code


@asynccontextmanager
async def running(
    tmp_path: Path, *, workers: int = 1, drain_s: float = DRAIN_S, **server: str | None
) -> AsyncIterator[Running]:
    """Serve the small application; whatever is left at the end is killed, and a failure."""
    port, log = free_port(), tmp_path / "serve.log"
    environ = {
        "COACH_SERVER__BIND": f"127.0.0.1:{port}",
        "COACH_SERVER__WORKERS": f"{workers}",
        "COACH_SERVER__DRAIN_S": f"{drain_s}",
        "COACH_REDIS__URL": NO_REDIS,
        **{f"COACH_SERVER__{name.upper()}": value for name, value in server.items() if value},
    }
    process = start_python(["-m", "tests.support.tiny_app"], log, {**os.environ, **environ})
    try:
        await until(lambda: "serving" in log.read_text(), within_s=20)
        yield Running(process, port, log)
        family = family_of(process.pid)
        process.terminate()
        with trio.fail_after(drain_s + 5):
            await exited(process)
        assert not any(map(is_running, family))
        assert "Traceback" not in log.read_text()
    finally:
        await stop_child(process, within_s=0)  # noqa: ASYNC102  shields itself


# -- a worker dies -----------------------------------------------------------------------------


async def test_a_killed_worker_costs_nobody_else_and_is_made_good(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        before = served.workers
        assert len(before) == 2
        async with open_websocket(served.url) as mine:
            await mine.send_message("a")
            await mine.get_message()
            victim = next(pid for pid in before if not connections_of(pid, served.port))
            os.kill(victim, signal.SIGKILL)
            began, seen = trio.current_time(), set[int]()
            with trio.fail_after(10):
                while not seen - before:
                    seen.add(await served.answers())
            report(f"made good after {trio.current_time() - began:.2f} s")
            await mine.send_message("b")
            assert await mine.get_message() == "b"
        await until(lambda: len(served.workers) == 2)
        assert served.workers - before
        assert "was ended by SIGKILL" in served.log.read_text()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_whole_process_group_drains(
    tmp_path: Path, number: signal.Signals
) -> None:
    """As Ctrl-C in a terminal, and systemd, do it: clients are told, and the exit code is 0."""
    async with running(tmp_path, drain_s=5) as served, open_websocket(served.url) as websocket:
        await websocket.send_message("a")
        await websocket.get_message()
        os.killpg(served.process.pid, number)
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012
        assert await served.ends(within_s=5) == 0
        assert "Traceback" not in served.log.read_text()


async def test_a_request_that_does_not_end_is_cut_after_the_drain_time(tmp_path: Path) -> None:
    async with running(tmp_path) as served, asked(served, "/slow"):
        began = trio.current_time()
        served.process.terminate()
        with trio.fail_after(5):
            while True:
                try:
                    await served.answers()
                except OSError:
                    break  # who comes now is refused at once
                except (trio.BrokenResourceError, ValueError):
                    pass  # who came a moment ago is cut
        assert await served.ends(within_s=DRAIN_S + 4) == 0
        assert trio.current_time() - began >= DRAIN_S


async def test_a_second_signal_cuts_the_drain_short(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=30) as served, asked(served, "/slow"):
        served.process.terminate()
        await trio.sleep(0.2)
        served.process.send_signal(signal.SIGHUP)  # is not meant to hurry
        await trio.sleep(0.2)
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGINT)
        assert await served.ends(within_s=5) == 0


async def test_a_killed_supervisor_takes_its_workers_along(tmp_path: Path) -> None:
    async with running(tmp_path) as served:
        workers = served.workers
        served.process.kill()
        await until(lambda: not any(map(is_running, workers)), within_s=DRAIN_S + 4)


# -- SIGHUP ------------------------------------------------------------------------------------


async def test_sighup_replaces_all_workers_and_no_request_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as served:
        before, answered = served.workers, 0

        async def keep_asking() -> None:
            nonlocal answered
            while True:
                await served.answers()
                answered += 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(keep_asking)
            served.process.send_signal(signal.SIGHUP)
            await until(lambda: not served.workers & before, within_s=10)
            nursery.cancel_scope.cancel("all are replaced")
        assert len(served.workers) == 2
        assert answered > 100
        report(f"{answered} requests, none refused")


async def test_sighup_takes_up_a_renewed_certificate_and_refuses_a_bad_one(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path).write()
    files = certificates.server

    async def shown(port: int) -> bytes | None:
        async with await certificates.connect(port) as stream:
            return cast("bytes", stream.getpeercert(binary_form=True))

    async with running(
        tmp_path, tls_certificate=files.tls_certificate, tls_key=files.tls_key
    ) as served:
        first = await shown(served.port)
        certificates.spoil_key()
        served.process.send_signal(signal.SIGHUP)
        await until(lambda: "replacement_failed" in served.log.read_text(), within_s=20)
        assert "server.tls_key" in served.log.read_text()
        assert await shown(served.port) == first
        certificates.write()
        served.process.send_signal(signal.SIGHUP)
        with trio.fail_after(20):
            while await shown(served.port) == first:  # noqa: ASYNC110  another process
                await trio.sleep(0.05)


async def test_a_worker_may_ask_for_one_slot_s_renewal_and_who_is_in_it_is_drained_once(
    tmp_path: Path,
) -> None:
    """Asked three times at once, the other slot's worker stays, and no request is refused."""
    async with running(tmp_path, workers=2, drain_s=3) as served:
        before = served.workers
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(served.answers, "/renew")
        await until(
            lambda: len(served.workers) == 2 and len(served.workers & before) == 1, within_s=10
        )
        assert await served.answers() in served.workers
        assert "worker_ended_badly" not in served.log.read_text()


async def test_a_worker_that_dies_while_it_is_replaced_gets_one_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(monkeypatch) as log:
        (old,) = log.workers()
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(log.workers()) == 2)
        os.kill(old, signal.SIGKILL)
        await until(lambda: "workers_replaced" in log.events())
        assert "worker_died" in log.events()
        await trio.sleep(0.5)  # a second successor would have started by now
        assert len(log.workers()) == 1


# -- workers that cannot start -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("fail:no essays today", "no essays today"),
        ("exit", "a worker ended with code 7 before it was ready; what it wrote stands above"),
        ("hang", "a worker was not ready after 1 s"),
    ],
)
async def test_a_worker_that_cannot_start_is_one_line_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, how: str, line: str
) -> None:
    monkeypatch.setenv("TINY_APP", how)
    monkeypatch.setattr(supervisor, "START_S_MAX", 1.0 if how == "hang" else 30.0)
    with refused(line), trio.fail_after(10):
        async with inside(monkeypatch, workers=2 if how.startswith("fail") else 1):
            raise AssertionError("it started")


async def test_a_signal_is_heard_while_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_APP", "hang")
    before = children_of(os.getpid())
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_here, monkeypatch, 2, lambda url: None))
            await until(lambda: len(children_of(os.getpid()) - before) == 2)
            os.kill(os.getpid(), signal.SIGTERM)
    assert children_of(os.getpid()) == before


async def test_a_slot_that_cannot_be_filled_again_is_tried_a_few_times_and_then_on_sighup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "STARTS_MAX", 3)
    monkeypatch.setattr(supervisor, "PAUSE_S", (0.01, 0.02))
    async with inside(monkeypatch) as log:
        monkeypatch.setenv("TINY_APP", "fail:no more")
        (worker,) = log.workers()
        os.kill(worker, signal.SIGKILL)
        await until(lambda: "slot_stays_empty" in log.events(), within_s=10)
        assert log.events().count("worker_not_started") == 3
        assert [entry["again_s"] for entry in log.of("worker_not_started")] == [0.01, 0.02, 0.02]
        assert {entry["reason"] for entry in log.of("worker_not_started")} == {"no more"}
        assert not log.workers()
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "replacement_failed" in log.events())
        monkeypatch.delenv("TINY_APP")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "workers_replaced" in log.events())
        assert len(log.workers()) == 1


# -- the address -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "line"),
    [
        ("192.0.2.1:0", "server.bind: 192.0.2.1:0: cannot listen there: Cannot assign"),
        ("no.such.host.invalid:0", "server.bind: no.such.host.invalid:0: cannot listen there: "),
        ("ü..x:0", "not the name of a host"),
    ],
)
def test_an_address_that_is_not_ours_is_one_line(bind: str, line: str) -> None:
    with refused(line), supervisor.open_listener(config.Server(bind=bind)):
        raise AssertionError("it listens")


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        line = f"server.bind: {bind}: the port is in use: stop what listens there"
        with refused(line), supervisor.open_listener(config.Server(bind=bind)):
            raise AssertionError("it listens")


def test_an_address_of_ip_version_6() -> None:
    with supervisor.open_listener(config.Server(bind="[::1]:0")) as listener:
        assert supervisor._address(listener) == f"[::1]:{listener.getsockname()[1]}"


# -- helpers -----------------------------------------------------------------------------------


class Log:
    """In place of the supervisor's logger: what it said."""

    def __init__(self, before: set[int]) -> None:
        self._before = before
        self._entries: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self._entries.append((event, fields))

    def events(self) -> list[str]:
        return [event for event, _ in self._entries]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self._entries if name == event]

    def workers(self) -> set[int]:
        return children_of(os.getpid()) - self._before


@asynccontextmanager
async def inside(monkeypatch: pytest.MonkeyPatch, *, workers: int = 1) -> AsyncIterator[Log]:
    """A supervisor in this process, ended by SIGTERM; gives what it logs."""
    log, ready = Log(children_of(os.getpid())), trio.Event()
    monkeypatch.setattr(supervisor, "log", log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_here, monkeypatch, workers, lambda url: ready.set())
        await ready.wait()
        yield log
        os.kill(os.getpid(), signal.SIGTERM)
    assert not log.workers()


async def serve_here(monkeypatch: pytest.MonkeyPatch, workers: int, on_ready: Any) -> None:
    monkeypatch.setenv("COACH_SERVER__DRAIN_S", f"{DRAIN_S}")
    server = config.Server(bind="127.0.0.1:0", workers=workers, drain_s=DRAIN_S)
    settings = config.Settings(server=server, redis=config.Redis(url=NO_REDIS))
    await supervisor.supervise(settings, application=TINY, on_ready=on_ready)


@contextmanager
def refused(line: str) -> Iterator[None]:
    """The block raises ConfigurationError with one line that begins so, and leaves no process."""
    before = children_of(os.getpid())
    with pytest.raises((ConfigurationError, ExceptionGroup)) as caught:
        yield
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, ConfigurationError)
    assert line in str(error)
    assert "\n" not in str(error)
    assert children_of(os.getpid()) == before


@asynccontextmanager
async def asked(served: Running, path: str) -> AsyncIterator[None]:
    """A request is under way while the block runs; how it ends is not looked at."""
    async with await trio.open_tcp_stream("127.0.0.1", served.port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await trio.sleep(0.1)
        yield


def report(text: str) -> None:
    """For `pytest -s`: the figures behind a pass."""
    print(text)  # noqa: T201


def test_workers_that_die_soon_are_started_with_growing_pauses() -> None:
    slot = supervisor._Slot("0")
    first, most = supervisor.PAUSE_S
    pauses = [slot.pause_after(1.0) for _ in range(12)]
    assert pauses[:3] == [first, 2 * first, 4 * first]
    assert pauses == sorted(pauses)
    assert pauses[-1] == most
    assert slot.pause_after(supervisor.SHORT_LIFE_S) == 0.0
    assert slot.pause_after(1.0) == first
