"""What the blueprints need of the application that they are part of, and who asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from quart import Response, current_app, request

from .errors import Forbidden

if TYPE_CHECKING:
    from . import config
    from .backend import Backend
    from .session import Identity, Services, Sessions


class Parts(Protocol):
    """What they need of an open worker."""

    @property
    def backend(self) -> Backend:
        """Redis and the queue."""

    @property
    def services(self) -> Services:
        """Who may come in."""

    @property
    def sessions(self) -> Sessions:
        """Whether the worker drains."""


class Host(Protocol):
    """The application."""

    settings: config.Settings

    def opened(self) -> Parts:
        """The parts; only while the worker serves."""

    async def send_static_file(self, filename: str) -> Response:
        """A file of the pages."""


def current_host() -> Host:
    """The application that answers this request."""
    app: Any = current_app
    found: Host = app._get_current_object()  # noqa: SLF001  Quart's own way
    return found


async def caller() -> Identity:
    """Who asks.

    Raises:
      Unauthenticated: nobody says.
    """
    authority = current_host().opened().services.authority
    return await authority.identify_bearer(request.headers.get("Authorization", ""))


async def caller_as(role: str, what: str) -> Identity:
    """Who asks, if that is somebody of this role.

    Args:
      role: `operator` or `educator`.
      what: for whom it is, in the words of the refusal: "reviews are for educators".

    Raises:
      Unauthenticated, Forbidden: it is not.
    """
    identity = await caller()
    if identity.role != role:
        raise Forbidden(f"{what}: coach token --role {role}")
    return identity
