"""A connection for each request, as servers without a pool make them; for the flag `pool`.

The trusted certificates are read once, not for each request, as careful servers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import final

import msgspec

from .. import config
from .exchange import Receiver, StreamRequest
from .pool import Stream, dialer, open_pool_with


@final
class Unpooled:
    """Opens streams like a `Pool`, each on a TLS connection that ends with it."""

    def __init__(self, settings: config.Settings) -> None:
        """Nothing is opened yet.

        Raises:
          ConfigurationError: a `ca_file` cannot be used.
        """
        self._dial, _ = dialer(settings)
        self._settings = msgspec.structs.replace(
            settings.pool, connections_max=1, room_percent=0, keep_warm=False
        )
        self.handshakes = 0
        """Connections made since the start."""

    @asynccontextmanager
    async def open_stream(
        self, request: StreamRequest, receiver: Receiver
    ) -> AsyncIterator[Stream]:
        """Connect, then as `Pool.open_stream`; the connection is closed on leaving."""
        async with open_pool_with(self._settings, self._dial) as pool:
            try:
                async with pool.open_stream(request, receiver) as stream:
                    yield stream
            finally:
                self.handshakes += pool.statistics().handshakes
