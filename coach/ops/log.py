"""Structured log lines on standard error. Essays, feedback and tokens are never logged.

So tracebacks show no local variables, as structlog's own would: a prompt and a provider's key are
among them.
"""

from __future__ import annotations

import logging
import sys

import structlog

from .. import config


def configure(settings: config.Log) -> None:
    """Set the process's log level and format. Called once, before anything logs."""
    level = getattr(logging, settings.level.upper())
    colours = settings.format == "console" and sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback
        )
        if settings.format == "console"
        else structlog.processors.JSONRenderer()
    )
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    exceptions: list[structlog.typing.Processor] = (
        []
        if settings.format == "console"
        else [structlog.processors.ExceptionRenderer(without_locals)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, force=True)
