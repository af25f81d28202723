"""An HTTPS server that presents each new certificate to new connections and ends none."""

import asyncio
import signal
from pathlib import Path

from estclient.reload import ServerCertificate

CURRENT = Path("/run/est/orders/current")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of a connection."""
    while await reader.readline():
        while (await reader.readline()).strip():
            pass
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
        await writer.drain()
    writer.close()


async def main() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    certificate = ServerCertificate(CURRENT / "cert.pem", CURRENT / "key.pem")
    server = await asyncio.start_server(answer, None, 8443, ssl=certificate.context)
    watching = asyncio.create_task(certificate.watch())
    await stop.wait()
    server.close()
    watching.cancel()


asyncio.run(main())
