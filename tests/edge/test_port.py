"""A student's connection through the port: the edge, hypercorn beside it, a session behind."""

from __future__ import annotations

import importlib
import random
from collections import defaultdict
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from coach import config, edge
from coach.session import Sessions, serve_session
from coach.session.session import Session
from tests.edge.test_edge import GET, answer
from tests.session.test_rfc6455 import CASES, Case, Ends, Seen, play
from tests.session.world import AUTHORITY, World, open_client, says
from tests.support.stack import until
from tests.support.tiny_app import Served, TinyApp, open_server
from tests.support.tls import Certificates

pytestmark = pytest.mark.real_time

SCRIPTS = Path(__file__).parents[2] / "scripts"


class CoachlikeApp(TinyApp):
    """The test application, with students' sessions where it echoes."""

    sessions: Sessions

    async def serve_websocket(self, connection: object) -> None:
        """As coach does."""
        await serve_session(connection, self.sessions._services, self.sessions)  # type: ignore[arg-type]


@pytest.mark.parametrize("certificates", [None, Certificates], ids=["plain", "TLS"])
async def test_every_case_of_the_rfc_holds_at_the_port_all_at_once(
    certificates: type[Certificates] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: defaultdict[str, list[str]] = defaultdict(list)
    monkeypatch.setattr(Session, "hear", lambda self, text: heard[self.identity.user].append(text))
    world, wrong, app = World(says()), dict[str, str](), CoachlikeApp()
    files = None if certificates is None else certificates(tmp_path).write()
    app.tls = None if files is None else edge.open_context(files.server)

    async def connect(server: Served) -> Ends:
        return await (server.connect() if files is None else files.connect(server.port))

    async def attempt(server: Served, user: str, name: str, case: Case) -> None:
        seen = Seen(heard[user])
        await play(await connect(server), case.sent, seen, user=user)
        try:
            seen.check(case)
        except AssertionError as error:
            wrong[name] = str(error)

    async with world.at_home() as app.sessions:
        async with open_server(app=app) as server, trio.open_nursery() as nursery:
            for number, (name, case) in enumerate(CASES.items()):
                nursery.start_soon(attempt, server, f"user-{number}", name, case)
            async with await connect(server) as stream:
                for _ in range(5):
                    await stream.send_all(GET)
                    await answer(stream, b"hello")
        assert wrong == {}
    assert world.balanced


async def test_hostile_connections_leave_nothing_and_a_student_notices_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`scripts/soak --connections`, in small."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    fuzz_type = importlib.import_module("soak_edge_run").Fuzz
    patience = config.Server(head_s_max=0.3, send_s_max=1.0)
    world, app = World(says("Well ", "done.")), CoachlikeApp(config.Settings(server=patience))
    doors, crowd = edge.Doors(1_000), edge.Addresses(config.Server(trusted_proxies=()))
    app.doors, app.addresses = doors, crowd
    tokens = [
        AUTHORITY.issue(user=f"user-{number}", org="school", role="student")[0]
        for number in range(20)
    ]
    with capture_logs() as logs:
        async with (
            world.at_home(
                head_s_max=0.3, hello_s_max=0.3, connects_per_minute=1_000
            ) as app.sessions,
            open_server(app=app, keep_alive_s=0.3) as server,
        ):
            stream = await server.connect()
            async with open_client(stream) as student, trio.open_nursery() as nursery:
                await student.hello("ana")
                fuzz = fuzz_type("127.0.0.1", server.port, random.Random(7), tokens)
                nursery.start_soon(fuzz.run, 400, 400)
                for turn in range(1, 6):
                    await student.ask(f"r{turn}")
                    await student.until("done")
            await until(lambda: len(doors) == len(crowd) == 0)
    assert fuzz.kinds.total() == 400
    assert fuzz.refused == fuzz.overdue.total() == 0
    assert [log for log in logs if log["log_level"] in ("error", "critical")] == []
    assert world.balanced
