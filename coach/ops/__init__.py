"""What operators look at: metrics, log, flags."""

from __future__ import annotations

from . import health, log, metrics
from .flags import FLAGS, Flag, Flags, read_flags, write_flag

__all__ = ["FLAGS", "Flag", "Flags", "health", "log", "metrics", "read_flags", "write_flag"]
