"""A writer's session: the protocol, the outbox, feedback turns, submissions."""

from __future__ import annotations

from .auth import Authority, Identity, open_authority
from .link import Connection, serve_session
from .pacer import Pacer
from .registry import Sessions, Waitable, open_sessions
from .resume import Records, erase_mail, revoke_sessions
from .services import Route, Services

__all__ = [
    "Authority",
    "Connection",
    "Identity",
    "Pacer",
    "Records",
    "Route",
    "Services",
    "Sessions",
    "Waitable",
    "erase_mail",
    "open_authority",
    "open_sessions",
    "revoke_sessions",
    "serve_session",
]
