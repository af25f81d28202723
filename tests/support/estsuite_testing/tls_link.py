"""A TLS client of the standard library and the front end's engine, joined in memory."""

from __future__ import annotations

import ssl
from pathlib import Path

from est_frontend.tls.engine import EngineConnection, EngineContext


def engine(files: Path) -> EngineContext:
    return EngineContext(files / "server.pem", files / "server.key")


def client_context(files: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files / "ca" / "root.pem"))
    context.minimum_version = context.maximum_version = version
    return context


class Link:
    """A client of the standard library and our engine, joined by hand, octet by octet if wanted."""

    def __init__(
        self, files: Path, version: ssl.TLSVersion, *, presenting: Path | None = None
    ) -> None:
        """``presenting`` is a PEM file with the client's certificate, chain and key."""
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.to_server, self.from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(files, version)
        if presenting is not None:
            # A client may present what its own library would not trust.
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.load_cert_chain(presenting)
        self.client = context.wrap_bio(
            self.to_client, self.from_client, server_hostname="localhost"
        )
        self.server: EngineConnection = engine(files).wrap_bio(self.to_server, self.from_server)

    def handshake(self) -> None:
        done = {"client": False, "server": False}
        for _ in range(10):
            for name, side in (("client", self.client), ("server", self.server)):
                if done[name]:
                    continue
                try:
                    side.do_handshake()
                    done[name] = True
                except ssl.SSLWantReadError:
                    pass
                self.to_server.write(self.from_client.read())
                self.to_client.write(self.from_server.read())
            if all(done.values()):
                return
        raise AssertionError(done)

    def server_reads(self) -> bytes:
        found = b""
        while self.to_server.pending or self.server.pending():
            try:
                found += self.server.read()
            except ssl.SSLWantReadError:
                break
        return found
