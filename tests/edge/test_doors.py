"""A full worker: who is in stays in, who comes is told, and every place is given back."""

from __future__ import annotations

import pytest

from coach import config, edge
from coach.ops import health, metrics
from tests.edge.test_edge import GET, answer, everything
from tests.support.stack import until
from tests.support.tiny_app import open_server

PROVIDER = config.Provider(name="p", base_url="https://127.0.0.1:1", model="m", api_key="k")


def test_as_many_are_in_as_there_are_places() -> None:
    doors = edge.Doors(2)
    assert [doors.enter() for _ in range(3)] == [True, True, False]
    doors.leave()
    assert (len(doors), doors.enter(), doors.enter()) == (1, True, False)


def test_so_many_are_told_at_a_time_and_no_more() -> None:
    doors = edge.Doors(1)
    assert all(doors.begin_refusal() for _ in range(health.REFUSED))
    assert not doors.begin_refusal()
    doors.end_refusal()
    assert doors.begin_refusal()


@pytest.mark.parametrize("files", [1, 16, 256, 1_024, 1_048_576])
def test_places_are_what_the_limit_of_open_files_leaves(files: int) -> None:
    two = config.Settings(provider=(PROVIDER, PROVIDER))
    places = health.connections_max(two, files)
    if files >= 1_024:
        assert places == files - health.files_reserved(two)
    assert 1 <= places <= max(1, files // 4, files - 2 * two.pool.connections_max)
    lowered = config.Settings(server=config.Server(connections_max=3))
    assert health.connections_max(lowered, files) == min(
        3, health.connections_max(config.Settings(), files)
    )


@pytest.mark.real_time
async def test_a_full_server_refuses_unread_and_serves_again_when_one_has_left() -> None:
    refused = metrics.connections_refused._value.get()
    async with open_server() as server:
        doors = server.app.doors = edge.Doors(1)
        async with await server.connect() as inside:
            await inside.send_all(GET)
            await answer(inside, b"hello")
            async with await server.connect() as outside:  # it has said nothing yet
                said = await everything(outside)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 2\r\n" in said
            await inside.send_all(GET)
            await answer(inside, b"hello")
        await until(lambda: len(doors) == 0)
        async with await server.connect() as stream:
            await stream.send_all(GET)
            assert (await answer(stream, b"hello")).startswith(b"HTTP/1.1 200")
    assert metrics.connections_refused._value.get() == refused + 1
    assert len(doors) == 0


@pytest.mark.real_time
async def test_beyond_those_who_are_told_newcomers_are_closed_at_once() -> None:
    doors = edge.Doors(1)
    doors.enter()
    while doors.begin_refusal():
        pass
    async with open_server() as server:
        server.app.doors = doors
        async with await server.connect() as closed:
            assert await everything(closed) == b""
        doors.end_refusal()
        async with await server.connect() as told:
            assert (await everything(told)).startswith(b"HTTP/1.1 503 ")
