"""What is used of tlslite-ng, a TLS library in Python and the only one with a server for SRP.

TLS 1.2 alone, SRP without certificates alone, AES alone; no resumption, no heartbeat, no
compression. Encrypt-then-MAC and the extended master secret are used where the client has them.
"""

from __future__ import annotations

import errno
import hashlib
import ssl
import warnings
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

with warnings.catch_warnings():
    # It imports asyncore for classes that are not used here.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.api import HandshakeSettings, TLSConnection
    from tlslite.constants import AlertDescription
    from tlslite.errors import BaseTLSException
    from tlslite.mathtls import goodGroupParameters
    from tlslite.messages import Finished

__all__ = [
    "GROUPS",
    "AlertDescription",
    "BaseTLSException",
    "Engine",
    "HandshakeSettings",
    "MemorySocket",
    "TLSConnection",
]

GROUPS: dict[int, tuple[int, int]] = {
    prime.bit_length(): (generator, prime) for generator, prime in reversed(goodGroupParameters)
}
"""Generator and prime of RFC 5054 appendix A by the bits of the prime.

Behind them in tlslite's list are groups of RFC 7919, which clients refuse.
"""


def verifier_of(name: str, password: str, salt: bytes, group: int) -> int:
    """Return the verifier of RFC 5054 section 2.4: g^x, x = SHA1(salt, SHA1(name ":" password))."""
    generator, prime = GROUPS[group]
    inner = hashlib.sha1(f"{name}:{password}".encode()).digest()  # noqa: S324 - the protocol's
    x = hashlib.sha1(salt + inner).digest()  # noqa: S324 - the protocol's
    return pow(generator, int.from_bytes(x), prime)


def server_settings() -> Any:
    """Return how handshakes are done."""
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 3)
    settings.versions = [(3, 3)]
    settings.cipherNames = ["aes256", "aes128"]
    settings.macNames = ["sha"]
    settings.keyExchangeNames = ["srp_sha"]
    settings.ticket_count = 0
    settings.use_heartbeat_extension = False
    return settings


class MemorySocket:
    """Lets tlslite read and write the memory of asyncio's TLS protocol."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def recv(self, size: int) -> bytes:
        """Return what is here, b"" at the end; says like a socket that nothing is."""
        data = self._incoming.read(size)
        if not data and not self._incoming.eof:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing yet")
        return data

    def send(self, data: bytes) -> int:
        """Take everything."""
        return self._outgoing.write(bytes(data))

    def sendall(self, data: bytes) -> None:
        """Take everything."""
        self._outgoing.write(bytes(data))

    def setsockopt(self, *_: Any) -> None:
        """There is nothing to set."""

    def close(self) -> None:
        """Nothing is open; asyncio closes the connection."""


class Engine(TLSConnection):  # type: ignore[misc] # a library without types
    """A server's connection that remembers the client's Finished, for ``tls-unique``."""

    client_finished: bytes | None = None

    @override
    def _getMsg(self, *args: Any, **more: Any) -> Iterator[Any]:
        for result in super()._getMsg(*args, **more):
            if isinstance(result, Finished):
                self.client_finished = bytes(result.verify_data)
            yield result

    def send_alert(self, description: int) -> None:
        """Send a fatal alert in the clear, before the handshake is done."""
        self.sock.socket.send(bytes((21, 3, 3, 0, 2, 2, description)))
