"""Redis URLs: which server, which database, as whom.

    redis://[[user]:password@]host[:port][/db]
    rediss://…             the same over TLS; `?ssl_ca_certs=FILE` trusts that authority only
    unix://[[user]:password@]/path/to.sock[?db=N]
    redis+sentinel://[[user]:password@]host[:port],host[:port],…/service[/db]
    redis+cluster://[[user]:password@]host[:port],host[:port],…

The first three as redis-py reads them (https://redis.readthedocs.io/en/stable/connections.html).
User and password are those of the Redis servers.
"""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

from ..errors import ConfigurationError

PORT: Final = 6379
SENTINEL_PORT: Final = 26379


@attrs.frozen(kw_only=True)
class Target:
    """One server and how to greet it."""

    host: str = "127.0.0.1"
    port: int = PORT
    path: str | None = None
    """A unix socket; in place of host and port."""
    db: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        """The address for error messages: without the password."""
        return self.path if self.path is not None else f"{self.host}:{self.port}"


def parse_url(url: str) -> Target:
    """Read a `redis://`, `rediss://` or `unix://` URL.

    Raises:
      ConfigurationError: it is none of these, or a part or parameter of it means nothing; one
        line, without the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or PORT
    except ValueError:
        raise ConfigurationError(
            "redis.url: the port is no number up to 65535 (in a password / ? # @ need %-escapes)"
        ) from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            f"redis.url: {parts.scheme or 'no scheme'}: expected redis://, rediss://, unix://, "
            "redis+sentinel:// or redis+cluster://"
        )
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    is_unix = parts.scheme == "unix"
    db = query.pop("db", "" if is_unix else parts.path.strip("/")) or "0"
    if not db.isdecimal():
        raise ConfigurationError(f"redis.url: {db!r} is no database number")
    if is_unix and not parts.path:
        raise ConfigurationError("redis.url: unix:// needs the path of a socket")
    tls = _tls(query.pop("ssl_ca_certs", None)) if parts.scheme == "rediss" else None
    if query:
        raise ConfigurationError(f"redis.url: unknown parameter {min(query)!r}")
    return Target(
        host=parts.hostname or "127.0.0.1",
        port=port,
        path=unquote(parts.path) if is_unix else None,
        db=int(db),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=tls,
    )


@attrs.frozen(kw_only=True)
class SentinelTarget:
    """A service whose master the sentinels know."""

    sentinels: tuple[Target, ...]
    service: str
    server: Target
    """How to greet the master; its host and port are the sentinels' to say."""


def parse_sentinel_url(url: str) -> SentinelTarget:
    """Read a `redis+sentinel://` URL.

    Raises:
      ConfigurationError: as `parse_url`.
    """
    hosts, path = _hosts(url, SENTINEL_PORT)
    service, _, db = path.partition("/")
    if not service:
        raise ConfigurationError("redis.url: redis+sentinel://hosts/service: no service is named")
    if db and not db.isdecimal():
        raise ConfigurationError(f"redis.url: {db!r} is no database number")
    return SentinelTarget(
        sentinels=tuple(attrs.evolve(host, username=None, password=None) for host in hosts),
        service=unquote(service),
        server=attrs.evolve(hosts[0], db=int(db or 0)),
    )


def parse_cluster_url(url: str) -> tuple[Target, ...]:
    """Read a `redis+cluster://` URL: nodes to ask for the others.

    Raises:
      ConfigurationError: as `parse_url`.
    """
    hosts, path = _hosts(url, PORT)
    if path not in ("", "0"):
        raise ConfigurationError("redis.url: a cluster has database 0 only")
    return hosts


def _hosts(url: str, port: int) -> tuple[tuple[Target, ...], str]:
    """The servers of a URL that names several, and its path."""
    parts = urlsplit(url)
    if parts.query:
        raise ConfigurationError(f"redis.url: {parts.scheme}:// takes no parameters")
    account, _, hosts = parts.netloc.rpartition("@")
    account += "@" if account else ""
    return (
        tuple(
            parse_url(f"redis://{account}{host if _has_port(host) else f'{host}:{port}'}")
            for host in hosts.split(",")
        ),
        parts.path.strip("/"),
    )


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"redis.url: cannot read {ca_file}: {error}") from error


def without_password(url: str) -> str:
    """The URL as it may be shown to operators and logged."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return url
    return url.replace(f":{password}@", ":***@") if password else url
