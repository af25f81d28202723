"""An HTTPS receiver of audit entries, written from the documentation of its protocols.

- Splunk HTTP Event Collector: concatenated JSON objects, error codes, indexer acknowledgement.
- Elasticsearch ``_bulk``: create with document ids, a status an item.
- OTLP/HTTP logs: protobuf, partial success.
- A webhook: whatever comes.

``faults`` are statuses for the next requests, in turn; 0 closes the connection.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from estsuite_testing.siem import SIEM

Handler = Callable[[web.Request, bytes], Awaitable[web.Response]]
TOKEN = "a-token-of-a-test"


class HTTPReceiver:
    """Takes entries by any of the protocols; ``order`` are their record ids as they came."""

    def __init__(self, certificates: SIEM) -> None:
        self.certificates = certificates
        self.faults: list[int] = []
        self.order: list[str] = []
        self.documents: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.refused: set[str] = set()
        self.busy: set[str] = set()
        self.unacknowledged = 0
        self.port = 0
        self._pending: dict[int, list[str]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/services/collector/event", self._with_faults(self._splunk))
        app.router.add_post("/services/collector/ack", self._acknowledge)
        app.router.add_post("/{index}/_bulk", self._with_faults(self._bulk))
        app.router.add_post("/v1/logs", self._with_faults(self._otlp))
        app.router.add_post("/hook", self._with_faults(self._hook))
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificates.certificate_file, self.certificates.key_file)
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def url(self, path: str = "") -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    def _with_faults(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            body = await request.read()
            self.note_request(request, body)
            status = await self.next_fault()
            if status is None:
                return await handler(request, body)
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return web.Response(status=status, headers={"Retry-After": "0"}, text="a fault")

        return handle

    def note_request(self, request: web.Request, body: bytes) -> None:
        """Keep a request for the test."""
        self.requests.append((dict(request.headers), body))

    async def next_fault(self) -> int | None:
        """Return the status of the next answer, 0 to close the connection, None to be well."""
        return self.faults.pop(0) if self.faults else None

    def refuses(self, key: str) -> bool:
        """Whether an entry is refused for good."""
        return key in self.refused

    def is_busy(self, key: str) -> bool:
        """Whether an entry of a bulk request is refused for now."""
        busy = key in self.busy
        self.busy.discard(key)
        return busy

    def _take(self, key: str, document: dict[str, Any]) -> None:
        self.order.append(key)
        self.documents[key] = document

    async def _splunk(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization") != f"Splunk {TOKEN}":
            return web.json_response({"text": "Invalid token", "code": 4}, status=403)
        decoder, text, events = json.JSONDecoder(), body.decode(), []
        while text := text.lstrip():
            event, end = decoder.raw_decode(text)
            events.append(event)
            text = text[end:]
        keys = [event["fields"]["record_id"] for event in events]
        at = next((n for n, key in enumerate(keys) if self.refuses(key)), None)
        if at is not None:
            answer = {"text": "Invalid data format", "code": 6, "invalid-event-number": at}
            return web.json_response(answer, status=400)
        number = len(self._pending)
        self._pending[number] = keys
        if self.unacknowledged:
            self.unacknowledged -= 1
            self._pending[number] = []
        else:
            for key, event in zip(keys, events, strict=True):
                self._take(key, event)
        return web.json_response({"text": "Success", "code": 0, "ackId": number})

    async def _acknowledge(self, request: web.Request) -> web.Response:
        asked = (await request.json())["acks"]
        assert request.headers["X-Splunk-Request-Channel"]
        return web.json_response({"acks": {str(n): bool(self._pending.get(n)) for n in asked}})

    async def _bulk(self, request: web.Request, body: bytes) -> web.Response:
        assert request.headers["Content-Type"] == "application/x-ndjson"
        assert body.endswith(b"\n")
        lines = [json.loads(line) for line in body.splitlines()]
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            key = action["create"]["_id"]
            if self.is_busy(key):
                error = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
                items.append({"create": {"_id": key, "status": 429, "error": error}})
            elif self.refuses(key):
                error = {"type": "document_parsing_exception", "reason": "failed to parse"}
                items.append({"create": {"_id": key, "status": 400, "error": error}})
            elif key in self.documents:
                items.append({"create": {"_id": key, "status": 409, "error": {"type": "conflict"}}})
            else:
                self._take(key, document)
                items.append({"create": {"_id": key, "status": 201, "result": "created"}})
        return web.json_response({"errors": False, "items": items})

    async def _otlp(self, request: web.Request, body: bytes) -> web.Response:
        assert request.headers["Content-Type"] == "application/x-protobuf"
        answer = self.take_logs(ExportLogsServiceRequest.FromString(body))
        return web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf")

    def take_logs(self, asked: ExportLogsServiceRequest) -> ExportLogsServiceResponse:
        """Take log records, over HTTP or gRPC."""
        records = [
            record
            for resource in asked.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        keys = [
            next(a.value.string_value for a in record.attributes if a.key == "log.record.uid")
            for record in records
        ]
        answer = ExportLogsServiceResponse()
        rejected = [key for key in keys if self.refuses(key)]
        if rejected:
            answer.partial_success.CopyFrom(
                ExportLogsPartialSuccess(rejected_log_records=len(rejected), error_message="no")
            )
        for key, record in zip(keys, records, strict=True):
            if key not in rejected:
                self._take(key, json.loads(record.body.string_value))
        return answer

    async def _hook(self, request: web.Request, body: bytes) -> web.Response:
        events = json.loads(body)
        keys = [event["id"] for event in events]
        if [key for key in keys if self.refuses(key)]:
            return web.Response(status=422, text="a field is wrong")
        for key, event in zip(keys, events, strict=True):
            self._take(key, event)
        return web.Response(status=204)
