"""Structured logs: an event is a noun phrase with fields. Prompts and generated text are never logged."""

import logging
import sys

import structlog


def configure(*, level: str, form: str, service: str) -> None:
    """Send this process's log to stderr, as text for people or as JSON lines; those name the service each."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if form == "text" else "iso", utc=form == "json"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    if form == "json":
        structlog.contextvars.bind_contextvars(service=service)


def get() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger
