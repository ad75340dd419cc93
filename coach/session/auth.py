"""Who a client is: JSON Web Tokens, signed with the operator's key or an identity provider's.

The algorithm decides which key is looked for: HS256 is checked with `auth.secret` alone, RS256 and
EdDSA with the keys of the JWK set alone.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from typing import Any, Final, Literal, cast, get_args

import attrs
import jwt
import msgspec
from jwt.utils import base64url_decode

from .. import config
from ..errors import ConfigurationError, Unauthenticated
from .keys import ALGORITHMS, Keyring, open_keyring

Role = Literal["student", "educator", "operator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
_ORG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_USER: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.@|:+=~-]{0,127}")
"""As identity providers name people: `auth0|5f7c…`, `f:<uuid>:ana`, base64url, e-mail addresses."""


@attrs.frozen
class Identity:
    """A verified caller."""

    user: str
    org: str
    role: Role
    expires_at: float
    """Wall clock, seconds since the epoch."""


class _UnknownKey(Unauthenticated):
    """A token names a key that is not known, yet."""


class Authority:
    """Issues tokens (HS256), and verifies them (HS256, RS256, EdDSA)."""

    def __init__(
        self,
        secret: str | None,
        *,
        token_s: float,
        leeway_s: float,
        keys: Keyring | None = None,
        audience: str | None = None,
        issuer: str | None = None,
    ) -> None:
        """Made by `open_authority`.

        Args:
          secret: of HS256; None refuses such tokens, and none can be issued.
          token_s: life of the tokens that are issued.
          leeway_s: by how much clocks may differ.
          keys: of the identity provider.
          audience: what `aud` must be or contain; None: a token must have none.
          issuer: what `iss` must be; None: anything.
        """
        self._secret = secret
        self._token_s = token_s
        self._leeway_s = leeway_s
        self.keys = keys
        self._audience = audience
        self._issuer = issuer

    def issue(self, *, user: str, org: str, role: str) -> tuple[str, int]:
        """Make a token for `user` of `org`; returns it and when it expires (seconds since epoch).

        Raises:
          ValueError: a name or role that `verify` would refuse, or there is no secret.
        """
        if self._secret is None:
            raise ValueError("auth.secret is not set: tokens come from your identity provider")
        if role not in ROLES:
            raise ValueError(f"role {role!r}: one of {', '.join(ROLES)}")
        if not _USER.fullmatch(user):
            raise ValueError(
                f"{user!r} is not a name of letters, digits and _.@|:+=~-, at most 128"
            )
        if not _ORG.fullmatch(org):
            raise ValueError(f"{org!r} is not a name of letters, digits and _.@-, at most 64")
        now = int(time.time())
        expires_at = now + int(self._token_s)
        claims = {"sub": user, "org": org, "role": role, "iat": now, "exp": expires_at}
        if self._audience is not None:
            claims["aud"] = self._audience
        if self._issuer is not None:
            claims["iss"] = self._issuer
        return jwt.encode(claims, self._secret, algorithm="HS256"), expires_at

    def verify(self, token: str) -> Identity:
        """Return who `token` speaks for, by the keys that are known. Not a checkpoint.

        Raises:
          Unauthenticated: bad signature, expired, for others, another algorithm or issuer, a key
            that is not known, or claims missing.
        """
        return self._verify(token, self._leeway_s)

    def recognise_bearer(self, header: str, *, within_s: float) -> Identity:
        """As `verify` of an HTTP request's token, which may have ended up to `within_s` ago."""
        return self._verify(_bearer(header), self._leeway_s + within_s)

    def _verify(self, token: str, leeway_s: float) -> Identity:
        try:
            header = _header(token)
            algorithm = str(header.get("alg"))
            claims = jwt.decode(
                token,
                self._key(algorithm, header.get("kid")),
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=leeway_s,
                options={"require": self._required},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired: get a new one") from None
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(f"not a valid token: {error}") from None
        user, org = claims["sub"], claims.get("org", "default")
        role = claims.get("role", "student")
        names_are_good = all(
            isinstance(name, str) and form.fullmatch(name)
            for name, form in ((user, _USER), (org, _ORG))
        )
        if not names_are_good or role not in ROLES:
            raise Unauthenticated("not a valid token: sub, org or role is malformed")
        return Identity(user, org, cast("Role", role), float(claims["exp"]))

    async def identify(self, token: str) -> Identity:
        """As `verify`, and look for new keys of the identity provider where one is not known.

        A checkpoint only then, of `LOOK_S_MAX` at most.

        Raises:
          Unauthenticated: see `verify`.
        """
        try:
            return self.verify(token)
        except _UnknownKey:
            assert self.keys is not None
            await self.keys.look_again()
            return self.verify(token)

    async def identify_bearer(self, header: str) -> Identity:
        """Return who an HTTP request speaks for, by its `Authorization` header.

        Raises:
          Unauthenticated: see `verify`; or there is no token in it.
        """
        return await self.identify(_bearer(header))

    @property
    def _required(self) -> list[str]:
        claims = {"aud": self._audience, "iss": self._issuer}
        return ["exp", "sub", *(name for name, value in claims.items() if value is not None)]

    def _key(self, algorithm: str, name: object) -> Any:
        """The key that a token of this header must be signed with.

        Raises:
          Unauthenticated: there is none.
        """
        if algorithm == "HS256" and self._secret is not None:
            return self._secret
        if self.keys is None or algorithm not in ALGORITHMS.values():
            raise Unauthenticated("not a valid token: its algorithm is not allowed")
        key = self.keys.find(name if isinstance(name, str) else None, algorithm)
        if key is None:
            raise _UnknownKey("not a valid token: its key is not known")
        return key.public


def _bearer(header: str) -> str:
    """The token of an `Authorization` header.

    Raises:
      Unauthenticated: there is none.
    """
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("send the token as: Authorization: Bearer …")
    return token


def _header(token: str) -> dict[str, Any]:
    """The header of a token that is not checked yet: which key it asks for.

    PyJWT's own way to it reads the whole token, which is then read again to be checked.

    Raises:
      jwt.DecodeError: there is none.
    """
    try:
        return msgspec.json.decode(base64url_decode(token.partition(".")[0]), type=dict[str, Any])
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise jwt.DecodeError(f"no header in it: {error}") from error


def open_authority(settings: config.Settings) -> Authority:
    """Make the authority that the settings describe.

    In open mode without `auth.secret` a random key is made once and kept, readable by the owner
    only, in `data_dir`, so that all workers, and the next start, share it. The keys of an identity
    provider are not read yet: that is `authority.keys`' to do.

    Raises:
      ConfigurationError: the key file can be neither read nor made.
    """
    auth = settings.auth
    secret = auth.secret
    if secret is None and auth.mode == "open":
        secret = _kept_secret(settings)
    return Authority(
        secret,
        token_s=auth.token_s,
        leeway_s=auth.leeway_s,
        keys=open_keyring(auth),
        audience=auth.audience,
        issuer=auth.issuer,
    )


def _kept_secret(settings: config.Settings) -> str:
    path = settings.data_path / "auth.secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"auth.secret.{os.getpid()}")
        descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, path)  # atomic, and fails where another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"cannot keep a signing key in {path}: {error.strerror}"
        ) from error
