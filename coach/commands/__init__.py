"""The groups of the command line, each in its module: `coach costs`, `coach flags` and so on.

What they have in common, such as where the settings are and how Redis is reached, is in `options`.
"""

from . import (
    calibrate,
    costs,
    evaluate,
    flags,
    limits,
    queue,
    quota,
    regrade,
    sessions,
    users,
    webhooks,
)
from .options import ConfigOption, DataDirOption, load

__all__ = [
    "ConfigOption",
    "DataDirOption",
    "calibrate",
    "costs",
    "evaluate",
    "flags",
    "limits",
    "load",
    "queue",
    "quota",
    "regrade",
    "sessions",
    "users",
    "webhooks",
]
