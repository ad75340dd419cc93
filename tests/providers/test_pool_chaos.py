"""Many requests, impatient askers and a faulty provider: in the end nothing is left over."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest
import trio

from coach.providers.exchange import ReceiverFailed, StreamError
from coach.providers.pool import Pool

from .peer import Exchange, Peer, open_pool_to
from .test_pool import Notes, ask, request, until

REQUESTS = 300
FAULTS = ["refuse", "reset", "goaway", "disconnect", "silent"]


@attrs.define
class Chaos:
    """A provider at its worst, until it is calm."""

    rng: random.Random
    calm: bool = False

    async def script(self, exchange: Exchange) -> None:
        fault = self.rng.choice(FAULTS) if not self.calm and self.rng.random() < 0.2 else None
        if fault == "refuse":
            await exchange.reset(7)
            return
        if fault == "goaway":
            await exchange.connection.goaway(max(0, exchange.id - 2 * self.rng.randrange(2)))
        await exchange.whole.wait()
        await trio.sleep(self.rng.random())
        if fault == "silent":
            await trio.sleep_forever()
        await exchange.head()
        for _ in range(self.rng.randrange(1, 6)):
            await exchange.data(b"text")
            await trio.sleep(self.rng.random() / 4)
        if fault == "reset":
            await exchange.reset(2)
        elif fault == "disconnect":
            await trio.aclose_forcefully(exchange.connection.stream)
        else:
            await exchange.data(bytes(exchange.body), end=True)


async def ask_impatiently(pool: Pool, rng: random.Random, ends: Counter[str]) -> None:
    await trio.sleep(rng.random() * 5)
    notes = Notes(raises=ZeroDivisionError() if rng.random() < 0.05 else None)
    body = rng.randbytes(rng.randrange(5_000))
    with trio.move_on_after(rng.choice([0.0, 0.2, 1, 100])) as scope:
        try:
            async with pool.open_stream(request(body), notes) as stream:
                await stream.wait_end()
            assert notes.body.endswith(b"text" + body)
            ends["whole"] += 1
        except StreamError as error:
            ends[error.kind] += 1
        except ReceiverFailed:
            ends["raised"] += 1
    if scope.cancelled_caught:
        ends["cancelled"] += 1


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_every_request_ends_and_every_slot_is_free(seed: int) -> None:
    rng, ends = random.Random(seed), Counter[str]()
    chaos = Chaos(rng)
    peer = Peer(chaos.script, streams_max=7, connect_s=0.05, window=1_000)
    async with open_pool_to(peer, settings={"connections_max": 5, "stall_s_max": 3.0}) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(REQUESTS):
                nursery.start_soon(ask_impatiently, pool, rng, ends)
        assert ends.total() == REQUESTS
        assert ends["whole"] > 20, ends  # the others' shares are left to chance
        statistics = pool.statistics()
        assert (statistics.streams, statistics.waiting) == (0, 0)
        assert statistics.connections <= 5
        assert peer.streams_peak <= 7
        await until(lambda: peer.streams_open == 0)
        chaos.calm = True
        async with trio.open_nursery() as nursery:
            for _ in range(35):
                nursery.start_soon(ask, pool)
