"""What TLS costs the front end: a new mutual-TLS connection, and a request on an open one.

A server process for each engine, all at once: the listener of this checkout, with ``--against``
also that of another one, and the standard library's ``ssl`` on uvloop. Every server has the same
handler. They are measured in turn, many times, so that what else the machine does hits all alike:
``openssl s_time`` makes new TLS 1.3 connections with a client certificate and one request each, then
one connection carries requests. CPU is the server process's alone, by the scheduler's clock. Prints
the median in CPU milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import uvloop
from aiohttp import web

from est_frontend.listener import TLSListener
from est_frontend.settings import ListenSettings
from est_frontend.web.server import LimitedServer, request_factory
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH
from estdev.ports import free_port

HERE = Path(__file__).parent
SOURCES = ("services/est-frontend/src", "libs/estcore/src", "libs/estdev/src")
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"x" * 600


def certificates(folder: Path) -> None:
    """Make a CA, a server certificate and a client certificate, all P-256."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost")
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", *subject)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
        (folder / f"{name}.key").chmod(0o600)


def stdlib_context(folder: Path) -> ssl.SSLContext:
    """The same settings by the standard library: a client certificate asked for and checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


class Answering:
    """Answers every request with a few octets, to clients with a certificate."""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        assert tls is not None
        assert tls.getpeercert(True)
        return web.Response(body=BODY)

    def refuse(self, request: web.BaseRequest, error: Exception) -> web.Response:
        del request
        return web.Response(status=400, text=str(error))


async def serve(kind: str, folder: Path, port: int) -> None:
    """Answer requests until killed."""
    server = LimitedServer(
        Answering(),
        max_connections=1000,
        head_timeout_s=10,
        request_factory=request_factory(65_536),
        access_log=None,
    )
    if kind == "stdlib":
        loop = asyncio.get_running_loop()
        await loop.create_server(server, "127.0.0.1", port, ssl=stdlib_context(folder))
        await asyncio.Event().wait()
    files = {"certificate_file": folder / "server.pem", "key_file": folder / "server.key"}
    listener = TLSListener(ListenSettings(port=port, **files))
    trail: Any = None  # the listener does not use it
    await listener.open(server, trail)
    await asyncio.gather(*(job(asyncio.Event()) for job in listener.jobs))


@contextmanager
def running(kind: str, folder: Path, checkout: Path) -> Iterator[tuple[int, int]]:
    """Serve with the code of a checkout; yield (process id, port)."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(checkout / s) for s in SOURCES)}
    command = [sys.executable, __file__, "--serve", kind, str(folder), str(port)]
    process = subprocess.Popen(command, env=environment)
    try:
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def wait_for(port: int) -> None:
    """Return once the port accepts connections."""
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


def cpu_ms(pid: int) -> float:
    """Return the CPU milliseconds of a process with one thread, exact to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def connections(pid: int, port: int, folder: Path, seconds: int) -> float:
    """Return the server's CPU-ms of a new connection with one request."""
    before = cpu_ms(pid)
    done = subprocess.run(
        [
            *("openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-www", "/"),
            *("-cert", "client.pem", "-key", "client.key", "-time", str(seconds)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    count = int(re.findall(r"^(\d+) connections in", done.stdout, re.MULTILINE)[0])
    return (cpu_ms(pid) - before) / count


def requests(pid: int, port: int, folder: Path, seconds: int) -> float:
    """Return the server's CPU-ms of a request on a connection that is open."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as client:
        _exchange(client)
        before, count, end = cpu_ms(pid), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(20):
                _exchange(client)
            count += 20
        return (cpu_ms(pid) - before) / count


def _exchange(client: ssl.SSLSocket) -> None:
    client.sendall(REQUEST)
    received = b""
    while not received.endswith(BODY):
        part = client.recv(65_536)
        if not part:
            raise ConnectionError("the server has closed the connection")
        received += part


@click.command(
    "tls_engine",
    help="Measure a new mutual-TLS connection and a request with several engines, in turn.",
    context_settings=CONTEXT,
)
@click.option("--serve", "served", type=(str, PATH, int), hidden=True)
@click.option("--rounds", type=int, default=8, help="Measurements of each engine.")
@click.option("--seconds", type=int, default=2, help="Duration of one measurement.")
@click.option("--against", type=PATH, help="Folder of another checkout to compare with.")
@click.option("--stdlib/--no-stdlib", default=True, help="Compare with ssl on uvloop too.")
def tls_engine(
    served: tuple[str, Path, int] | None,
    rounds: int,
    seconds: int,
    against: Path | None,
    stdlib: bool,
) -> None:
    if served is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(*served))
        return
    here = HERE.parent
    checkouts = {"engine": here} | ({"against": against.resolve()} if against else {})
    checkouts |= {"stdlib": here} if stdlib else {}
    cost: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        certificates(folder)
        servers = {k: stack.enter_context(running(k, folder, c)) for k, c in checkouts.items()}
        for _, port in servers.values():
            wait_for(port)
        for number in range(rounds):
            for kind, (pid, port) in sorted(servers.items(), reverse=bool(number % 2)):
                new = connections(pid, port, folder, seconds)
                kept = requests(pid, port, folder, seconds)
                cost.setdefault((kind, "connection"), []).append(new)
                cost.setdefault((kind, "request"), []).append(kept)
                sys.stdout.write(
                    f"round {number + 1} {kind:8} connection {new:6.3f}  request {kept:6.3f}\n"
                )
                sys.stdout.flush()
    for kind in checkouts:
        figures = (f"{name} {_figures(cost[kind, name])}" for name in ("connection", "request"))
        sys.stdout.write(f"{kind:8} CPU-ms, median (minimum): {', '.join(figures)}\n")


def _figures(measured: list[float]) -> str:
    return f"{statistics.median(measured):.3f} ({min(measured):.3f})"


if __name__ == "__main__":
    sys.exit(command_line.run(tls_engine, "tls_engine"))
