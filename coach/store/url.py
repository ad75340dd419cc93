"""Redis URLs: which server, which database, as whom.

    redis://[[user]:password@]host[:port][/db]
    rediss://…             the same over TLS; `?ssl_ca_certs=FILE` trusts that authority only
    unix://[[user]:password@]/path/to.sock[?db=N]

As redis-py reads them (https://redis.readthedocs.io/en/stable/connections.html).
"""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

from ..errors import ConfigurationError

PORT: Final = 6379


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
    except ValueError as error:
        raise ConfigurationError(f"redis.url: {error}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            f"redis.url: {parts.scheme or 'no scheme'}: expected redis://, rediss:// or unix://"
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


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError(f"redis.url: cannot read {ca_file}: {error}") from error
