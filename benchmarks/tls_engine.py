"""What one new mutual-TLS connection costs the server: our engine against the stdlib's ``ssl``.

Two servers with the same aiohttp handler and uvloop, one after the other, several rounds;
``openssl s_time`` makes new TLS 1.3 connections with a client certificate and one request each.
CPU is the server process's alone. Prints milliseconds per connection and the ratio.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import uvloop
from aiohttp import web

from est_frontend.tls.engine import EngineContext
from estcore.runtime import command_line
from estcore.runtime.command_line import CONTEXT, PATH
from estdev.ports import free_port

HERE = Path(__file__).parent


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


def stdlib_context(folder: Path) -> ssl.SSLContext:
    """The same settings by the standard library: a client certificate asked for and checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


async def serve(kind: str, folder: Path, port: int) -> None:
    """Answer every request with a few octets until killed."""

    async def answer(request: web.BaseRequest) -> web.Response:
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        assert tls is not None
        assert tls.getpeercert(True)
        return web.Response(body=b"x" * 600)

    context = (
        EngineContext(folder / "server.pem", folder / "server.key")
        if kind == "engine"
        else stdlib_context(folder)
    )
    server = web.Server(answer, access_log=None)
    await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, ssl=context)
    await asyncio.Event().wait()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, folder: Path, seconds: int) -> tuple[float, float]:
    """Return (connections per second, server CPU-ms per connection)."""
    port = free_port()
    command = [sys.executable, __file__, "--serve", kind, str(folder), str(port)]
    process = subprocess.Popen(command)
    try:
        time.sleep(1.5)
        before = cpu_s(process.pid)
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
        used = cpu_s(process.pid) - before
    finally:
        process.kill()
        process.wait()
    count = int(re.findall(r"^(\d+) connections in", done.stdout, re.M)[0])
    return count / seconds, used / count * 1000


@click.command(
    "tls_engine",
    help="Measure a new mutual-TLS connection with both engines, in turn.",
    context_settings=CONTEXT,
)
@click.option("--serve", "served", type=(str, PATH, int), hidden=True)
@click.option("--rounds", type=int, default=3, help="Measurements of each engine.")
@click.option("--seconds", type=int, default=4, help="Duration of one measurement.")
def tls_engine(served: tuple[str, Path, int] | None, rounds: int, seconds: int) -> None:
    if served is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(*served))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates(folder)
        cost: dict[str, list[float]] = {"stdlib": [], "engine": []}
        for number in range(rounds):
            for kind, measurements in cost.items():
                rate, milliseconds = measure(kind, folder, seconds)
                measurements.append(milliseconds)
                sys.stdout.write(
                    f"round {number + 1} {kind:7} {rate:7.0f}/s {milliseconds:6.2f} CPU-ms\n"
                )
        best = {kind: min(measurements) for kind, measurements in cost.items()}
        ratio = best["stdlib"] / best["engine"]
        sys.stdout.write(
            f"best: stdlib {best['stdlib']:.2f}, engine {best['engine']:.2f}: ratio {ratio:.2f} "
            f"({ssl.OPENSSL_VERSION} in the standard library)\n"
        )


if __name__ == "__main__":
    sys.exit(command_line.run(tls_engine, "tls_engine"))
