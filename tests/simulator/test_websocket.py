"""The load generator's own WebSocket client: any chunking gives the same messages, and what a
server must not send ends the connection."""

from __future__ import annotations

import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from coach.simulator.websocket import (
    ABNORMAL,
    PROTOCOL_ERROR,
    Closed,
    HandshakeRefused,
    WebSocketClient,
    open_websocket,
)

TEXTS = ["", "hello", "é" * 100, "x" * 70_000]


def server_bytes(*texts: str) -> bytes:
    server = Connection(ConnectionType.SERVER)
    return b"".join(server.send(TextMessage(data=text)) for text in texts)


def client_of(*chunks: bytes) -> WebSocketClient:
    receiving = MemoryReceiveStream()
    for chunk in chunks:
        receiving.put_data(chunk)
    receiving.put_eof()
    return WebSocketClient(trio.StapledStream(MemorySendStream(), receiving), b"", None)


async def test_messages_of_every_size_come_whole() -> None:
    data = server_bytes(*TEXTS)
    for size in (1, 7, 1_000, len(data)):
        client = client_of(*(data[at : at + size] for at in range(0, len(data), size)))
        assert [(await client.receive()).decode() for _ in TEXTS] == TEXTS
        with pytest.raises(Closed) as closed:
            await client.receive()
        assert closed.value.code == ABNORMAL


async def test_a_server_understands_what_is_sent() -> None:
    """Masked, of every size; and a ping is answered with what it carried."""
    ours, theirs = memory_stream_pair()
    client = WebSocketClient(ours, b"", None)
    for text in TEXTS:
        await client.send(text.encode())
    server = Connection(ConnectionType.SERVER)
    await theirs.send_all(server.send(Ping(payload=b"there?")) + server_bytes("on"))
    assert await client.receive() == b"on"
    await client.close()
    await ours.aclose()

    heard, said = [], ""
    while data := await theirs.receive_some():
        server.receive_data(bytes(data))
        for event in server.events():
            if isinstance(event, TextMessage):
                said += event.data
                if event.message_finished:
                    heard.append(said)
                    said = ""
            elif isinstance(event, Pong):
                heard.append(bytes(event.payload).decode())
            elif isinstance(event, CloseConnection):
                heard.append(f"{event.code}")
    assert heard == [*TEXTS, "there?", "1000"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x88\x02" + struct.pack("!H", 1012), 1012),
        (b"\x88\x00", 1005),
        (b"\x01\x02no", PROTOCOL_ERROR),  # a fragment
        (b"\x82\x02no", PROTOCOL_ERROR),  # binary
        (b"\x81\x82aaaano", PROTOCOL_ERROR),  # masked
        (b"\x81\x7f" + struct.pack("!Q", 1 << 40), PROTOCOL_ERROR),
    ],
    ids=["close", "close without code", "fragment", "binary", "masked", "huge"],
)
async def test_a_close_and_what_no_server_may_send_end_it(data: bytes, code: int) -> None:
    client = client_of(data)
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == code
    with pytest.raises(Closed):
        await client.send(b"more")


@given(data=st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    async def receive_all() -> None:
        client = client_of(data)
        try:
            while True:
                await client.receive()
        except Closed:
            return

    trio.run(receive_all)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 No\r\n\r\n", b"", b"\r\n\r\n", b"x" * 20_000])
async def test_a_refused_upgrade_is_told(answer: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(answer)
    await theirs.send_eof()
    with pytest.raises(HandshakeRefused):
        await open_websocket(ours, host="h", path="/ws", subprotocol="coach.v1")


async def test_what_follows_the_upgrade_at_once_is_the_first_message() -> None:
    ours, theirs = memory_stream_pair()
    head = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Protocol: coach.v1\r\n\r\n"
    await theirs.send_all(head + server_bytes("welcome"))
    client = await open_websocket(ours, host="h", path="/ws", subprotocol="coach.v1")
    assert client.subprotocol == "coach.v1"
    assert await client.receive() == b"welcome"
