"""What operators look at: metrics and log."""

from __future__ import annotations

from . import log, metrics

__all__ = ["log", "metrics"]
