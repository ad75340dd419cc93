"""The public keys of an identity provider: a JWK set (RFC 7517), looked at again as keys rotate.

`read_keys` is pure; `Keyring` holds what was read last. A key has one algorithm, which its own type
decides and never the token that claims to be signed with it: a public key that is taken for an
HMAC secret, `alg: none` and the like find nothing here (RFC 8725 sections 3.1 and 3.2).

Memory: the document while it is read, `DOCUMENT_BYTES_MAX`, and `KEYS_MAX` keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, final

import attrs
import httpx
import jwt
import msgspec
import structlog
import trio

from .. import config
from ..errors import ConfigurationError

log = structlog.get_logger()

ALGORITHMS: Final = {"RSA": "RS256", "OKP": "EdDSA"}
"""By key type. Symmetric keys do not belong into a document that anybody may read."""
DOCUMENT_BYTES_MAX: Final = 262_144
KEYS_MAX: Final = 32
RSA_BITS_MIN: Final = 2_048
"""RFC 7518 section 3.3."""
LOOK_S_MAX: Final = 3.0
"""How long a token may wait for the document; `server.hello_s_max` is longer."""
PAUSE_S: Final = 10.0
"""Between two looks that tokens cause: anybody can make up a key's name."""


@attrs.frozen
class Key:
    """A public key, and the one algorithm it is used with."""

    id: str | None
    algorithm: str
    public: Any
    """As PyJWT takes it."""


def read_keys(document: bytes) -> tuple[Key, ...]:
    """The keys of a JWK set that sign tokens, as the document orders them.

    Keys of other types, for other uses or too short are left out, as RFC 7517 section 5 asks.

    Raises:
      ValueError: it is no JWK set, or none of its keys can be used; one line.
    """
    try:
        found = msgspec.json.decode(document, type=dict[str, Any])["keys"]
        if not isinstance(found, list):
            raise TypeError
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError('it is no JWK set: {"keys": […]} is expected') from None
    keys = tuple(key for each in found[:KEYS_MAX] if (key := _read_key(each)) is not None)
    if not keys:
        raise ValueError("none of its keys is RSA of 2048 bits or more, or Ed25519, for signing")
    return keys


def _read_key(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    kty, name = jwk.get("kty"), jwk.get("kid")
    algorithm = ALGORITHMS.get(kty) if isinstance(kty, str) else None
    if algorithm is None or jwk.get("alg", algorithm) != algorithm:
        return None
    try:
        public = jwt.PyJWK(jwk, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kty == "RSA" and public.key_size < RSA_BITS_MIN:
        return None
    return Key(name if isinstance(name, str) else None, algorithm, public)


@final
class Keyring:
    """The keys that were read last; they stay while the document cannot be had."""

    def __init__(self, load: Callable[[], Awaitable[bytes]], *, refresh_s: float) -> None:
        """Without keys.

        Args:
          load: brings the document; may raise OSError or httpx.HTTPError.
          refresh_s: between two looks without a cause.
        """
        self._load = load
        self._refresh_s = refresh_s
        self._keys: tuple[Key, ...] = ()
        self._lock = trio.Lock()  # held while the document is read: many tokens share one look
        self._looked_at = -PAUSE_S

    def find(self, name: str | None, algorithm: str) -> Key | None:
        """The key of this name; of several keys a token must name one."""
        found = [key for key in self._keys if key.algorithm == algorithm]
        if name is None:
            return found[0] if len(found) == 1 else None
        return next((key for key in found if key.id == name), None)

    async def look(self) -> None:
        """Read the document now.

        Raises:
          ConfigurationError: that failed or took longer than `LOOK_S_MAX`, and the keys are what
            they were; one line.
        """
        self._looked_at = trio.current_time()
        try:
            with trio.fail_after(LOOK_S_MAX):
                document = await self._load()
            self._keys = read_keys(document)
        except trio.TooSlowError as error:
            raise ConfigurationError(
                f"the keys of auth cannot be read: not there after {LOOK_S_MAX:g} s"
            ) from error
        except (OSError, httpx.HTTPError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ConfigurationError(f"the keys of auth cannot be read: {reason}") from error

    async def look_again(self) -> None:
        """Read the document for a token whose key is not known, unless that was just done.

        Takes at most `LOOK_S_MAX`. Whether it helped is seen by `find`.
        """
        with trio.move_on_after(LOOK_S_MAX):
            async with self._lock:
                if trio.current_time() - self._looked_at >= PAUSE_S:
                    await self._look_or_log()

    async def run(self) -> None:
        """Read the document every `refresh_s` from now on, until cancelled."""
        while True:
            async with self._lock:
                await self._look_or_log()
            await trio.sleep(self._refresh_s if self._keys else min(self._refresh_s, PAUSE_S))

    async def _look_or_log(self) -> None:
        try:
            await self.look()
        except ConfigurationError as error:
            log.warning("keys_not_read", error=str(error), known=len(self._keys))


def open_keyring(settings: config.Auth) -> Keyring | None:
    """The keys that the settings name, not read yet; None where they name none."""
    if settings.jwks_file is not None:
        path = trio.Path(settings.jwks_file)

        async def load() -> bytes:
            async with await path.open("rb") as file:
                return _bounded(await file.read(DOCUMENT_BYTES_MAX + 1))

    elif settings.jwks_url is not None:
        url = settings.jwks_url

        async def load() -> bytes:
            return await _fetch(url)

    else:
        return None
    return Keyring(load, refresh_s=settings.jwks_refresh_s)


async def _fetch(url: str) -> bytes:
    """GET `url`; redirects are not followed: the operator named the place that is trusted."""
    document = b""
    async with (
        httpx.AsyncClient(timeout=LOOK_S_MAX, trust_env=False) as client,
        client.stream("GET", url, headers={"accept-encoding": "identity"}) as response,
    ):
        if response.status_code != 200:
            raise ValueError(f"{url} answers {response.status_code}")
        async for chunk in response.aiter_raw():
            if (
                len(document) <= DOCUMENT_BYTES_MAX
            ):  # httpx leaves generators behind when one breaks
                document += chunk
    return _bounded(document)


def _bounded(document: bytes) -> bytes:
    if len(document) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"it is longer than {DOCUMENT_BYTES_MAX} bytes")
    return document
