"""trio-websocket by itself: accepts, reads, says nothing. What a handshake costs without coach."""

from __future__ import annotations

import argparse

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket


async def _hold(request: WebSocketRequest) -> None:
    websocket = await request.accept(subprotocol="coach.v1")
    try:
        while True:
            await websocket.get_message()
            await websocket.send_message('{"type":"welcome"}')
    except ConnectionClosed:
        pass


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    trio.run(serve_websocket, _hold, "127.0.0.1", port, None)


if __name__ == "__main__":
    main()
