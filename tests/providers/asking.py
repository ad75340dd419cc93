"""What tests of all providers ask with: a sink that notes everything, and scripts for a peer."""

from __future__ import annotations

import attrs
import pytest
import trio

from coach import config
from coach.providers import Prompt, ProviderError, Usage, open_provider

from .peer import Exchange, Peer, Script, open_pool_to


@attrs.define
class Student:
    """A sink that notes everything."""

    starts: list[tuple[str, Usage]] = attrs.field(factory=list)
    texts: list[str] = attrs.field(factory=list)
    raises: bool = False

    def on_start(self, model: str, usage: Usage) -> None:
        self.starts.append((model, usage))

    def on_delta(self, text: str) -> None:
        assert text
        self.texts.append(text)
        if self.raises:
            raise ZeroDivisionError


def streams(*parts: bytes, whole: bool = True) -> Script:
    """A script: 200, then these parts, each in a wake-up of its own."""

    async def script(exchange: Exchange) -> None:
        await exchange.whole.wait()
        await exchange.head(200, ("content-type", "text/event-stream"), ("x-left", "7"))
        for part in parts:
            await exchange.data(part)
            await trio.sleep(0.01)
        if whole:
            await exchange.data(b"", end=True)
        else:
            await trio.sleep_forever()

    return script


def answers(status: int, body: bytes, *headers: tuple[str, str]) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.whole.wait()
        await exchange.head(status, *headers)
        await exchange.data(body, end=True)

    return script


async def failure_of(
    settings: config.Provider, prompt: Prompt, peer: Peer
) -> tuple[ProviderError, Student]:
    """Ask for a stream that must fail; nothing may be left of it."""
    student = Student()
    async with open_pool_to(peer) as pool:
        with pytest.raises(ProviderError) as caught:
            await open_provider(settings, pool).stream(prompt, student)
        assert pool.statistics().streams == 0
    assert caught.value.provider == settings.name
    return caught.value, student
