"""An OTLP/gRPC receiver of logs, by grpcio and the service's published definition."""

from __future__ import annotations

import importlib
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from estsuite_testing.http_receiver import HTTPReceiver

_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
grpc: Any = importlib.import_module("grpc")
aio: Any = importlib.import_module("grpc.aio")


class GRPCCollector:
    """Hands log records to a receiver; the first request fails with UNAVAILABLE."""

    def __init__(self, receiver: HTTPReceiver) -> None:
        self._receiver = receiver
        self._failures = 1
        self.tokens: list[str] = []
        self.port = 0
        self._server: Any = None

    async def start(self) -> None:
        certificates = self._receiver.certificates
        pair = (certificates.key_file.read_bytes(), certificates.certificate_file.read_bytes())
        self._server = aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportLogsServiceRequest.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        generic = grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler})
        self._server.add_generic_rpc_handlers((generic,))
        credentials = grpc.ssl_server_credentials([pair])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _export(
        self, request: ExportLogsServiceRequest, context: Any
    ) -> ExportLogsServiceResponse:
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        if self._failures:
            self._failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return self._receiver.take_logs(request)
