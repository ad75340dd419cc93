"""What a hostile or broken client gets: a typed error, the right close code, an unmoved server."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import jwt
import msgspec
import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
)
from wsproto.events import TextMessage
from wsproto.utilities import LocalProtocolError

from tests.support.stack import Stack, Student, open_stack, open_websocket, plain_client

pytestmark = pytest.mark.real_time


async def test_bad_input_is_answered_and_moves_nothing(tmp_path: Path) -> None:
    """One server for all cases at once; a well-behaved student is served as ever."""
    quick = ("--ttft-ms", "20", "--events-per-s", "1000")
    async with open_stack(
        tmp_path, grader=False, simulator=quick, settings="hello_s_max = 1.5"
    ) as stack:
        async with stack.student() as bystander:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for case in CASES:
                        nursery.start_soon(case, stack)
                    for rev in range(1, 10):
                        await still_served(bystander, rev)
            await still_served(bystander, 100)
        assert stack.supervisor.poll() is None
        assert "Traceback" not in stack.log()


async def still_served(student: Student, rev: int) -> None:
    await student.send(type="draft", draft="b", rev=rev, text="The sea was calm that day.")
    await student.send(type="feedback", request=f"b{rev}", draft="b")
    with trio.fail_after(10):
        done = await student.until("done", "error")
    assert done["type"] == "done", done


async def broken_json(stack: Stack) -> None:
    await answered_and_open(stack, '{"type": "edit", "dra')


async def unknown_type(stack: Stack) -> None:
    await answered_and_open(stack, '{"type": "shout"}')


async def wrong_field(stack: Stack) -> None:
    await answered_and_open(stack, '{"type": "draft", "draft": "d{x}", "rev": 1, "text": "t"}')


async def edit_out_of_range(stack: Stack) -> None:
    await answered_and_open(
        stack, '{"type": "edit", "draft": "d", "rev": 1, "splices": [[5, 1, "x"]]}'
    )


async def gap_in_edits(stack: Stack) -> None:
    await answered_and_open(
        stack, '{"type": "edit", "draft": "d", "rev": 9, "splices": []}', code="conflict"
    )


async def feedback_on_an_empty_draft(stack: Stack) -> None:
    await answered_and_open(stack, '{"type": "feedback", "request": "r", "draft": "d"}')


async def too_many_bad_messages(stack: Stack) -> None:
    async with stack.student() as student:
        for _ in range(17):
            await student.websocket.send_message("nonsense")
        assert await close_code(student.websocket) == 1008


async def oversize(stack: Stack) -> None:
    async with stack.student() as student:
        await student.websocket.send_message("x" * 2_000_000)
        error = await student.receive()
        assert (error["type"], error["code"], error["seq"]) == ("error", "too_large", 1)
        assert await close_code(student.websocket) == 1009


async def oversize_in_fragments(stack: Stack) -> None:
    async with stack.student() as student:
        with suppress(LocalProtocolError):  # the server has closed before the end
            for _ in range(40):
                await student.websocket._send(
                    TextMessage(data="x" * 10_000, message_finished=False)
                )
        assert (await student.receive())["code"] == "too_large"
        assert await close_code(student.websocket) == 1009


async def binary(stack: Stack) -> None:
    async with stack.student() as student:
        await student.websocket.send_message(b"\x00\x01")
        assert (await student.receive())["code"] == "bad_message"
        assert await close_code(student.websocket) == 1003


async def feedback_before_hello(stack: Stack) -> None:
    await refused(stack, {"type": "feedback", "request": "r", "draft": "d"})


async def expired_token(stack: Stack) -> None:
    secret = (stack.data_dir / "auth.secret").read_text()
    claims = {"sub": "ana", "org": "demo", "exp": time.time() - 60}
    await refused(stack, {"type": "hello", "token": jwt.encode(claims, secret, algorithm="HS256")})


async def forged_token(stack: Stack) -> None:
    claims = {"sub": "ana", "org": "demo", "exp": time.time() + 60}
    await refused(stack, {"type": "hello", "token": jwt.encode(claims, "x" * 32)})


async def no_hello(stack: Stack) -> None:
    async with open_websocket(stack.url) as websocket:
        error = msgspec.json.decode(await websocket.get_message())
        assert error["code"] == "unauthenticated"
        assert await close_code(websocket) == 1008


async def foreign_origin(stack: Stack) -> None:
    async with plain_client() as client:
        refused = await client.get(
            f"{stack.url}/ws",
            headers={
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version": "13",
                "Origin": "https://elsewhere.example",
            },
        )
    assert refused.status_code == 403


async def answered_and_open(stack: Stack, text: str, code: str = "bad_message") -> None:
    """The error names what is wrong, and the same connection goes on working."""
    async with stack.student() as student:
        await student.websocket.send_message(text)
        error = await student.receive()
        assert (error["type"], error["code"]) == ("error", code), error
        assert error["message"]
        await still_served(student, 1)


async def refused(stack: Stack, first: dict[str, object]) -> None:
    async with open_websocket(stack.url) as websocket:
        await websocket.send_message(msgspec.json.encode(first).decode())
        error = msgspec.json.decode(await websocket.get_message())
        assert (error["type"], error["code"]) == ("error", "unauthenticated"), error
        assert await close_code(websocket) == 1008


async def close_code(websocket: WebSocketConnection) -> int:
    """The code the server closes with; what it says before is skipped."""
    try:
        while True:
            await websocket.get_message()
    except ConnectionClosed as closed:
        return closed.reason.code if closed.reason is not None else 0


CASES = (
    broken_json,
    unknown_type,
    wrong_field,
    edit_out_of_range,
    gap_in_edits,
    feedback_on_an_empty_draft,
    too_many_bad_messages,
    oversize,
    oversize_in_fragments,
    binary,
    feedback_before_hello,
    expired_token,
    forged_token,
    no_hello,
    foreign_origin,
)
