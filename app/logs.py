"""Structured logs: one line per event; JSON where a machine reads them, plain text at a terminal."""

import logging
import sys

import structlog

from app.settings import get_settings


def configure_logs() -> None:
    """Set up once per process. Ids and counts are logged, never prompts, keys or completions."""
    level = logging.getLevelNamesMapping().get(get_settings().log_level.upper(), logging.INFO)
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=max(level, logging.WARNING), format="%(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
