"""A connection for each request: it ends with the request, whatever becomes of that."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest
import trio

from coach import config
from coach.providers import Unpooled, open_provider
from coach.simulator.authority import CA_NAME
from coach.simulator.messages import Messages
from coach.simulator.provider import Provider as Simulator
from coach.simulator.provider import open_provider as open_simulator
from coach.simulator.settings import Settings

from .asking import Student
from .test_simulated import ASKED

pytestmark = pytest.mark.real_time

SLOW = Settings(ttft_ms=10, ttft_jitter_ms=0, events_per_s=100)


async def test_each_request_has_a_connection_and_a_cancelled_one_leaves_none(
    tmp_path: Path,
) -> None:
    async with open_simulator(SLOW, {}, data_dir=tmp_path, dialect=Messages()) as simulator:
        settings = config.Provider(
            name="p",
            base_url=simulator.url,
            model="sim-1",
            api_key="k",
            ca_file=str(tmp_path / CA_NAME),
        )
        unpooled = Unpooled(config.Settings(provider=(settings,)))
        provider = open_provider(settings, unpooled)
        students = [Student() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for student in students:
                nursery.start_soon(provider.stream, ASKED, student)
        assert unpooled.handshakes == 3
        assert all(student.texts for student in students)
        with trio.move_on_after(0.1):
            await provider.stream(ASKED, Student())
        assert unpooled.handshakes == 4
        with trio.fail_after(2):
            while await connections_open(simulator, tmp_path) > 1:  # noqa: ASYNC110  the one that asks
                await trio.sleep(0.01)


async def connections_open(simulator: Simulator, path: Path) -> int:
    trusted = ssl.create_default_context(cafile=str(path / CA_NAME))
    async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
        return int((await client.get(f"{simulator.url}/stats")).json()["connections_open"])
