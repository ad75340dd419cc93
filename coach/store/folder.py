"""The folder an embedded server lives in: one owner at a time, and what lies there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self, final

from ..child import is_running
from ..errors import ConfigurationError

SOCKET_PATH_BYTES_MAX: Final = 100
"""sun_path holds 108 bytes on Linux, 104 elsewhere, with its end mark."""
LOG_BYTES_MAX: Final = 8 * 1024 * 1024
"""A longer log is set aside at the next start, as `valkey.log.1`."""


@final
class Folder:
    """Paths in a data folder. Nothing is touched before it is asked for."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir.absolute()
        self._url = self.path / "valkey.url"
        self._log = self.path / "valkey.log"
        self._socket = self.path / "valkey.sock"

    def prepare(self) -> Lock:
        """Make the folder and open its lock, which is not taken yet.

        Raises:
          ConfigurationError: the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / "valkey.url.new"
            probe.touch()
            probe.unlink()
            return Lock(self.path / "valkey.lock")
        except OSError as error:
            raise ConfigurationError(
                f"data_dir: cannot write to {self.path}: {error.strerror}"
            ) from error

    @contextmanager
    def socket_path(self) -> Iterator[Path]:
        """Where the server listens: here, or in a temporary folder when this path is too long."""
        if len(os.fsencode(self._socket)) <= SOCKET_PATH_BYTES_MAX:
            yield self._socket
            return
        folder = Path(tempfile.mkdtemp(prefix="coach-"))
        try:
            yield folder / "valkey.sock"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove what leads clients to a server that is gone. Only the owner may."""
        self._url.unlink(missing_ok=True)
        self._socket.unlink(missing_ok=True)

    def write_url(self, url: str) -> None:
        """Tell other processes where the server is."""
        scratch = self.path / "valkey.url.new"  # replaced at once, so nobody reads half a URL
        scratch.write_text(url, encoding="utf-8")
        scratch.replace(self._url)

    def read_url(self) -> str | None:
        """What the owner wrote, if it did."""
        try:
            return self._url.read_text(encoding="utf-8")
        except OSError:
            return None

    @contextmanager
    def open_log(self) -> Iterator[int]:
        """The descriptor that a server should write its log to."""
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.replace(self.path / "valkey.log.1")
        with self._log.open("ab") as log_file:
            yield log_file.fileno()

    def last_words(self) -> str:
        """The log's path and its last line, for an error message."""
        with self._log.open("rb") as log_file:
            log_file.seek(0, os.SEEK_END)
            log_file.seek(max(0, log_file.tell() - 4_096))
            lines = log_file.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return f"{self._log} says: {said[-1]:.200}" if said else f"see {self._log}"


@final
class Lock:
    """A lock file that names its owner; children that inherit it hold it too.

    So while the server of an owner that was killed is still dying, nobody can start a second one
    on the same append-only file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+", encoding="ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fileno(self) -> int:
        """The descriptor a child inherits."""
        return self._file.fileno()

    def acquire(self) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        return True

    def living_owner(self) -> int | None:
        """The process that took the lock, if it still runs."""
        self._file.seek(0)
        said = self._file.read(20)
        if not said.isdecimal():
            return None
        return int(said) if is_running(int(said)) else None
