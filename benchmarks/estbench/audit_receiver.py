"""A receiver that reads, confirms and does nothing else: ``KIND FOLDER [TIMES]``.

Prints the settings of the sink that delivers to it, one line of JSON, and serves until it is ended.
With ``TIMES``, of syslog only, it writes the age of each record in seconds, one a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import ssl
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from estsuite_testing.siem import SIEM

_OCCURRED = re.compile(rb'"occurred_at":"([^"]+)"')
_KEY = re.compile(rb'"_id":"([^"]+)"')
_PART = 1 << 20


def context_of(certificates: SIEM) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate_file, certificates.key_file)
    return context


async def syslog(certificates: SIEM, times: Path | None) -> dict[str, Any]:
    """Read and discard; or note how old records are."""

    async def discard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(_PART):
            pass
        writer.close()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert times is not None
        with times.open("a") as file, contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                frame = await reader.readexactly(int((await reader.readuntil(b" "))[:-1]))
                occurred = _OCCURRED.search(frame)
                if occurred:
                    moment = dt.datetime.fromisoformat(occurred[1].decode())
                    age = dt.datetime.now(dt.UTC) - moment  # noqa: TID251 - a benchmark
                    file.write(f"{age.total_seconds()}\n")
                    file.flush()

    serve = discard if times is None else note
    server = await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=context_of(certificates), limit=_PART
    )
    port = server.sockets[0].getsockname()[1]
    return {"kind": "syslog", "host": "127.0.0.1", "port": port}


async def splunk(_: web.Request) -> web.Response:
    return web.json_response({"text": "Success", "code": 0, "ackId": 1})


async def acknowledge(request: web.Request) -> web.Response:
    asked = (await request.json())["acks"]
    return web.json_response({"acks": {str(n): True for n in asked}})


async def bulk(request: web.Request) -> web.Response:
    keys = _KEY.findall(await request.read())
    items = [{"create": {"_id": k.decode(), "status": 201, "result": "created"}} for k in keys]
    return web.json_response({"errors": False, "items": items})


async def otlp(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"", content_type="application/x-protobuf")


async def hook(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=204)


async def https(certificates: SIEM, kind: str, folder: Path) -> dict[str, Any]:
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/services/collector/event", splunk)
    app.router.add_post("/services/collector/ack", acknowledge)
    app.router.add_post("/{index}/_bulk", bulk)
    app.router.add_post("/v1/logs", otlp)
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context_of(certificates)).start()
    place = {"otlp": "/v1/logs", "webhook": "/hook"}.get(kind, "")
    url = f"https://127.0.0.1:{runner.addresses[0][1]}{place}"
    sink: dict[str, Any] = {"kind": kind.partition("-")[0], "url": url}
    if sink["kind"] in {"splunk", "otlp", "webhook"}:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text("a-token-of-a-benchmark")
        sink["token_file"] = str(token)
    if kind == "splunk-acknowledged":
        sink["acknowledge"] = True
    return sink


async def serve(kind: str, folder: Path, times: Path | None) -> None:
    certificates = SIEM(folder)
    made = syslog(certificates, times) if kind == "syslog" else https(certificates, kind, folder)
    sink = await made | {"name": kind, "ca_file": str(certificates.ca_file)}
    print(json.dumps(sink), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None))
