"""Elasticsearch and OpenSearch: ``_bulk`` with ``create`` and the record id as document id.

409 says that the document is there: it was delivered before. 400, 413 and 422 of an item refuse the
document for good, unless the error is about the index or its pipeline. That and every other status
(429, 5xx, 403 of an index blocked for writing) sends the batch again later, which then finds the
others there.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from audit.formats import ecs
from audit.formats.entry import Entry
from audit.sink_settings import ElasticsearchSink
from audit.transports.http_client import HTTPClient, bearer, check, pause, secret_of
from audit.transports.transport import Outcome, Prepared, SinkBusy
from estcore.clock import Clock

_NDJSON = {"Content-Type": "application/x-ndjson"}
_THERE, _FAULT = 409, 500
_REFUSED = frozenset({400, 413, 422})
_OF_THE_INDEX = frozenset(
    {
        "cluster_block_exception",
        "index_closed_exception",
        "index_not_found_exception",
        "invalid_index_name_exception",
        "process_cluster_event_timeout_exception",
        "validation_exception",
    }
)
"""Errors of an item that an operator corrects: a dead letter for each record would not help."""
_NO_PIPELINE = re.compile(r"pipeline with id \[[^]]*\] does not exist")


class ElasticsearchTransport:
    """Bulk requests to one cluster."""

    acknowledged = True

    def __init__(self, sink: ElasticsearchSink, clock: Clock) -> None:
        self._sink, self._client = sink, HTTPClient(sink, clock)

    async def open(self) -> None:
        """Begin a session.

        Raises:
            OSError: a file cannot be used.
        """
        self._client.open()

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as the two lines of a bulk request."""
        action = {"create": {"_id": entry.key}}
        lines = (json.dumps(one, separators=(",", ":")) for one in (action, ecs.render(entry)))
        return Prepared(entry.key, "\n".join(lines) + "\n", entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Create documents.

        Raises:
            BatchRefused: the request is refused for good.
            OSError: not reached, or not now.
        """
        url = f"{self._sink.url.rstrip('/')}/{self._sink.index}/_bulk"
        body = "".join(one.payload for one in prepared).encode()
        answer = check(await self._client.post(url, body, {**_NDJSON, **self._authorization()}))
        try:
            items: list[dict[str, Any]] = json.loads(answer.body)["items"]
            results = [next(iter(item.values())) for item in items]
        except (ValueError, KeyError, TypeError, StopIteration) as exc:
            raise ConnectionAbortedError("the answer is none of a bulk request") from exc
        if len(results) != len(prepared):
            raise ConnectionAbortedError("the answer has another number of items")
        return _outcome(prepared, results)

    async def watch(self, seconds: float) -> None:
        """Wait."""
        await pause(seconds)

    async def close(self) -> None:
        """End the session."""
        await self._client.close()

    def _authorization(self) -> dict[str, str]:
        if self._sink.user is not None and self._sink.password_file is not None:
            pair = f"{self._sink.user}:{secret_of(self._sink.password_file)}"
            return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")}
        return bearer(self._sink.api_key_file, "ApiKey")


def _outcome(prepared: Sequence[Prepared], results: Sequence[dict[str, Any]]) -> Outcome:
    refused = {}
    for one, result in zip(prepared, results, strict=True):
        status = int(result.get("status", _FAULT))
        if status < 300 or status == _THERE:  # noqa: PLR2004 - RFC 9110 section 15.3
            continue
        kind, reason = _error(result)
        text = f"HTTP {status}: {kind} {reason}".strip()
        if status not in _REFUSED or kind in _OF_THE_INDEX or _NO_PIPELINE.search(reason):
            raise SinkBusy(text)
        refused[one.key] = text
    return Outcome(refused)


def _error(result: dict[str, Any]) -> tuple[str, str]:
    """Return type and reason of an item's error, with the cause where the reason is general."""
    error = result.get("error") or {}
    if not isinstance(error, dict):
        return "", str(error)
    reason, cause = str(error.get("reason") or ""), error.get("caused_by") or {}
    if isinstance(cause, dict) and cause.get("reason"):
        reason = f"{reason}: {cause['reason']}"
    return str(error.get("type") or ""), reason
