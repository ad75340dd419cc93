"""A model server on this machine, asked in the clear: real sockets, HTTP/1.1."""

from __future__ import annotations

from functools import partial

import httpx
import pytest
import trio

from coach import config
from coach.errors import ConfigurationError
from coach.providers import open_pool
from coach.providers.exchange import Origin
from coach.providers.pool import origin_of

pytestmark = pytest.mark.real_time

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


async def serve(heard: list[bytes], stream: trio.SocketStream) -> None:
    """Answers every request of a connection."""
    data = b""
    async for chunk in stream:
        data += chunk
        while b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            heard.append(head)
            await stream.send_all(ANSWER)


async def test_it_is_asked_again_and_again_on_kept_connections() -> None:
    heard: list[bytes] = []
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(serve, heard), 0))
        port = listeners[0].socket.getsockname()[1]
        provider = config.Provider(
            name="local",
            kind="openai-compatible",
            base_url=f"http://127.0.0.1:{port}/v1",
            model="m",
            api_key="k",
        )
        async with (
            open_pool(config.Settings(provider=(provider,))) as pool,
            httpx.AsyncClient(transport=pool) as client,
        ):
            for _ in range(3):
                response = await client.get(f"http://127.0.0.1:{port}/v1/models")
                assert response.text == "hello"
            assert pool.statistics().handshakes <= 2  # one is made ahead of need
        nursery.cancel_scope.cancel()
    assert len(heard) == 3
    assert f"host: 127.0.0.1:{port}".encode() in heard[0].lower()


def test_where_an_address_leads() -> None:
    assert origin_of("http://localhost/v1") == Origin("localhost", 80, secure=False)
    assert origin_of("https://api.example.org") == Origin("api.example.org", 443)
    assert Origin("::1", 8080, secure=False).authority == "[::1]:8080"
    assert Origin("localhost", 80, secure=False).authority == "localhost"


@pytest.mark.parametrize(
    "url", ["http://api.example.org", "http://10.0.0.1:8080", "ftp://localhost"]
)
def test_nothing_leaves_the_machine_in_the_clear(url: str) -> None:
    provider = f'[{{"name":"a","base_url":"{url}","model":"m","api_key":"k"}}]'
    with pytest.raises(ConfigurationError, match="for a server on this machine"):
        config.load(None, {"COACH_PROVIDER": provider})
