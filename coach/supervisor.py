"""`coach serve`: one listening socket, N worker processes on it, and their replacement.

The supervisor opens the socket once and serves nobody itself. Each slot holds one worker:

    starting --ready--> serving --dies--> starting …        kill -9 costs its own connections only
    serving --SIGHUP--> a new one starts; once it is ready the old one drains
    a worker asks (control.py) --> as SIGHUP, or for one slot alone
    SIGTERM, SIGINT --> all drain, for at most `server.drain_s`; a second signal cuts that short

A worker that cannot start says why in one line, which is the operator's to mend: at the start that
ends the supervisor, later it is tried again a few times, with growing pauses.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, final

import attrs
import structlog
import trio
from prometheus_client.multiprocess import mark_process_dead

from . import config, control
from .child import Process, exited, how_it_ended, start_child, stop_child
from .errors import ConfigurationError
from .ops import log as logging
from .store import share_embedded
from .worker import READY

APPLICATION: Final = "coach.app:app"
START_S_MAX: Final = 30.0
"""From a worker's start until it says that it is ready."""
STARTS_MAX: Final = 8
"""Starts in a row that may fail in one slot, before it stays empty until SIGHUP."""
PAUSE_S: Final = (0.1, 5.0)
"""Before the second start in a row, and at most; each pause doubles the one before."""
SHORT_LIFE_S: Final = 5.0
"""A worker that dies sooner after it was ready may have a reason that its successor has too."""
KILL_MARGIN_S: Final = 1.0
"""Beyond `server.drain_s` from SIGTERM to SIGKILL."""
_LINE_BYTES_MAX: Final = 4_096

log = structlog.get_logger()


async def supervise(
    settings: config.Settings,
    *,
    application: str = APPLICATION,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when every worker has ended.

    Args:
      settings: bind, workers, drain time; the workers read their own from the environment.
      application: what the workers serve, as `module:name`.
      on_ready: called with the address once all workers accept connections.

    Raises:
      ConfigurationError: the address cannot be had, or a worker cannot start; no worker is left.
    """
    logging.configure(settings.log)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(open_listener(settings.server))
            if settings.redis.url is None:
                await stack.enter_async_context(share_embedded(settings.data_path))
            metrics_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-")))
            asking, inherited = stack.enter_context(control.open_control())
            supervisor = await stack.enter_async_context(
                _open_supervisor(settings.server, application, listener, metrics_dir, inherited)
            )
            if not await supervisor.start(signals):
                return
            supervisor.listen(asking)
            on_ready(f"{settings.server.scheme}://{_address(listener)}")
            async for number in signals:
                if number == signal.SIGHUP:
                    supervisor.replace_all()
                else:
                    break
            listener.close()  # who connects now is refused at once, and another coach may listen
            await supervisor.stop(signals)


@contextmanager
def open_listener(server: config.Server) -> Iterator[socket.socket]:
    """The listening socket, inheritable.

    Raises:
      ConfigurationError: the address is in use or not ours; one line that says what to do.
    """
    host, port = server.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(server.backlog)
        except (OSError, TypeError) as error:
            raise ConfigurationError(f"server.bind: {server.bind}: {_advice(error)}") from error
        listener.set_inheritable(True)
        yield listener


def _advice(error: OSError | TypeError) -> str:
    if isinstance(error, TypeError):  # Python's own check, before it asks anybody
        return "not the name of a host"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use: stop what listens there, or choose another port"
    if error.errno == errno.EACCES:
        return "not allowed to listen there: choose a port above 1023"
    return f"cannot listen there: {error.strerror or error}"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@attrs.define(eq=False)
class _Slot:
    """The place of one worker."""

    name: str
    worker: Process | None = None
    """The one that serves; None while none does."""
    short_lives: int = 0
    """Workers in a row that were ready and died soon."""
    changing: trio.Lock = attrs.field(factory=trio.Lock)
    """Held while a worker starts: one at a time in each slot."""

    def pause_after(self, lived_s: float) -> float:
        """Seconds until a worker's successor is started: longer if they die soon, one by one."""
        if lived_s >= SHORT_LIFE_S:
            self.short_lives = 0
            return 0.0
        self.short_lives += 1
        return min(PAUSE_S[0] * 2.0 ** (self.short_lives - 1), PAUSE_S[1])


class _NotStarted(Exception):
    """A worker ended, or said why it cannot serve, before it was ready; `str` is one line."""


@asynccontextmanager
async def _open_supervisor(
    server: config.Server,
    application: str,
    listener: socket.socket,
    metrics_dir: Path,
    control_fd: int,
) -> AsyncIterator[_Supervisor]:
    """Without workers; leaving the block ends at once what has been started and is left."""
    async with trio.open_nursery() as nursery:
        supervisor = _Supervisor(server, application, listener, metrics_dir, control_fd, nursery)
        try:
            yield supervisor
        finally:
            nursery.cancel_scope.cancel("the supervisor ends")
            supervisor.kill_all()


@final
class _Supervisor:
    def __init__(
        self,
        server: config.Server,
        application: str,
        listener: socket.socket,
        metrics_dir: Path,
        control_fd: int,
        nursery: trio.Nursery,
    ) -> None:
        self._drain_s = server.drain_s
        self._application = application
        self._listener = listener
        self._metrics_dir = metrics_dir
        self._control_fd = control_fd
        self._nursery = nursery
        self._slots = [_Slot(f"{index}") for index in range(server.workers)]
        self._processes: set[Process] = set()  # every child that has not been waited for
        self._retired: set[Process] = set()  # of those: they drain, and were told so once
        self._stopping = trio.Event()
        self._replacing = False

    # -- start and end ---------------------------------------------------------------------------

    async def start(self, signals: AsyncIterator[int]) -> bool:
        """Start every slot's first worker; False when SIGTERM or SIGINT came before all are ready.

        Raises:
          ConfigurationError: one of them cannot start.
        """
        failures: list[_NotStarted] = []

        async def first(slot: _Slot) -> None:
            try:
                await self._fill(slot, instead_of=None)
            except _NotStarted as error:
                failures.append(error)
                starting.cancel_scope.cancel("one worker cannot start")

        is_asked_to_stop = True
        async with trio.open_nursery() as watching:
            watching.start_soon(self._cancel_on_signal, signals, watching.cancel_scope)
            async with trio.open_nursery() as starting:
                for slot in self._slots:
                    starting.start_soon(first, slot)
            is_asked_to_stop = False
            watching.cancel_scope.cancel("the workers have started, or one cannot")
        if failures:
            raise ConfigurationError(str(failures[0])) from failures[0]
        return not is_asked_to_stop

    async def stop(self, signals: AsyncIterator[int]) -> None:
        """Drain all workers; at most `drain_s`, or until another SIGTERM or SIGINT comes."""
        self._stopping.set()
        for process in self._processes:
            process.terminate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_signal, signals, nursery.cancel_scope)
            with trio.move_on_after(self._drain_s + KILL_MARGIN_S):
                for process in list(self._processes):
                    await exited(process)
            nursery.cancel_scope.cancel("all workers have ended")
        left = [process.pid for process in self._processes if process.poll() is None]
        if left:
            log.warning("workers_killed", pids=left, drain_s=self._drain_s)

    async def _cancel_on_signal(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                scope.cancel("asked to stop")

    def kill_all(self) -> None:
        """End what is left, without ceremony."""
        for process in self._processes:
            process.kill()
            process.wait()

    # -- replacement -------------------------------------------------------------------------------

    def replace_all(self) -> None:
        """Give every slot a new worker, one slot after the other."""
        if not self._replacing:
            self._replacing = True
            self._nursery.start_soon(self._replace_all)

    def listen(self, fd: int) -> None:
        """Do what workers ask for down the pipe that this is the other end of."""
        self._nursery.start_soon(self._listen, fd)

    async def _listen(self, fd: int) -> None:
        slots = {slot.name: slot for slot in self._slots}
        async for line in control.asked(fd):
            log.info("asked", what=line)
            if line == "renew":
                self.replace_all()
            elif (slot := slots.get(line.removeprefix("renew "))) is not None:
                self._nursery.start_soon(self._replace, slot)

    async def _replace_all(self) -> None:
        for slot in self._slots:
            if not await self._replace(slot):
                break
        else:
            log.info("workers_replaced", count=len(self._slots))
        self._replacing = False

    async def _replace(self, slot: _Slot) -> bool:
        """Start a worker in another one's place, which then drains; False: it could not start."""
        old = slot.worker
        try:
            await self._fill(slot, instead_of=old)
        except _NotStarted as error:
            log.error("replacement_failed", slot=slot.name, reason=str(error))
            return False
        if old is not None and old not in self._retired:
            self._retired.add(old)
            self._nursery.start_soon(self._retire, old)
        return True

    async def _retire(self, process: Process) -> None:
        """Drain a worker that was replaced, for as long as at the end of all."""
        await stop_child(process, within_s=self._drain_s + KILL_MARGIN_S)
        self._retired.discard(process)

    async def _watch(self, slot: _Slot, process: Process) -> None:
        """Wait for a worker's end; fill its slot again if it was not meant to end."""
        began_at = trio.current_time()
        code = await exited(process)
        self._buried(process)
        if self._stopping.is_set() or slot.worker is not process:
            if code != 0:
                log.warning("worker_ended_badly", slot=slot.name, how=how_it_ended(code))
            return
        slot.worker = None
        log.error("worker_died", slot=slot.name, pid=process.pid, how=how_it_ended(code))
        await trio.sleep(slot.pause_after(trio.current_time() - began_at))
        await self._fill_again(slot)

    async def _fill_again(self, slot: _Slot) -> None:
        pause_s = PAUSE_S[0]
        for _ in range(STARTS_MAX):
            try:
                await self._fill(slot, instead_of=None)
            except _NotStarted as error:
                log.error("worker_not_started", slot=slot.name, reason=str(error), again_s=pause_s)
            else:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S[1])
        log.critical("slot_stays_empty", slot=slot.name, advice="mend it, then send SIGHUP")

    async def _fill(self, slot: _Slot, *, instead_of: Process | None) -> None:
        """Start a worker and, once it is ready, make it the slot's own.

        Nothing is done where somebody else has filled the slot meanwhile: a worker may die while
        the one that replaces it starts.

        Raises:
          _NotStarted: it is not ready, and gone. The slot is as it was.
        """
        async with slot.changing:
            if slot.worker is not instead_of:
                return
            slot.worker = process = await self._start_worker(slot)
        self._nursery.start_soon(self._watch, slot, process)

    async def _start_worker(self, slot: _Slot) -> Process:
        if self._stopping.is_set():
            await trio.sleep_forever()  # the nursery is about to be cancelled
        fd = self._listener.fileno()
        read_fd, write_fd = os.pipe()
        try:
            command = [sys.executable, "-m", "coach", "worker", "--app", self._application]
            process = start_child(
                [*command, "--fd", f"{fd}", "--ready-fd", f"{write_fd}"],
                environ={
                    **os.environ,
                    "COACH_WORKER": slot.name,
                    control.VARIABLE: f"{self._control_fd}",
                    "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir),
                },
                pass_fds=(fd, write_fd, self._control_fd),
            )
            self._processes.add(process)
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        said = b""
        try:
            with trio.move_on_after(START_S_MAX):
                said = await _line(read_fd)
        finally:
            os.close(read_fd)
            if said != READY:
                await stop_child(process, within_s=KILL_MARGIN_S)  # noqa: ASYNC102  shielded inside
                self._buried(process)
        if said == READY:
            return process
        if self._stopping.is_set():
            await trio.sleep_forever()
        raise _NotStarted(_why(said, process))

    def _buried(self, process: Process) -> None:
        self._processes.discard(process)
        mark_process_dead(process.pid, str(self._metrics_dir))  # type: ignore[no-untyped-call]


def _why(said: bytes, process: Process) -> str:
    if said:
        return said.decode(errors="replace").strip()
    code = process.returncode
    if code == -signal.SIGTERM:
        return f"a worker was not ready after {START_S_MAX:g} s"
    return f"a worker {how_it_ended(code)} before it was ready; what it wrote stands above"


async def _line(fd: int) -> bytes:
    """What a pipe brings up to the first line feed or its end; nothing if that is its end."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        await trio.lowlevel.wait_readable(fd)
        data = os.read(fd, _LINE_BYTES_MAX)
        if not data:
            break
        line += data
    return line
