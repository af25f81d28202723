"""Running the suite: traces, graceful stops, limits, `up` as a person uses it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from base64 import b64encode
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from estcore.runtime.service import executable
from estdev.local import admin_get
from estdev.ports import free_port
from estsuite_testing.e2e_stack import Stack, StubbornClient, start_stack, stop_stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]


class Collector:
    """An OTLP/HTTP receiver that remembers which service sent which span of which trace."""

    def __init__(self) -> None:
        self.traces: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.port = free_port()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = ExportTraceServiceRequest()
        body.ParseFromString(await request.read())
        for resource in body.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces[span.trace_id.hex()][names["service.name"]].add(span.name)
        return web.Response()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    """Where the suite of the module sends its traces."""
    started = Collector()
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """A suite that traces every request; each test leaves it running."""
    telemetry = {
        "telemetry": {
            "otlp_endpoint": f"http://127.0.0.1:{collector.port}/v1/traces",
            "trace_ratio": 1.0,
        }
    }
    overrides = dict.fromkeys(("est-frontend", "ca-signer", "renewal", "audit"), telemetry)
    started = await start_stack(tmp_path_factory.mktemp("operations"), overrides=overrides)
    try:
        yield started
    finally:
        await stop_stack(started)


async def test_one_trace_crosses_front_end_signer_and_audit(
    stack: Stack, collector: Collector
) -> None:
    """Each hop has its spans, down to the delivery to the SIEM."""
    await StubbornClient(stack, stack.ports).enroll("dev-trace")
    wanted = {
        "est-frontend": {"est request", "authenticate", "await the signer"},
        "ca-signer": {
            *("issue certificates", "decide", "record intents", "sign certificates"),
            *("audit intents", "sign", "store certificates", "answer"),
        },
        "renewal": {"renewal.project"},
        "audit": {"audit append", "siem deliver"},
    }
    async with asyncio.timeout(30):
        while not any(_has(services, wanted) for services in collector.traces.values()):
            await asyncio.sleep(0.2)


def _has(services: Mapping[str, set[str]], wanted: Mapping[str, set[str]]) -> bool:
    return all(spans <= services.get(name, set()) for name, spans in wanted.items())


async def test_a_log_line_in_a_span_has_the_ids_of_its_trace(
    stack: Stack, collector: Collector
) -> None:
    context = ssl.create_default_context(cafile=str(stack.layout.root_file))
    async with aiohttp.ClientSession() as session:
        url = f"{stack.suite.url}/simpleenroll"
        async with session.post(url, data=b"x", ssl=context) as answer:
            assert answer.status == 401
    log = stack.layout.logs / "est-frontend.log"
    async with asyncio.timeout(30):
        while True:
            lines = [json.loads(x) for x in log.read_text(encoding="utf-8").splitlines() if x]
            traced = [line["trace_id"] for line in lines if "trace_id" in line]
            if any(trace_id in collector.traces for trace_id in traced):
                break
            await asyncio.sleep(0.2)


async def test_sigterm_under_load_loses_nothing(stack: Stack) -> None:
    """Each service is stopped in order and started again while clients enroll."""
    client = StubbornClient(stack, stack.ports)

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        await client.enroll(f"dev-term-{number}")

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(one(number))
        for service in ("ca-signer", "audit", "renewal", "est-frontend"):
            running = stack.suite.services[service]
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(40):
                assert await running.process.wait() == 0, service
            await stack.suite.stop_service(service)
            await stack.suite.start_service(service, service, wait=True)
    assert "\nverified: " in await stack.verify_cross()


async def test_readiness_metrics_and_liveness(stack: Stack) -> None:
    for running in stack.suite.services.values():
        assert await admin_get(running.admin_port, "/healthz") == "alive\n"
        assert await admin_get(running.admin_port, "/readyz") == "ready\n"
        assert "process_cpu_seconds_total" in await admin_get(running.admin_port, "/metrics")
        assert await admin_get(running.admin_port, "/secret") == "not here\n"
    await stack.layout.nats.stop()
    await asyncio.sleep(1)
    for running in stack.suite.services.values():
        assert await admin_get(running.admin_port, "/healthz") == "alive\n"
        # A load balancer that takes every front end away would refuse what they still answer.
        wanted = "ready\n" if running.service == "est-frontend" else "not ready: bus"
        assert (await admin_get(running.admin_port, "/readyz")).startswith(wanted), running.service
    connector = aiohttp.TCPConnector(ssl=stack.client_context())
    url = f"https://localhost:{stack.layout.ports.est}/.well-known/est/cacerts"
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as answer:
        assert answer.status == 200
    await stack.suite.stop_service("est-frontend")
    frontend = await stack.suite.start_service("est-frontend", "est-frontend", wait=False)
    await asyncio.sleep(3)
    text = await admin_get(frontend.admin_port, "/readyz")
    assert text.startswith("not ready: bus, streams"), "it has never reached the bus"
    await stack.layout.nats.start()
    for running in stack.suite.services.values():
        await stack.suite.wait_ready(running)


async def test_slow_and_idle_connections_are_cut(tmp_path: Path) -> None:
    limits = {
        "limits": {"head_timeout_s": 1, "body_timeout_s": 1},
        "listen": {"max_connections": 12, "idle_timeout_s": 2},
    }
    stack = await start_stack(tmp_path, overrides={"est-frontend": limits})
    try:
        context = stack.client_context()
        port = stack.layout.ports.est

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )

        reader, writer = await connect()
        writer.write(b"GET /.well-known/est/cac")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()

        reader, writer = await connect()
        auth = b"Basic " + b64encode(f"load:{stack.secret}".encode())
        writer.write(
            b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nAuthorization: "
            + auth
            + b"\r\nContent-Type: application/pkcs10\r\nContent-Length: 500\r\n\r\nMII"
        )
        async with asyncio.timeout(8):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"[request.timeout]" in answer
        writer.close()

        many = [await connect() for _ in range(12)]
        async with asyncio.timeout(5):
            with pytest.raises(OSError):  # noqa: PT011 - closed before its handshake, or in it
                await connect()
        for _, one in many:
            one.close()
        await asyncio.sleep(1.5)
        await StubbornClient(stack, stack.ports).enroll("dev-healthy")
    finally:
        await stop_stack(stack)


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(120):
        while text not in seen:
            line = await process.stdout.readline()
            assert line, seen
            seen += line.decode()
    return seen


async def up(folder: Path, port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        executable("estsuite"),
        "up",
        "--folder",
        str(folder),
        "--est-port",
        str(port),
        "--postgres-port",
        "0",
        "--nats-port",
        "0",
        "--siem-port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("COV")},
    )


async def test_up_starts_stops_cleanly_and_continues(tmp_path: Path) -> None:
    port = free_port()
    process = await up(tmp_path / "suite", port)
    first = await read_until(process, "Ctrl-C stops everything")
    secret = first.partition("secret ")[2].split()[0]
    for wanted in ("/cacerts", "openssl req", "/simpleenroll", f"localhost:{port}"):
        assert wanted in first
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(120):
        _, err = await process.communicate()
    assert process.returncode == 0, err
    again = await up(tmp_path / "suite", port)
    second = await read_until(again, "Ctrl-C stops everything")
    assert secret in second
    # A server that is killed is named, and the rest is stopped.
    server = next(
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _mentions(path, str(tmp_path)) and _mentions(path, "nats.conf")
    )
    os.kill(int(server.parent.name), signal.SIGKILL)
    async with asyncio.timeout(120):
        _, err = await again.communicate()
    assert again.returncode == 2
    assert b"NATS ended by itself" in err
    assert err.count(b"\n") == 1
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _mentions(p, str(tmp_path))]
    assert left == []


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


async def test_up_goes_on_where_a_first_start_was_interrupted(tmp_path: Path) -> None:
    """Before anything was migrated, and with a key that the CA's command did not come to."""
    folder, port = tmp_path / "suite", free_port()
    process = await up(folder, port)
    await read_until(process, "migrating schemas and streams")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(120):
        await process.communicate()
    (folder / "secrets" / "audit-checkpoint.pem").unlink()
    again = await up(folder, port)
    try:
        await read_until(again, "Ctrl-C stops everything")
    finally:
        again.send_signal(signal.SIGINT)
        async with asyncio.timeout(120):
            _, err = await again.communicate()
    assert again.returncode == 0, err


async def test_up_says_which_port_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await up(tmp_path / "suite", taken.getsockname()[1])
        async with asyncio.timeout(120):
            _, err = await process.communicate()
    assert process.returncode == 2
    assert b"--est-port" in err
    assert err.count(b"\n") == 1
