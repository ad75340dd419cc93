"""Who a client is: JSON Web Tokens, signed with the operator's key."""

from __future__ import annotations

import os
import re
import secrets
import time
from typing import Final, Literal, cast, get_args

import attrs
import jwt

from .. import config
from ..errors import ConfigurationError, Unauthenticated

Role = Literal["student", "educator", "operator"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


@attrs.frozen
class Identity:
    """A verified caller."""

    user: str
    org: str
    role: Role
    expires_at: float
    """Wall clock, seconds since the epoch."""


class Authority:
    """Issues and verifies tokens (HS256)."""

    def __init__(self, secret: str, *, token_s: float, leeway_s: float) -> None:
        self._secret = secret
        self._token_s = token_s
        self._leeway_s = leeway_s

    def issue(self, *, user: str, org: str, role: str) -> tuple[str, int]:
        """Make a token for `user` of `org`; returns it and when it expires (seconds since epoch).

        Raises:
          ValueError: a name or role that `verify` would refuse.
        """
        if role not in ROLES:
            raise ValueError(f"role {role!r}: one of {', '.join(ROLES)}")
        for name in (user, org):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a name of letters, digits and _.@-, at most 64")
        now = int(time.time())
        expires_at = now + int(self._token_s)
        claims = {"sub": user, "org": org, "role": role, "iat": now, "exp": expires_at}
        return jwt.encode(claims, self._secret, algorithm="HS256"), expires_at

    def verify(self, token: str) -> Identity:
        """Return who `token` speaks for.

        Raises:
          Unauthenticated: bad signature, expired, another algorithm, or claims missing.
        """
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                leeway=self._leeway_s,
                options={"require": ["exp", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired: get a new one") from None
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(f"not a valid token: {error}") from None
        user, org = claims["sub"], claims.get("org", "default")
        role = claims.get("role", "student")
        names_are_good = all(isinstance(n, str) and _NAME.fullmatch(n) for n in (user, org))
        if not names_are_good or role not in ROLES:
            raise Unauthenticated("not a valid token: sub, org or role is malformed")
        return Identity(user, org, cast("Role", role), float(claims["exp"]))

    def verify_bearer(self, header: str) -> Identity:
        """Return who an HTTP request speaks for, by its `Authorization` header.

        Raises:
          Unauthenticated: see `verify`; or there is no token in it.
        """
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("send the token as: Authorization: Bearer …")
        return self.verify(token)


def open_authority(settings: config.Settings) -> Authority:
    """Make the authority that the settings describe.

    In open mode without `auth.secret` a random key is made once and kept, readable by the owner
    only, in `data_dir`, so that all workers, and the next start, share it.

    Raises:
      ConfigurationError: the key file can be neither read nor made.
    """
    secret = settings.auth.secret or _kept_secret(settings)
    return Authority(secret, token_s=settings.auth.token_s, leeway_s=settings.auth.leeway_s)


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
