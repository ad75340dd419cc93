"""The composition root: what operators and clients get over HTTP, with real Redis below.

Routes are asked through Quart's own test client; what depends on connections goes through hypercorn
and the edge on a real socket.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import hypercorn.trio
import jwt
import msgspec
import pytest
import trio
from hypercorn.config import Config
from prometheus_client.metrics import MetricWrapperBase

from coach import config
from coach.app import CONTENT_SECURITY_POLICY, Parts, app, open_parts
from coach.grading import Claim, CriterionGrade, Feeder, Grade, Reviews, Submission
from coach.ops import metrics
from coach.providers import Usage
from coach.store import EmbeddedServer, open_embedded
from tests.support.stack import descriptors_of

pytestmark = pytest.mark.real_time

PROVIDER = config.Provider(
    name="p", base_url="https://127.0.0.1:1", model="m", api_key="k", quota=config.Quota()
)


GRADE = Grade(
    score=64,
    criteria=(
        CriterionGrade(
            name="content", label="Content", band=3, band_max=5, evidence="calm", reason="So it is."
        ),
    ),
    judges=1,
    degraded=False,
    feedback="Say more.",
)


@attrs.frozen
class Opened:
    """The application with its parts."""

    parts: Parts
    redis: EmbeddedServer

    def bearer(self, user: str = "ana", org: str = "demo", role: str = "student") -> dict[str, str]:
        """Headers that speak for somebody."""
        token, _ = self.parts.services.authority.issue(user=user, org=org, role=role)
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def opened(tmp_path: Path, **sections: object) -> AsyncIterator[Opened]:
    """The application's parts, as its lifespan opens them."""
    async with open_embedded(tmp_path) as redis:
        settings = config.Settings(
            data_dir=str(tmp_path),
            redis=config.Redis(url=redis.url, wait_s=1.0),
            **{"provider": (PROVIDER,), **sections},  # type: ignore[arg-type]
        )
        async with open_parts(settings) as parts:
            app.settings, app.parts = settings, parts
            try:
                yield Opened(parts, redis)
            finally:
                app.settings, app.parts = config.Settings(), None


# -- for operators -----------------------------------------------------------------------------


async def test_alive_whatever_happens_ready_only_with_redis_and_not_while_draining(
    tmp_path: Path,
) -> None:
    client = app.test_client()
    assert (await client.get("/readyz")).status_code == 503
    async with opened(tmp_path) as served:
        assert await answer("/readyz") == (200, {"status": "ready"})
        os.kill(served.redis.pid, signal.SIGSTOP)
        try:
            assert await answer("/readyz") == (503, {"status": "no redis"})
            assert await answer("/healthz") == (200, {"status": "alive"})
        finally:
            os.kill(served.redis.pid, signal.SIGCONT)
        assert await answer("/readyz") == (200, {"status": "ready"})
        served.parts.sessions.drain()
        assert await answer("/readyz") == (503, {"status": "draining"})
        assert await answer("/healthz") == (200, {"status": "alive"})


async def test_every_metric_is_exposed_with_its_meaning(tmp_path: Path) -> None:
    ours = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    names = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for (metric,) in (value.describe() for value in ours)
    }
    assert len(names) > 10
    async with opened(tmp_path):
        await trio.sleep(0.1)  # the gauges are set as soon as the parts are open
        response = await app.test_client().get("/metrics")
    text = await response.get_data(as_text=True)
    assert response.content_type == metrics.CONTENT_TYPE
    assert names <= set(re.findall(r"^# HELP (coach_\w+) \S", text, re.MULTILINE))
    for lane in ("interactive", "submission", "background"):
        assert f'coach_queue_depth{{lane="{lane}"}} 0.0' in text
        assert f'coach_line_length{{endpoint="p",lane="{lane}"}} 0.0' in text


# -- for clients -------------------------------------------------------------------------------


async def test_a_token_for_anybody_in_open_mode_only(tmp_path: Path) -> None:
    client = app.test_client()
    async with opened(tmp_path) as served:
        given = await (await client.post("/api/token")).get_json()
        identity = served.parts.services.authority.verify(given["token"])
        assert (identity.user, identity.org) == (given["user"], given["org"])
        assert identity.expires_at == given["expires_at"]
        assert given["user"] != (await (await client.post("/api/token")).get_json())["user"]
        assert (await client.get("/api/token")).status_code == 405
    async with opened(tmp_path, auth=config.Auth(mode="jwt", secret="s" * 32)):
        refused = await client.post("/api/token")
        assert refused.status_code == 403
        assert (await refused.get_json())["code"] == "forbidden"


async def test_a_submission_is_shown_to_its_author_only(tmp_path: Path) -> None:
    client, path = app.test_client(), "/api/submissions/s-1"
    async with opened(tmp_path) as served:
        queue = served.parts.backend.queue
        essay = Submission(
            id="s-1",
            user="ana",
            org="demo",
            assignment="essay",
            text="It was calm.",
            lane="submission",
            worker="",
            session="",
        )
        await queue.submit(essay)
        for headers in ({}, {"Authorization": "Basic eA=="}, {"Authorization": "Bearer x.y.z"}):
            refused = await client.get(path, headers=headers)
            assert refused.status_code == 401
            assert (await refused.get_json())["code"] == "unauthenticated"
        for headers in (served.bearer("ben"), served.bearer("ana", "other")):
            assert (await client.get(path, headers=headers)).status_code == 403
        mine = served.bearer()
        assert (await client.get("/api/submissions/none", headers=mine)).status_code == 403
        status, queued = await answer(path, mine)
        assert status == 200
        assert abs(queued.pop("submitted_at") - time.time()) < 60
        waiting = {"submission": "s-1", "user": "ana", "grade": None, "failure": None}
        times = {"ended_at": None, "retry_at": None}
        assert queued == {**waiting, **times, "status": "queued", "place": 1}
        educator = served.bearer("eva", role="educator")
        assert (await client.get(path, headers=educator)).status_code == 200
        elsewhere = served.bearer("eva", "other", role="educator")
        assert (await client.get(path, headers=elsewhere)).status_code == 403

        claim = await queue.claim(queue.shard("demo"), ["submission"])
        assert claim is not None
        assert not isinstance(claim, float)
        _, running = await answer(path, mine)
        assert (running["status"], running["place"]) == ("grading", None)
        await queue.finish(claim, GRADE)
        _, graded = await answer(path, mine)
        assert (graded["status"], graded["grade"]) == ("graded", as_json(GRADE))
        assert graded["ended_at"] >= graded["submitted_at"]


async def test_a_submission_that_fails_says_why_and_whether_trying_again_helps(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as served:
        queue, mine = served.parts.backend.queue, served.bearer()
        for id_ in ("s-1", "s-2", "s-3"):
            await queue.submit(
                Submission(id=id_, user="ana", org="demo", assignment="", text="It was calm.")
            )
        assert (await answer("/api/submissions/s-3", mine))[1]["place"] == 3
        for failed in ({"final": True}, {"hopeless": True}, {"delay_s": 60.0}):
            claim = await queue.claim(queue.shard("demo"), ["submission"])
            assert isinstance(claim, Claim)
            await queue.fail(claim, reason="for operators", message="not now", **failed)
        told = [(await answer(f"/api/submissions/s-{n}", mine))[1] for n in (1, 2, 3)]
        assert [each["status"] for each in told] == ["failed", "failed", "queued"]
        failure = {"code": "provider_unavailable", "message": "not now", "attempts": 1}
        assert told[0]["failure"] == {**failure, "can_retry": True}
        assert told[1]["failure"] == {**failure, "can_retry": False}
        assert told[2]["place"] is None
        assert 50 < told[2]["retry_at"] - time.time() < 70


async def test_educators_have_essays_graded_again_and_see_both_grades(tmp_path: Path) -> None:
    client = app.test_client()
    async with opened(tmp_path) as served:
        backend = served.parts.backend
        for id_ in ("s-1", "s-2"):
            await backend.queue.keep(
                Submission(id=id_, user="ana", org="demo", assignment="a", text="It was calm."),
                GRADE,
            )
        educator = served.bearer("eva", role="educator")

        async def ask(**wanted: object) -> tuple[int, Any]:
            response = await client.post(
                "/api/regrade", headers=educator, data=msgspec.json.encode(wanted)
            )
            return response.status_code, await response.get_json()

        assert (await ask(percent=4))[0] == (await ask(audit_percent=0))[0] == 400
        status, tried = await ask(assignment="a", dry_run=True)
        assert (status, tried["job"], tried["estimate"]["essays"]) == (200, None, 2)
        assert (await ask(assignment="none"))[0] == 200
        status, begun = await ask(submissions=["s-1", "nobody's"], job="j-1")
        assert (status, begun["job"], begun["estimate"]["answers"]) == (202, "j-1", 3)
        assert (await ask(assignment="a", job="j-1"))[0] == 202  # the same again
        status, job = await answer("/api/regrade/j-1", educator)
        assert (status, job["total"], job["by"], job["mode"]) == (200, 1, "eva", "running")
        elsewhere = served.bearer("eva", "other", role="educator")
        assert (await answer("/api/regrade/j-1", elsewhere))[0] == 403

        grading = config.Grading()
        reviews = Reviews(backend.redis, backend.queue, grading)
        await Feeder(backend.redis, backend.queue, reviews, grading, worker="g").feed(0)
        claim = await backend.queue.claim(0, ["background"])
        assert isinstance(claim, Claim)
        second = attrs.evolve(GRADE, score=60)
        await backend.queue.finish(claim, second)
        _, found = await answer("/api/submissions/s-1", educator)
        assert found["grade"]["score"] == 64
        assert [(each["kind"], each["grade"]["score"]) for each in found["history"]] == [
            ("regrade", 60)
        ]
        _, own = await answer("/api/submissions/s-1", served.bearer())
        assert "history" not in own
        hidden = await client.get(f"/api/submissions/{claim.id}", headers=served.bearer())
        assert hidden.status_code == 403


async def test_operators_see_all_bills_and_educators_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        costs, redis = served.parts.backend.costs, served.parts.backend.redis
        for org in ("demo", "school"):
            costs.book(
                reason="feedback",
                provider="p",
                model="claude-opus-5-5",
                usage=Usage(1_000, 0, 0, 0),
                org=org,
                user="ana",
            )
        await costs.flush(redis)
        operator, educator = (served.bearer(role=role) for role in ("operator", "educator"))
        assert (await answer("/api/costs", served.bearer()))[0] == 403
        assert (await answer("/api/costs?org=school", educator))[0] == 403
        status, whole = await answer("/api/costs?by=org&currency=EUR", operator)
        assert status == 200
        assert [line["org"] for line in whole["lines"]] == ["demo", "school"]
        assert whole["total"]["cost"] == "0.00688"
        _, own = await answer("/api/costs?by=user", educator)
        assert [(line["user"], line["cost"]) for line in own["lines"]] == [("ana", "0.004")]
        for wrong in ("by=week", "from=x", "currency=XTS"):
            assert (await answer(f"/api/costs?{wrong}", operator))[0] == 400


async def test_operators_see_the_queue_and_nobody_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        queue = served.parts.backend.queue
        for id_ in ("dead", "waits"):
            await queue.submit(
                Submission(id=id_, user="ana", org="demo", assignment="x", text="Calm.")
            )
            if id_ == "dead":
                claim = await queue.claim(0, ["submission"])
                assert isinstance(claim, Claim)
                await queue.fail(claim, reason="no use", final=True)
        for role in ("student", "educator"):
            assert (await answer("/api/queue", served.bearer(role=role)))[0] == 403
        status, told = await answer("/api/queue", served.bearer(role="operator"))
        text, sampled = "", 'coach_queue_events_total{event="dead",lane="submission"} 1.0'
        with trio.fail_after(20):
            while sampled not in text:
                await trio.sleep(0.1)
                text = await (await app.test_client().get("/metrics")).get_data(as_text=True)
    assert status == 200
    assert told["lanes"]["submission"]["ready"] == 1
    assert (told["delayed"], told["leased"], told["dead"]) == (0, 0, 1)
    (letter,) = told["dead_letters"]
    assert (letter["id"], letter["reason"], letter["attempts"]) == ("dead", "no use", 1)
    for sample in (
        'coach_queue_depth{lane="submission"} 1.0',
        'coach_queue_paused{lane="submission"} 0.0',
        'coach_queue_jobs{state="dead"} 1.0',
        'coach_queue_events_total{event="submitted",lane="submission"} 2.0',
        'coach_queue_events_total{event="dead",lane="submission"} 1.0',
        'coach_queue_pickup_seconds_bucket{lane="submission",le="+Inf"} 1.0',
        'coach_queue_pickup_seconds_count{lane="submission"} 1.0',
        'coach_queue_total_seconds_bucket{lane="submission",le="600.0"} 0.0',
    ):
        assert f"\n{sample}\n" in text, sample
    assert 'coach_queue_oldest_seconds{lane="submission"} 0.0' not in text


async def test_a_student_of_open_mode_stays_the_same_with_a_newer_token(tmp_path: Path) -> None:
    """For a while after the old one has ended; nobody else's token makes one a student."""
    now = int(time.time())
    auth = config.Auth(secret="s" * 32, renew_s=3_600)
    async with opened(tmp_path, auth=auth) as served:

        async def renewed(role: str, ended_s: int) -> str:
            claims = {"sub": "ana", "org": "school", "role": role, "exp": now - ended_s}
            token = jwt.encode(claims, "s" * 32, algorithm="HS256")
            headers = {"Authorization": f"Bearer {token}"}
            given = await (await app.test_client().post("/api/token", headers=headers)).get_json()
            identity = served.parts.services.authority.verify(given["token"])
            assert (identity.user, identity.role) == (given["user"], "student")
            assert identity.expires_at > now + 3_600
            return f"{identity.org}/{identity.user}"

        assert await renewed("student", -60) == "school/ana"
        assert await renewed("student", 3_000) == "school/ana"
        assert (await renewed("student", 4_000)).startswith("demo/student-")
        assert (await renewed("operator", -60)).startswith("demo/student-")


async def test_the_rubric_is_there_for_those_who_are_graded_by_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        status, told = await answer("/api/rubric")
        known = served.parts.backend.rubric
    assert (status, told["title"]) == (200, known.title)
    assert [(each["label"], each["weight"]) for each in told["criteria"]] == [
        (each.label, each.weight) for each in known.criteria
    ]
    assert told["criteria"][0]["bands"] == list(known.criteria[0].bands)


async def test_assignments_are_those_of_the_rubric(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        status, listed = await answer("/api/assignments")
        known = served.parts.backend.rubric.assignments
    assert status == 200
    assert [item["id"] for item in listed] == [item.id for item in known]
    assert all(item["title"] and item["task"] for item in listed)


async def test_without_redis_a_request_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as served:
        mine = served.bearer()
        os.kill(served.redis.pid, signal.SIGSTOP)
        try:
            refused = await app.test_client().get("/api/submissions/s-1", headers=mine)
        finally:
            os.kill(served.redis.pid, signal.SIGCONT)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "2"
        assert (await refused.get_json())["code"] == "overloaded"


async def test_the_page_and_everything_else_come_with_headers_that_protect(tmp_path: Path) -> None:
    client = app.test_client()
    async with opened(tmp_path):
        page = await client.get("/")
        assert page.content_type == "text/html; charset=utf-8"
        text = await page.get_data(as_text=True)
        linked = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
        assert linked
        nowhere = ("/no/such/page", "/api/submissions/x", f"/static/{'x' * 3_000}")
        for path in ("/", *linked, "/healthz", *nowhere):
            response = await client.get(path)
            await response.get_data()
            assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY, path
            assert response.headers["X-Content-Type-Options"] == "nosniff", path
            assert (response.status_code == 200) == (path in ("/", "/healthz", *linked)), path
    assert "<script>" not in text  # the policy would not run it


# -- connections -------------------------------------------------------------------------------


async def test_a_kept_alive_connection_serves_many_requests(tmp_path: Path) -> None:
    """Quart cancels the task that answers once it hears of the end: the edge survives that."""
    paths = ("/healthz", "/", "/api/assignments", "/no/such/page")
    async with opened(tmp_path), serving() as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        for path in paths * 10:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            with trio.fail_after(5):
                head, body = await an_answer(stream)
            assert head.startswith(b"HTTP/1.1 404" if "no" in path else b"HTTP/1.1 200")
            assert b"connection: close" not in head.lower()
            assert body
        await stream.aclose()


async def test_a_client_that_leaves_after_its_answer_leaves_nothing_open(tmp_path: Path) -> None:
    async with opened(tmp_path), serving() as port:
        await asked(port)
        files, tasks = descriptors_of(os.getpid()), tasks_living()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(asked, port)
        with trio.fail_after(2):  # the timeout of idle connections is 5 s
            while (  # noqa: ASYNC110  the kernel and other tasks have no event for this
                descriptors_of(os.getpid()) > files or tasks_living() > tasks
            ):
                await trio.sleep(0.01)


# -- helpers -----------------------------------------------------------------------------------


async def answer(path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """The status and the JSON of a GET."""
    response = await app.test_client().get(path, headers=headers)
    return response.status_code, await response.get_json()


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """hypercorn and the edge in front of the routes, whose parts are open; gives the port."""
    listener, shutdown = trio.socket.socket(), trio.Event()
    await listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    options = Config()
    options.bind = [f"fd://{listener.detach()}"]
    options.loglevel = "CRITICAL"

    async def routes(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(hypercorn.trio.serve, routes, options, shutdown_trigger=shutdown.wait)
        )
        yield port
        shutdown.set()


def as_json(record: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(record))


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def asked(port: int) -> None:
    """Ask, hear the answer, and go at once."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"POST /api/token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        await an_answer(stream)


async def an_answer(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """One answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await more(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None, head
    while len(body) < int(length[1]):
        body += await more(stream)
    return head, body


async def more(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    assert data, "the server has closed the connection"
    return bytes(data)
