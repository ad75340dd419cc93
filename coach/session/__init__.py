"""A writer's session: the protocol, the outbox, feedback turns, submissions."""

from __future__ import annotations

from .auth import Authority, Identity, open_authority
from .pacer import Pacer
from .registry import Sessions
from .services import Route, Services
from .session import Connection, serve_session

__all__ = [
    "Authority",
    "Connection",
    "Identity",
    "Pacer",
    "Route",
    "Services",
    "Sessions",
    "open_authority",
    "serve_session",
]
