"""Seeing which certificate a service presents."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from hashlib import sha256

from estclient.errors import NotInUse
from estcore.clock import monotonic_s

_BETWEEN_S = 0.5
_CONNECT_S = 5


async def presented_fingerprint(host: str, port: int, *, server_name: str | None = None) -> str:
    """Return SHA-256 of the certificate the service presents, hexadecimal.

    Nothing is sent and nothing is trusted: the fingerprint is compared with a certificate of
    our own, which is stronger than any path validation.

    Raises:
        OSError, TimeoutError: no TLS connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(_CONNECT_S):
        _, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=server_name or host
        )
        try:
            secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
            der = secured.getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return sha256(der or b"").hexdigest()


async def wait_presented(
    host: str, port: int, *, fingerprint: str, server_name: str | None, timeout_s: float
) -> None:
    """Wait until the service presents the certificate with this fingerprint.

    Raises:
        NotInUse: it did not in time.
    """
    until = monotonic_s() + timeout_s
    presented = "nothing"
    while True:
        try:
            presented = await presented_fingerprint(host, port, server_name=server_name)
        except (OSError, TimeoutError) as exc:
            presented = type(exc).__name__
        if presented == fingerprint:
            return
        if monotonic_s() >= until:
            raise NotInUse(f"{host}:{port} still presents {presented[:16]}")
        await asyncio.sleep(_BETWEEN_S)
