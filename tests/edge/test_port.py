"""A student's connection through the port: the edge, hypercorn beside it, a session behind."""

from __future__ import annotations

from collections import defaultdict

import pytest
import trio

from coach.session import Sessions, serve_session
from coach.session.session import Session
from tests.edge.test_edge import GET, answer
from tests.session.test_rfc6455 import CASES, Case, Seen, play
from tests.session.world import World, says
from tests.support.tiny_app import Served, TinyApp, open_server

pytestmark = pytest.mark.real_time


class CoachlikeApp(TinyApp):
    """The test application, with students' sessions where it echoes."""

    sessions: Sessions

    async def serve_websocket(self, connection: object) -> None:
        """As coach does."""
        await serve_session(connection, self.sessions._services, self.sessions)  # type: ignore[arg-type]


async def test_every_case_of_the_rfc_holds_at_the_port_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: defaultdict[str, list[str]] = defaultdict(list)
    monkeypatch.setattr(Session, "hear", lambda self, text: heard[self.identity.user].append(text))
    world, wrong, app = World(says()), dict[str, str](), CoachlikeApp()

    async def attempt(server: Served, user: str, name: str, case: Case) -> None:
        seen = Seen(heard[user])
        await play(await server.connect(), case.sent, seen, user=user)
        try:
            seen.check(case)
        except AssertionError as error:
            wrong[name] = str(error)

    async with world.at_home() as app.sessions:
        async with open_server(app=app) as server, trio.open_nursery() as nursery:
            for number, (name, case) in enumerate(CASES.items()):
                nursery.start_soon(attempt, server, f"user-{number}", name, case)
            async with await server.connect() as stream:
                for _ in range(5):
                    await stream.send_all(GET)
                    await answer(stream, b"hello")
        assert wrong == {}
    assert world.balanced
