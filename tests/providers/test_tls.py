"""The pool on real sockets and real TLS, as `open_pool` makes it from the settings."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import httpx
import msgspec
import pytest
import trio
import trustme

from coach import config
from coach.errors import ConfigurationError
from coach.providers import Pool, ProviderError, open_pool, open_provider

from .asking import Student, streams
from .peer import Exchange, Peer, serve_tls
from .test_anthropic import CANCEL, PROMPT, START, delta, end

pytestmark = pytest.mark.real_time


@attrs.frozen
class World:
    """A provider on a socket, and the pool that trusts it."""

    settings: config.Settings
    pool: Pool
    url: str


@asynccontextmanager
async def open_world(
    peer: Peer, tmp_path: Path, *, trusted: bool = True, protocols: Sequence[str] = ("h2",)
) -> AsyncIterator[World]:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(list(protocols))
    ca_file = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(ca_file))
    async with serve_tls(peer, context) as port:
        provider = config.Provider(
            name="claude",
            base_url=f"https://127.0.0.1:{port}/proxy/",
            model="m",
            api_key="k",
            ca_file=str(ca_file),
        )
        settings = config.Settings(provider=(provider,))
        async with open_pool(settings) as pool:
            yield World(settings, pool, provider.base_url)


async def test_answers_are_streamed_to_many_at_once(tmp_path: Path) -> None:
    paths: set[bytes] = set()
    words = [f"{number} " for number in range(30)]

    async def script(exchange: Exchange) -> None:
        paths.add(exchange.headers[b":path"])
        await streams(START, *map(delta, words), end())(exchange)

    peer = Peer(script, streams_max=20)
    students = [Student() for _ in range(60)]
    async with open_world(peer, tmp_path) as world, trio.open_nursery() as nursery:
        endpoint = open_provider(world.settings.provider[0], world.pool)
        for student in students:
            nursery.start_soon(endpoint.stream, PROMPT, student)
    assert all("".join(student.texts) == "".join(words) for student in students)
    assert peer.resets == []
    assert paths == {b"/proxy/v1/messages"}
    assert peer.streams_peak == 20


async def test_whoever_hangs_up_is_heard_by_the_provider_at_once(tmp_path: Path) -> None:
    peer = Peer(streams(START, delta("We"), whole=False))
    async with open_world(peer, tmp_path) as world, trio.open_nursery() as nursery:
        endpoint = open_provider(world.settings.provider[0], world.pool)
        students = [Student() for _ in range(40)]
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as turns:
                for student in students:
                    turns.start_soon(endpoint.stream, PROMPT, student)

                async def hang_up() -> None:
                    while not all(student.texts for student in students):  # noqa: ASYNC110
                        await trio.sleep(0.005)
                    scope.cancel()

                turns.start_soon(hang_up)
        assert world.pool.statistics().streams == 0
        with trio.fail_after(1):
            while peer.streams_open:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert peer.resets == [CANCEL] * 40
        nursery.cancel_scope.cancel()


async def test_large_bodies_pass_both_ways(tmp_path: Path) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.whole.wait()
        await exchange.head()
        await exchange.data(bytes(exchange.body), end=True)

    body = bytes(range(256)) * 8192
    async with (
        open_world(Peer(echo), tmp_path) as world,
        httpx.AsyncClient(transport=world.pool) as client,
    ):
        assert (await client.post(world.url, content=body)).content == body


async def why_nothing_comes(settings: config.Provider, pool: Pool) -> str:
    with pytest.raises(ProviderError) as caught:
        await open_provider(settings, pool).stream(PROMPT, Student())
    assert caught.value.kind == "unreachable"
    return str(caught.value)


def provider_at(port: int) -> config.Provider:
    url = f"https://127.0.0.1:{port}"
    return config.Provider(name="claude", base_url=url, model="m", api_key="k")


async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    async with open_world(Peer(streams()), tmp_path, trusted=False) as world:
        reason = await why_nothing_comes(world.settings.provider[0], world.pool)
        assert "its certificate is not accepted: unable to get local issuer" in reason


async def test_a_certificate_for_another_host_is_told(tmp_path: Path) -> None:
    async with open_world(Peer(streams()), tmp_path) as world:
        (trusting,) = world.settings.provider
        settings = msgspec.structs.replace(
            trusting, base_url=trusting.base_url.replace("127.0.0.1", "localhost")
        )
        async with open_pool(config.Settings(provider=(settings,))) as pool:
            reason = await why_nothing_comes(settings, pool)
        assert "its certificate is not accepted: Hostname mismatch" in reason


async def test_that_nobody_is_there_is_told() -> None:
    async with open_pool(config.Settings()) as pool:
        assert "127.0.0.1" in await why_nothing_comes(provider_at(9), pool)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there does not speak TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "it refused the TLS handshake: .*protocol version"),
        (b"", "the connection ended in the TLS handshake"),
    ],
    ids=["no TLS", "alert", "hung up"],
)
async def test_a_handshake_that_fails_is_told_in_words(answer: bytes, expected: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        await stream.send_all(answer)
        await stream.send_eof()
        await stream.receive_some(1)

    async with trio.open_nursery() as nursery, open_pool(config.Settings()) as pool:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        assert re.search(expected, await why_nothing_comes(provider_at(port), pool))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("content", [None, "not a certificate"])
async def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    provider = config.Provider(
        name="claude",
        base_url="https://provider.test",
        model="m",
        api_key="k",
        ca_file=str(ca_file),
    )
    with pytest.raises(ConfigurationError, match=r"provider claude.*ca\.pem"):
        async with open_pool(config.Settings(provider=(provider,))):
            pass
