"""Logs, one line each on standard error: JSON, or text for a terminal. Audit is not logging."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json
from typing_extensions import override

from estcore.clock import monotonic_s
from estcore.display import visible
from estcore.messages.text import without_surrogates

_AGAIN_S = 60.0


def _of_a_server(error: BaseException) -> bool:
    """Whether PostgreSQL, NATS or the system refused something: no trace says more."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in {"asyncpg", "nats"}


def _no_trace() -> dict[str, str]:
    return {}


_trace: Callable[[], dict[str, str]] = _no_trace


def use_trace(ids: Callable[[], dict[str, str]]) -> None:
    """Add the ids of the trace in progress, which ``ids`` returns, to lines from now on."""
    global _trace
    _trace = ids


class JSONFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, service, fields."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._fixed = {"service": service, "instance": instance}
        self._second, self._text = 0, ""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds, ms = divmod(int(record.created * 1000), 1000)
        if seconds != self._second:
            self._second = seconds
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        line: dict[str, Any] = {
            "time": f"{self._text}.{ms:03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._fixed,
            "logger": record.name,
        }
        line.update(_trace())
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = f"{type(error).__name__}: {error}"
            if record.levelno >= logging.ERROR and not _of_a_server(error):
                line["trace"] = self.formatException(record.exc_info)
        try:
            text = to_json(line, fallback=str).decode()
        except ValueError:
            # The handler of the standard library would print the record's arguments instead.
            text = to_json(without_surrogates(line), fallback=_str).decode()
        # A log is read with tail and kubectl logs, in a terminal.
        return visible(text)


class TerminalFormatter(logging.Formatter):
    """Formats a record for a person: time, level, message, fields as ``name=value``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        values = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            values["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        shown = " ".join(f"{k}={_short(v)}" for k, v in values.items() if v not in (None, "", []))
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        return visible(f"{moment} {level}{record.getMessage()}  {shown}".rstrip())


def _short(value: object) -> str:
    text = str(without_surrogates(str(value)))
    return f'"{text}"' if " " in text else text


def _str(value: object) -> str:
    return str(without_surrogates(str(value)))


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """Return ``extra`` for a log call: ``log.info("issued", extra=fields(serial=…))``."""
    return {"fields": values}


class Repetition:
    """A warning that repeats while something is unavailable: once a minute, and when it changes."""

    def __init__(self, log: logging.Logger, message: str) -> None:
        self._log, self._message = log, message
        self._last: tuple[dict[str, Any], float] = ({}, -_AGAIN_S)

    def warn(self, **values: Any) -> None:
        """Write the line with these fields, unless it was written with them a moment ago."""
        now = monotonic_s()
        if values == self._last[0] and now - self._last[1] < _AGAIN_S:
            return
        self._last = (values, now)
        self._log.warning(self._message, extra=fields(**values))

    def over(self) -> None:
        """Write the next line at once: what was unavailable is back."""
        self._last = ({}, -_AGAIN_S)


def _says_something(record: logging.LogRecord) -> bool:
    """Drop what asyncio says of itself whenever NATS ends a connection with TLS."""
    return not record.getMessage().startswith("returning true from eof_received()")


def configure(service: str, instance: str, level: str, *, text_on_terminal: bool = False) -> None:
    """Send every log line of the process through the JSON formatter.

    With ``text_on_terminal`` a person at a terminal reads text.
    """
    handler = logging.StreamHandler(sys.stderr)
    readable = text_on_terminal and sys.stderr.isatty()
    handler.setFormatter(TerminalFormatter() if readable else JSONFormatter(service, instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for noisy in ("nats", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_says_something)
    # What aiohttp says of a request by itself repeats octets of it, credentials among them.
    for name in ("aiohttp.access", "aiohttp.server", "aiohttp.web"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
