"""Students who connect, say hello and are silent: thousands in one process, none of them a task.

Sockets and epoll, so that of the machine's CPU as much as possible is the server's. No student
sends anything of itself after `hello`; pings are answered.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from relay_clients import masked_frame

WAIT_S_MAX: Final = 60.0
"""For the last of a crowd."""
FILES_BESIDE: Final = 64
_TEXT, _PING, _PONG, _CLOSE = 0x1, 0x9, 0xA, 0x8


class Student:
    """One connection."""

    __slots__ = ("began_s", "greeted_s", "is_open", "ponged", "socket", "token", "unread")

    def __init__(self, address: tuple[str, int], token: str) -> None:
        """Begin to connect."""
        self.token = token
        self.unread = b""
        self.began_s = time.monotonic()
        self.greeted_s = 0.0  # when it had its welcome
        self.is_open = False  # the upgrade was granted
        self.ponged = False
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)


class Crowd:
    """All students."""

    def __init__(self, address: tuple[str, int], tokens: Sequence[str]) -> None:
        """Nobody has come yet; each of `tokens` is for one student."""
        _allow_files(len(tokens))
        self._address = address
        self._tokens = deque(tokens)
        self._selector = selectors.EpollSelector()
        self.students: list[Student] = []
        self.lost: dict[str, int] = {}
        """Connections that have ended, by reason."""

    def come(self, count: int, *, at_once: int) -> list[Student]:
        """Let `count` more come, `at_once` of them on their way at a time; until all are greeted.

        Those who are not greeted after `WAIT_S_MAX` are missing in what is returned.
        """
        coming: list[Student] = []
        greeted = 0
        lost_before = sum(self.lost.values())
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            ended = sum(self.lost.values()) - lost_before
            while len(coming) < count and len(coming) - greeted - ended < at_once:
                coming.append(self._begin())
            if greeted + ended == count:
                break
            greeted += self._turn()
        return [student for student in coming if student.greeted_s]

    def stay(self, seconds: float) -> None:
        """Answer what has to be answered for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._turn()

    def alive(self) -> int:
        """How many answer a ping of theirs within `WAIT_S_MAX`."""
        for student in self.students:
            student.ponged = False
            self._send(student, masked_frame(0x80 | _PING, b"alive?"))
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            if all(student.ponged for student in self.students):
                break
            self._turn()
        return sum(student.ponged for student in self.students)

    def leave(self) -> None:
        """Close all connections."""
        for student in self.students:
            student.socket.close()
        self._selector.close()

    # -- one connection --------------------------------------------------------------------------

    def _begin(self) -> Student:
        student = Student(self._address, self._tokens.popleft())
        self.students.append(student)
        self._selector.register(student.socket, selectors.EVENT_WRITE, student)
        return student

    def _turn(self) -> int:
        """One look at all sockets; returns how many were greeted."""
        greeted = 0
        for key, events in self._selector.select(0.05):
            student: Student = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    self._connected(student)
                else:
                    greeted += self._readable(student)
            except OSError as error:
                self._end(student, type(error).__name__)
        return greeted

    def _connected(self, student: Student) -> None:
        code = student.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        host, port = self._address
        key = base64.b64encode(os.urandom(16)).decode()
        student.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: coach.v1\r\n\r\n".encode()
        )
        self._selector.modify(student.socket, selectors.EVENT_READ, student)

    def _readable(self, student: Student) -> bool:
        """Whether this was its welcome."""
        data = student.socket.recv(65_536)
        if not data:
            raise ConnectionResetError("closed by the server")
        student.unread += data
        if not student.is_open:
            head, end, student.unread = student.unread.partition(b"\r\n\r\n")
            if not end:
                student.unread = head
                return False
            if b" 101 " not in head[:16]:
                self._end(student, head.partition(b"\r\n")[0].decode())
                return False
            student.is_open = True
            hello = json.dumps({"type": "hello", "token": student.token}).encode()
            self._send(student, masked_frame(0x80 | _TEXT, hello))
        was_greeted = student.greeted_s > 0
        while frame := _frame(student.unread):
            opcode, payload, student.unread = frame
            self._take(student, opcode, payload)
        return student.greeted_s > 0 and not was_greeted

    def _take(self, student: Student, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(student, masked_frame(0x80 | _PONG, payload))
        elif opcode == _PONG:
            student.ponged = True
        elif opcode == _CLOSE:
            self._end(student, f"close {int.from_bytes(payload[:2], 'big')}")
        elif b'"welcome"' in payload:
            student.greeted_s = time.monotonic()

    def _send(self, student: Student, data: bytes) -> None:
        try:
            student.socket.sendall(data)
        except OSError as error:
            self._end(student, type(error).__name__)

    def _end(self, student: Student, reason: str) -> None:
        if student.socket.fileno() >= 0:
            self._selector.unregister(student.socket)
            student.socket.close()
            self.students.remove(student)
            self.lost[reason] = self.lost.get(reason, 0) + 1


def _frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """The first frame's opcode and payload, and what follows; None while it is incomplete."""
    if len(data) < 2:
        return None
    size, start = data[1], 2
    if size == 126:
        size, start = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(data[2:10], "big"), 10
    if len(data) < start + size:
        return None
    return data[0] & 0xF, data[start : start + size], data[start + size :]


def _allow_files(count: int) -> None:
    """Raise the limit of open files to what `count` connections need.

    Raises:
      OSError: the machine does not allow it.
    """
    needed = count + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(f"{needed} files are needed and ulimit -Hn is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
