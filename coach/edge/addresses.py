"""Who connects, by address, and how much of that one address may do.

No sockets in here. Behind a proxy all connections have the proxy's address: so those that the
settings name say in a header whom they stand for, and are not limited themselves. Nobody else is
believed: a header can say anything. An IPv6 address counts as its /64, since one customer has
2^64 of them.

Memory bound: an entry of some 200 bytes for each address that is connected, and those of a
`Throttle`.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, final

from .. import config
from ..throttle import Throttle
from .framing import Head

Limit = Literal["address_open", "address_rate"]
CROWDED_S: Final = 5.0
"""After which one who has too many connections open may try again."""
_V6_BITS: Final = 64


class Crowded(Exception):
    """An address may not connect now."""

    def __init__(self, limit: Limit, retry_after_s: float) -> None:
        """Over `limit`; try again after `retry_after_s`."""
        super().__init__(limit)
        self.limit = limit
        self.retry_after_s = retry_after_s


@final
class Addresses:
    """Counts the connections of each address; each `enter` that did not raise is given back."""

    def __init__(self, server: config.Server) -> None:
        """Nobody is connected."""
        self._trusted = tuple(ip_network(network) for network in server.trusted_proxies)
        self._header = server.forwarded_header.encode()
        self._open_max = server.connections_per_address
        self._open: dict[str, int] = {}  # by address, never 0
        self._upgrades: Throttle[str] = Throttle(
            per_s=server.connects_per_address_per_minute / 60,
            burst=server.connects_per_address_per_minute,
        )

    def __len__(self) -> int:
        """How many addresses are connected."""
        return len(self._open)

    def of_peer(self, host: str) -> str | None:
        """What the connection of `host` counts as; None: it is a proxy's, or nobody knows whose."""
        address = _parse(host)
        return None if address is None or self._is_trusted(address) else _counted_as(address)

    def of_request(self, head: Head) -> str | None:
        """What a request counts as that a trusted proxy has brought; None: it does not say.

        Proxies append: the last address that is no trusted one is the nearest that is known.
        """
        value = head.get(self._header).decode("latin-1")
        for item in reversed(value.split(",")):
            text = _forwarded_for(item) if self._header == b"forwarded" else item.strip()
            address = _parse(text)
            if address is None:
                return None
            if not self._is_trusted(address):
                return _counted_as(address)
        return None

    def enter(self, address: str) -> None:
        """Count a connection.

        Raises:
          Crowded: this address has too many. Nothing changed.
        """
        count = self._open.get(address, 0)
        if count >= self._open_max:
            raise Crowded("address_open", CROWDED_S)
        self._open[address] = count + 1

    def leave(self, address: str) -> None:
        """One that `enter` has counted is gone."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def upgrade(self, address: str, now: float) -> None:
        """Count a WebSocket that is asked for, at `now` on trio's clock.

        Raises:
          Crowded: this address has asked for too many lately. Nothing changed.
        """
        wait_s = self._upgrades.take(address, now)
        if wait_s:
            raise Crowded("address_rate", wait_s)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without brackets and port; an IPv4 one also in IPv6's clothes."""
    host = text.partition("%")[0]  # a link-local one names its interface
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _counted_as(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, _V6_BITS), strict=False))


def _forwarded_for(item: str) -> str:
    """The `for` of one element of a Forwarded header (RFC 7239 section 4)."""
    for pair in item.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value.strip().strip('"')
    return ""
