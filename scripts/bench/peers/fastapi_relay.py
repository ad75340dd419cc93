"""A relay as one writes it with FastAPI and httpx: WebSocket in, Anthropic's events up, deltas out.

Done as well as these libraries allow: TLS context and connections are shared, uvicorn runs on
uvloop and httptools. It keeps nobody's limits, counts nothing, writes to no Redis and knows one
provider. Runs in an environment of its own (`requirements.txt`), not the project's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import uvicorn  # type: ignore[import-not-found,unused-ignore]
from fastapi import (  # type: ignore[import-not-found,unused-ignore]
    FastAPI,
    WebSocket,
    WebSocketDisconnect,
)

STREAMS_A_CLIENT = 100
SYSTEM = "You are a writing coach. Comment on the essay in at most five short remarks."


class Upstream:
    """The provider's connections.

    httpx puts all requests for a host onto one HTTP/2 connection, and lets the next wait when that
    one's streams are used up, whatever its limits say: a turn then begins when another ends. So
    there is one client for every `STREAMS_A_CLIENT` open turns, made when it is needed.
    """

    def __init__(self, url: str, ca_file: str) -> None:
        self._url = url
        self._trust = ssl.create_default_context(cafile=ca_file)
        self._clients: list[httpx.AsyncClient] = []
        self._open: list[int] = []

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a free stream."""
        index = next((i for i, n in enumerate(self._open) if n < STREAMS_A_CLIENT), -1)
        if index < 0:
            index = len(self._clients)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            timeout = httpx.Timeout(10, read=60)
            self._clients.append(
                httpx.AsyncClient(
                    base_url=self._url,
                    http1=False,
                    http2=True,
                    verify=self._trust,
                    limits=limits,
                    timeout=timeout,
                    trust_env=False,
                )
            )
            self._open.append(0)
        self._open[index] += 1
        try:
            yield self._clients[index]
        finally:
            self._open[index] -= 1


class Conversation:
    """One student."""

    def __init__(self, websocket: WebSocket, upstream: Upstream, output_tokens_max: int) -> None:
        self._websocket = websocket
        self._upstream = upstream
        self._output_tokens_max = output_tokens_max
        self._drafts: dict[str, str] = {}
        self._turns: set[asyncio.Task[None]] = set()
        self._seq = 0

    async def run(self) -> None:
        """Read until the student leaves."""
        try:
            async for text in self._websocket.iter_text():
                message = json.loads(text)
                match message["type"]:
                    case "hello":
                        await self._say({"type": "welcome", "session": "s"})
                    case "draft":
                        self._drafts[message["draft"]] = message["text"]
                    case "feedback":
                        draft = self._drafts[message["draft"]]
                        turn = asyncio.create_task(self._answer(message["request"], draft))
                        self._turns.add(turn)
                        turn.add_done_callback(self._turns.discard)
        finally:
            for turn in self._turns:
                turn.cancel()

    async def _answer(self, request: str, draft: str) -> None:
        body = {
            "model": "sim-1",
            "max_tokens": self._output_tokens_max,
            "stream": True,
            "system": SYSTEM,
            "messages": [{"role": "user", "content": f"<essay>\n{draft}\n</essay>"}],
        }
        headers = {"x-api-key": "bench", "anthropic-version": "2023-06-01"}
        try:
            async with (
                self._upstream.client() as client,
                client.stream("POST", "/v1/messages", json=body, headers=headers) as response,
            ):
                response.raise_for_status()
                await self._say({"type": "started", "request": request})
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    event = json.loads(line[6:])
                    if event["type"] == "content_block_delta":
                        text = event["delta"]["text"]
                        await self._say({"type": "delta", "request": request, "text": text})
            await self._say({"type": "done", "request": request})
        except httpx.HTTPError as error:
            code = type(error).__name__
            with suppress(WebSocketDisconnect, RuntimeError):
                await self._say({"type": "error", "request": request, "code": code})
        except (WebSocketDisconnect, RuntimeError):
            pass  # the student has left

    async def _say(self, message: dict[str, Any]) -> None:
        self._seq += 1
        message["seq"] = self._seq
        await self._websocket.send_text(
            json.dumps(message, ensure_ascii=False, separators=(",", ":"))
        )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--output-tokens-max", type=int, required=True)
    options = parser.parse_args()
    upstream = Upstream(options.provider, options.ca)

    async def relay(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="coach.v1")
        with suppress(WebSocketDisconnect):
            await Conversation(websocket, upstream, options.output_tokens_max).run()

    async def token() -> dict[str, str]:
        return {"token": "none"}

    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    app = FastAPI()
    app.add_api_websocket_route("/ws", relay)
    app.add_api_route("/api/token", token, methods=["POST"])
    app.add_api_route("/readyz", ready)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        backlog=4096,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
