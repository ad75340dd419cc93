"""Owns an embedded server until it is ended; a child process of `test_embedded.py`.

    python -m tests.store.owner DATA_DIR

Says the server's pid when it is up and, when Ctrl-C ends it, whether Redis still served the
cleaning up.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from coach.store import open_embedded, open_redis


def say(what: object) -> None:
    """One line in one write, so that who reads it never sees half of it."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def own(data_dir: Path) -> None:
    async with open_embedded(data_dir) as server, open_redis(server.url) as redis:
        await redis.set("k", "v")
        try:
            say(server.pid)  # the test may interrupt at once
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                say(await redis.get("k"))


if __name__ == "__main__":
    # A shell that starts the tests in the background has SIGINT ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trio.run(own, Path(sys.argv[1]))
    except* KeyboardInterrupt:
        sys.exit(130)
