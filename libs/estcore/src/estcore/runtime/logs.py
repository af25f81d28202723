"""JSON logs, one object a line on standard error. Audit is not logging."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from typing_extensions import override

_RENAMED = {"levelname": "level"}


class JSONFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, service, fields."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._fixed = {"service": service, "instance": instance}

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds, ms = divmod(int(record.created * 1000), 1000)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ms:03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._fixed,
            "logger": record.name,
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = f"{type(error).__name__}: {error}"
            if record.levelno >= logging.ERROR:
                line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """Return ``extra`` for a log call: ``log.info("issued", extra=fields(serial=…))``."""
    return {"fields": values}


def configure(service: str, instance: str, level: str) -> None:
    """Send every log line of the process through the JSON formatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter(service, instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for noisy in ("nats", "aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
