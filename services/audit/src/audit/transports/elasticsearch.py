"""Elasticsearch and OpenSearch: ``_bulk`` with ``create`` and the record id as document id.

409 says that the document is there: it was delivered before. 429 and 5xx of an item send the batch
again, which then finds the others there. Other statuses of an item refuse it for good.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from audit.formats import ecs
from audit.formats.entry import Entry
from audit.sink_settings import ElasticsearchSink
from audit.transports.http_client import HTTPClient, bearer, check, pause, secret_of
from audit.transports.transport import Outcome, Prepared, SinkBusy
from estcore.clock import Clock

_NDJSON = {"Content-Type": "application/x-ndjson"}
_THERE, _BUSY, _FAULT = 409, 429, 500


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
        error = result.get("error") or {}
        reason = f"HTTP {status}: {error.get('type', '')} {error.get('reason', '')}".strip()
        if status == _BUSY or status >= _FAULT:
            raise SinkBusy(reason)
        refused[one.key] = reason
    return Outcome(refused)
