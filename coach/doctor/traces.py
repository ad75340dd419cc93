"""Traces: whether they can be made, and whether anybody is there to take them."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import trio

from ..ops import traces
from .report import Finding

CONNECT_S_MAX: Final = 1.0


async def examine_traces(endpoint: str) -> Finding:
    """Look for the extra, and connect to the collector; no span is sent.

    Args:
      endpoint: `traces.endpoint`.
    """
    if not traces.is_installed():
        return Finding(
            "traces",
            "OpenTelemetry",
            "fail",
            "traces.endpoint is set, but the packages are missing: nothing starts",
            "pip install 'coach[otel]'",
        )
    url = urlsplit(endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        with trio.fail_after(CONNECT_S_MAX):
            stream = await trio.open_tcp_stream(url.hostname or "", port)
            await stream.aclose()
    except (OSError, trio.TooSlowError):
        return Finding(
            "traces",
            "collector",
            "warn",
            f"nobody answers at {url.hostname}:{port}: spans are lost",
            "start the collector, or correct traces.endpoint",
        )
    return Finding("traces", "collector", "ok", f"{url.hostname}:{port} answers")
