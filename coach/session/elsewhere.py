"""A turn that another worker runs: what this one knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

import attrs
import trio

from . import wire
from .turn import Interrupted
from .wire import error_message

if TYPE_CHECKING:
    from ..errors import CoachError
    from .session import Session


@final
@attrs.define(eq=False, kw_only=True)
class Elsewhere:
    """A turn that runs on the worker which had the session before, and is told to this one."""

    request: str = ""
    draft: str = ""
    session: Session | None = None
    worker: str
    epoch: int
    """Of that worker's."""
    cancel_there: Callable[[Elsewhere], None]
    """Asks that worker to end it."""
    is_retold: bool = False
    """That worker says it from the beginning, and nothing of it was heard here yet."""
    outcome: str | None = None
    done: trio.Event = attrs.field(factory=trio.Event)

    def hear(self, message: wire.ServerMessage) -> None:
        """`message`, which is about this turn, is told to the student now."""
        self.is_retold = False
        if isinstance(message, wire.Done | wire.Error):
            self._end("done" if isinstance(message, wire.Done) else message.code)

    def cancel(self, error: CoachError) -> None:
        """End it: the student is told at once, the worker where it runs soon."""
        if self.outcome is None:
            self.cancel_there(self)
            self.fail(error)

    def fail(self, error: CoachError) -> None:
        """Tell the student that there will be no (more) feedback."""
        assert self.session is not None
        if self.outcome is None:
            self.session.outbox.send(error_message(error, request=self.request))
            self._end(error.code)

    def retell(self) -> None:
        """What was said before is not here: it cannot go on."""
        if not self.is_retold:
            self.cancel(Interrupted("the server has lost a part of it: ask again"))

    def _end(self, outcome: str) -> None:
        assert self.session is not None
        self.outcome = outcome
        self.done.set()
        self.session.drop_elsewhere(self)
