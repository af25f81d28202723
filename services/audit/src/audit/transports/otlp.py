"""OpenTelemetry logs over OTLP/HTTP or OTLP/gRPC (OTLP 1.5).

A partial success says how many records were rejected, not which: the batch is halved until it is
known. Needs ``opentelemetry-proto``, and ``grpcio`` for gRPC.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from audit.formats import otlp
from audit.formats.entry import Entry
from audit.sink_settings import OTLPSink
from audit.transports.http_client import HTTPClient, bearer, check, pause
from audit.transports.transport import BatchRefused, Outcome, Prepared, SinkBusy
from estcore.clock import Clock

_PROTOBUF = {"Content-Type": "application/x-protobuf"}
_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_REFUSED = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE", "DATA_LOSS"})


class OTLPHTTPTransport:
    """Requests to ``/v1/logs``."""

    acknowledged = True

    def __init__(self, sink: OTLPSink, clock: Clock) -> None:
        self._sink, self._client = sink, HTTPClient(sink, clock)

    async def open(self) -> None:
        """Begin a session.

        Raises:
            OSError: a file cannot be used.
        """
        self._client.open()

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as a log record."""
        return Prepared(entry.key, otlp.render(entry), entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Export log records.

        Raises:
            BatchRefused: refused for good, in whole or in part.
            OSError: not reached, or not now.
        """
        body = otlp.request([one.payload for one in prepared]).SerializeToString()
        headers = {**_PROTOBUF, **bearer(self._sink.token_file)}
        answer = check(await self._client.post(self._sink.url, body, headers))
        _check_partial(ExportLogsServiceResponse.FromString(answer.body))
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait."""
        await pause(seconds)

    async def close(self) -> None:
        """End the session."""
        await self._client.close()


class OTLPGRPCTransport:
    """One channel to a collector."""

    acknowledged = True

    def __init__(self, sink: OTLPSink) -> None:
        self._sink = sink
        self._channel: Any = None

    async def open(self) -> None:
        """Read the TLS files and open a channel.

        Raises:
            OSError: a file cannot be used.
        """
        grpc = importlib.import_module("grpc")
        aio = importlib.import_module("grpc.aio")
        sink = self._sink
        certificate = sink.certificate_file.read_bytes() if sink.certificate_file else None
        key = sink.key_file.read_bytes() if sink.key_file else None
        credentials = grpc.ssl_channel_credentials(sink.ca_file.read_bytes(), key, certificate)
        options = [("grpc.ssl_target_name_override", sink.server_name)] if sink.server_name else []
        self._channel = aio.secure_channel(urlsplit(sink.url).netloc, credentials, options=options)

    def prepare(self, entry: Entry) -> Prepared:
        """Return an entry as a log record."""
        return Prepared(entry.key, otlp.render(entry), entry.log_index)

    async def deliver(self, prepared: Sequence[Prepared]) -> Outcome:
        """Export log records.

        Raises:
            BatchRefused: refused for good, in whole or in part.
            OSError: not reached, or not now.
        """
        errors = importlib.import_module("grpc").RpcError
        call = self._channel.unary_unary(
            _METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=ExportLogsServiceResponse.FromString,
        )
        metadata = [(k.lower(), v) for k, v in bearer(self._sink.token_file).items()]
        try:
            answer = await call(
                otlp.request([one.payload for one in prepared]),
                timeout=self._sink.timeout_s,
                metadata=metadata,
            )
        except errors as exc:
            code, details = exc.code().name, exc.details()
            if code in _REFUSED:
                raise BatchRefused(f"{code}: {details}") from exc
            raise SinkBusy(f"{code}: {details}") from exc
        _check_partial(answer)
        return Outcome()

    async def watch(self, seconds: float) -> None:
        """Wait."""
        await pause(seconds)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()


def _check_partial(answer: ExportLogsServiceResponse) -> None:
    rejected = answer.partial_success.rejected_log_records
    if rejected:
        raise BatchRefused(
            f"{rejected} log records rejected: {answer.partial_success.error_message}"
        )
