"""A worker that may open 256 files, and 500 clients that want in: nobody inside notices."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.support.stack import Stack, descriptors_of, open_stack

pytestmark = pytest.mark.real_time

CLIENTS = 500
FILES = 256
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def test_nobody_inside_notices_that_a_worker_is_full(tmp_path: Path) -> None:
    """Each feedback opens a connection to the provider of its own: descriptors must be left."""
    async with open_stack(
        tmp_path,
        grader=False,
        simulator=("--ttft-ms", "20", "--events-per-s", "1000"),
        settings="hello_s_max = 30\n[rollout]\npool = 0",
        files_max=FILES,
    ) as stack:
        async with stack.student() as inside, AsyncExitStack() as sockets:
            answers: Counter[bytes] = Counter()
            (worker,) = stack.workers()
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(knock, stack, sockets, answers)
                for turn in range(5):
                    await inside.ask(f"during-{turn}")
                    with trio.fail_after(20):
                        assert (await inside.until("done", "error"))["type"] == "done"
            assert answers.total() == CLIENTS
            assert set(answers) <= {b"101", b"503", b""}
            assert answers[b"101"] > 50
            assert answers[b"503"] > 20
            assert descriptors_of(worker) < FILES - 20
            await inside.ask("after")
            with trio.fail_after(20):
                assert (await inside.until("done", "error"))["type"] == "done"
            assert await knock(stack, sockets, answers) == b"503"
        async with AsyncExitStack() as sockets:
            with trio.fail_after(20):  # the places are free again when the worker has noticed
                while await knock(stack, sockets, answers) != b"101":  # noqa: ASYNC110
                    await trio.sleep(0.05)
        assert stack.workers() == {worker}
        assert "Traceback" not in stack.log()
        assert "Too many open files" not in stack.log()


async def knock(stack: Stack, sockets: AsyncExitStack, answers: Counter[bytes]) -> bytes:
    """Ask for a WebSocket and stay; the status, or nothing where the connection just ended."""
    host, _, port = stack.url.removeprefix("http://").partition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    status = b""
    try:
        await stream.send_all(UPGRADE)
        with trio.fail_after(20):
            head = await stream.receive_some()
        status = head[9:12]
        assert status != b"503" or b"\r\nretry-after: 2\r\n" in head
    except trio.BrokenResourceError:
        pass
    finally:
        if status == b"101":
            sockets.push_async_callback(stream.aclose)
        else:
            await stream.aclose()
    answers[status] += 1
    return bytes(status)
