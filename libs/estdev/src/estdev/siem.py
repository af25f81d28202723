"""A local receiver of RFC 5424 messages over TLS (RFC 5425), standing where a SIEM would.

Writes every message to a file, one a line, in the order received. For demo and development.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

_MAX_FRAME = 64 * 1024
_HEADER_FIELDS = 6
_PARAMETER = r'[^ =\]"]+="(?:\\.|[^"\\])*"'
_STRUCTURED_DATA = re.compile(rf"\[[^ =\]]+(?: {_PARAMETER})*\]")


def without_body(message: str, width: int = 100) -> list[str]:
    """Return header and structured data of an RFC 5424 message, wrapped between fields.

    A field longer than ``width`` stays whole. A message without structured data is returned
    as it is.
    """
    parts = message.split(" ", _HEADER_FIELDS)
    data = _STRUCTURED_DATA.match(parts[-1])
    if len(parts) <= _HEADER_FIELDS or data is None:
        return [message]
    lines = [" ".join(parts[:_HEADER_FIELDS])]
    for field in re.findall(rf"\[[^ \]]+| {_PARAMETER}\]?|\]", data[0]):
        if len(lines[-1]) + len(field) > width or field.startswith("["):
            lines.append(f"    {field.strip()}")
        else:
            lines[-1] += field
    return lines


class LocalSIEM:
    """Listens on loopback and appends to a file."""

    def __init__(self, port: int, out: Path, certificate_file: Path, key_file: Path) -> None:
        self.port = port
        self.out = out
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate_file, key_file)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._context, limit=_MAX_FRAME
        )

    async def stop(self) -> None:
        """Stop listening, and end the connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    def messages(self) -> list[str]:
        """Return everything received so far."""
        return self.out.read_text(encoding="utf-8").splitlines() if self.out.exists() else []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                size = int(await reader.readuntil(b" "))
                if not 0 < size <= _MAX_FRAME:
                    return
                message = await reader.readexactly(size)
                text = message.decode("utf-8", errors="replace").replace("\n", "\\n")
                with self.out.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError):
            return
        finally:
            self._open.discard(writer)
            writer.close()
