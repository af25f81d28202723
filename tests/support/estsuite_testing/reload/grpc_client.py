"""Unary calls of gRPC: channels verify by themselves, so a TLS connection beside sees the certificate."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import grpc  # type: ignore[import-untyped]

from estsuite_testing.reload.load import Connection

_METHOD = "/example.Echo/Echo"
# A connection of its own for each channel: by default equal channels share one.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
_CALL_S = 10.0


class GRPCClient:
    """Connects for calls that echo their request."""

    alpn: tuple[str, ...] = ("h2",)

    async def connect(self, port: int, context: ssl.SSLContext) -> Connection:
        """See the certificate by a handshake, then open a channel."""
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        writer.transport.abort()
        (root,) = context.get_ca_certs(binary_form=True)
        credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(root).encode())
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, _OPTIONS)
        try:
            await channel.channel_ready()
        except BaseException:  # Cleanup, then raised again.
            await channel.close()
            raise
        return _Channel(channel)


class _Channel:
    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._call = channel.unary_unary(_METHOD)

    async def request(self) -> None:
        """Call once and compare the answer.

        Raises:
            RuntimeError: another answer, or none.
        """
        try:
            answer = await self._call(b"ok", timeout=_CALL_S)
        except grpc.RpcError as exc:
            raise RuntimeError(str(exc)) from exc
        if answer != b"ok":
            raise RuntimeError(f"answered {answer!r}")

    def ended(self) -> bool:
        """Return whether the channel has lost its connection."""
        return self._channel.get_state() is not grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()
