"""A grader's own /metrics: what it counts comes out there, and nothing else is served."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from coach import config
from coach.errors import ConfigurationError
from coach.ops import metrics, serve_metrics

pytestmark = pytest.mark.real_time


async def test_what_a_grader_counts_is_served_and_nothing_else() -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_metrics, "127.0.0.1", 0)
        metrics.webhook_attempts_total.labels("x", "delivered").inc()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            found = await client.get("/metrics?x=1")
            assert found.headers["content-type"] == metrics.CONTENT_TYPE
            assert 'coach_webhook_attempts_total{outcome="delivered",webhook="x"} 1.0' in found.text
            for method, path in (("GET", "/"), ("POST", "/metrics")):
                assert (await client.request(method, path)).status_code == 404
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"no request\r\n\r\n")
            assert await stream.receive_some() == b""
        with pytest.raises(ConfigurationError, match=r"grading\.metrics: cannot listen"):
            await serve_metrics("127.0.0.1", port)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("text", ["9465", ":9465", "host:", "host:x", "host:70000"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"grading\.metrics"):
        config.load(None, {"COACH_GRADING__METRICS": text})
