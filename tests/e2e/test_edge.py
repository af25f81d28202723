"""The edge under attack: one source takes connections, attempts, OCSP answers or the audit disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from estdev.local import Running, admin_get
from estdev.ports import free_port
from estsuite_testing.e2e_stack import Stack, make_csr, start_stack, stop_stack
from estsuite_testing.raw_client import BASE, Client, b64, cut

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
PER_SOURCE = 5
HALF_HANDSHAKE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""A record header for 512 octets, and the first eleven of a ClientHello."""


@dataclass
class Edge:
    """A suite whose front end has low limits, and the ports it listens on."""

    stack: Stack
    crl_port: int
    disk: Path

    @property
    def frontend(self) -> Running:
        return self.stack.suite.services["est-frontend"]

    def client(self, source: str | None = None, address: str | None = "127.0.0.1") -> Client:
        client = Client.of(self.stack)
        client.source, client.address = source, address
        return client

    async def metric(self, name: str) -> float:
        text = await admin_get(self.frontend.admin_port, "/metrics")
        found = re.findall(rf"^{re.escape(name)} ([0-9.e+]+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def enroll(self, name: str, source: str = OTHER) -> int:
        return (await self.client(source).enroll(b64(make_csr(name)[1]))).status

    async def ask(self, octets: bytes, source: str = OTHER) -> bytes:
        """Return what the port of CRL and OCSP answers."""
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.crl_port, local_addr=(source, 0)
            )
            try:
                writer.write(octets)
                return await reader.read()
            finally:
                writer.close()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one megabyte; where there are no rights to mount one, just a folder."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    crl_port = free_port()
    with small_disk(folder / "disk") as disk:
        overrides = {
            "est-frontend": {
                "listen": {
                    "host": "::",
                    "max_handshakes": 12,
                    "max_handshakes_per_source": PER_SOURCE,
                },
                "crl_listen": {
                    "host": "::",
                    "port": crl_port,
                    "ocsp": True,
                    "max_connections": 12,
                    "max_connections_per_source": PER_SOURCE,
                    "ocsp_per_s": 40,
                    "ocsp_source_per_s": 10,
                },
                "admin": {"host": "::"},
                "trail": {"spool_file": str(disk / "spool.sqlite")},
            },
            "ca-signer": {"ocsp": {}},
        }
        stack = await start_stack(folder, overrides=overrides)
        try:
            yield Edge(stack, crl_port, disk)
        finally:
            await stop_stack(stack)


async def test_no_service_can_leave_a_core_file_and_each_locks_its_memory_if_it_may(
    edge: Edge,
) -> None:
    services = edge.stack.suite.services.values()
    assert len(services) == 4
    for running in services:
        proc = Path(f"/proc/{running.process.pid}")
        (core,) = re.findall(
            r"^Max core file size +(\S+) +(\S+)", (proc / "limits").read_text(), re.M
        )
        assert core == ("0", "0"), running.service
        status = (proc / "status").read_text()
        (locked,) = re.findall(r"^VmLck:\s+(\d+)", status, re.M)
        (capabilities,) = re.findall(r"^CapEff:\s+(\S+)", status, re.M)
        log = Path(running.log.name).read_text()
        if int(capabilities, 16) >> 14 & 1:  # CAP_IPC_LOCK
            assert int(locked) > 0, running.service
        assert (int(locked) > 0) != ("memory is not locked" in log), running.service


async def hold(
    count: int, port: int, octets: bytes
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open connections from the attacker's address and send the beginning of something."""
    held = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKER, 0))
        writer.write(octets)
        held.append((reader, writer))
    return held


async def still_open(held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """Return how many the server has not ended."""

    async def is_open(reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(0.5):
                await reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            return False
        return False

    return sum(await asyncio.gather(*(is_open(reader) for reader, _ in held)))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_every_port_serves_both_families_on_one_host(edge: Edge, address: str) -> None:
    answer = await edge.client(address=address).request("GET", f"{BASE}/cacerts")
    assert answer.status == 200
    host = f"[{address}]" if ":" in address else address
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{host}:{edge.crl_port}/crl/issuing.crl") as found:
            assert found.status == 200
        async with session.get(f"http://{host}:{edge.frontend.admin_port}/healthz") as found:
            assert await found.text() == "alive\n"


async def test_an_ipv4_client_of_a_dual_port_is_recorded_by_its_ipv4_address(edge: Edge) -> None:
    assert (await edge.client(OTHER).request("GET", f"{BASE}/no-such/cacerts")).status == 404
    peers: set[str | None] = set()
    async with asyncio.timeout(20):
        while OTHER not in peers:
            await asyncio.sleep(0.2)
            peers = {
                (r.get("origin") or {}).get("peer")
                for r in await edge.stack.records()
                if r.get("reason_code") == "request.not_found"
            }
    assert peers - {None} == {OTHER}  # None: counted while there was no room


@pytest.mark.parametrize("octets", [b"", HALF_HANDSHAKE], ids=["silent", "half a ClientHello"])
async def test_a_source_that_floods_half_handshakes_is_cut_off_and_others_enroll(
    edge: Edge, octets: bytes
) -> None:
    cut_off = 'est_frontend_connections_cut_total{why="source_waiting"}'
    before = await edge.metric(cut_off)
    held = await hold(30, edge.stack.layout.ports.est, octets)
    try:
        assert await still_open(held) == PER_SOURCE
        assert await edge.metric(cut_off) - before >= 30 - PER_SOURCE
        assert await edge.metric("est_frontend_handshakes") == PER_SOURCE
        assert await edge.enroll(f"dev-other-{len(octets)}") == 200
        with pytest.raises((OSError, asyncio.IncompleteReadError, AssertionError)):
            await edge.enroll("dev-attacker", ATTACKER)
    finally:
        for _, writer in held:
            cut(writer)
    async with asyncio.timeout(5):
        while await edge.metric("est_frontend_handshakes"):
            await asyncio.sleep(0.05)
    assert await edge.enroll(f"dev-again-{len(octets)}", ATTACKER) == 200


async def test_many_sources_that_hold_handshakes_lose_their_oldest(edge: Edge) -> None:
    """Twelve are the limit; three sources with five each have more than anyone else."""
    port, held = edge.stack.layout.ports.est, []
    try:
        for number in range(3, 6):
            for _ in range(PER_SOURCE):
                connected = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(f"127.0.0.{number}", 0)
                )
                held.append(connected)
        assert await edge.metric("est_frontend_handshakes") <= 12
        for number in range(3):
            assert await edge.enroll(f"dev-among-many-{number}") == 200
    finally:
        for _, writer in held:
            cut(writer)


@pytest.mark.parametrize("octets", [b"", b"GET /crl/issuing.crl HTTP/1.1\r\nA: "])
async def test_idle_connections_to_the_crl_port_shut_out_themselves(
    edge: Edge, octets: bytes
) -> None:
    held = await hold(30, edge.crl_port, octets)
    try:
        assert await still_open(held) == PER_SOURCE
        answer = await edge.ask(b"GET /crl/issuing.crl HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
    finally:
        for _, writer in held:
            cut(writer)


def question(edge: Edge, number: int) -> bytes:
    """Return an OCSP request with a nonce, as POST."""
    issuer = x509.load_pem_x509_certificate((edge.stack.layout.ca / "issuing.pem").read_bytes())
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*_hashes(issuer), number, SHA256())
    request = builder.add_extension(x509.OCSPNonce(os.urandom(16)), critical=False).build()
    body = request.public_bytes(Encoding.DER)
    head = (
        "POST /ocsp/issuing HTTP/1.1\r\nContent-Type: application/ocsp-request\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _hashes(issuer: x509.Certificate) -> tuple[bytes, bytes]:
    point = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return sha256(issuer.subject.public_bytes()).digest(), sha256(point).digest()


async def test_a_flood_of_ocsp_requests_with_nonces_does_not_stop_enrollments(edge: Edge) -> None:
    status = ocsp.OCSPResponseStatus
    async with asyncio.timeout(20):
        # The signer issues the responder's certificate first.
        while await asked(edge, OTHER) != status.SUCCESSFUL:
            await asyncio.sleep(0.3)
    limited = await edge.metric("est_frontend_ocsp_limited_total")
    answers: list[ocsp.OCSPResponseStatus] = []
    flooding = True

    async def flood() -> None:
        while flooding:
            answers.append(await asked(edge, ATTACKER))

    floods = [asyncio.ensure_future(flood()) for _ in range(4)]
    try:
        await asyncio.sleep(0.5)
        for number in range(5):
            assert await edge.enroll(f"dev-beside-{number}") == 200
        assert await asked(edge, OTHER) == status.SUCCESSFUL, "another source is answered"
        await asyncio.sleep(0.3)
    finally:
        flooding = False
        await asyncio.gather(*floods)
    assert set(answers) == {status.SUCCESSFUL, status.TRY_LATER}
    assert answers.count(status.SUCCESSFUL) < 60
    assert await edge.metric("est_frontend_ocsp_limited_total") - limited > 20


async def asked(edge: Edge, source: str) -> ocsp.OCSPResponseStatus:
    answer = await edge.ask(question(edge, 1 + int.from_bytes(os.urandom(4))), source)
    return ocsp.load_der_ocsp_response(answer.partition(b"\r\n\r\n")[2]).response_status


@pytest.mark.logs_errors(
    "audit records cannot be stored",
    "no room for the audit spool",
    "state not refreshed",
)
async def test_a_full_disk_of_the_spool_ends_nothing_and_heals(edge: Edge) -> None:
    """The disk fills, the bus is unavailable, both come back: the process is the same, all is recorded."""
    port, pid = edge.frontend.admin_port, edge.frontend.process.pid
    with full(edge.disk, pid):
        await edge.stack.layout.nats.stop()
        async with asyncio.timeout(20):
            while "audit trail" not in await admin_get(port, "/readyz"):
                assert (await edge.client(OTHER).request("GET", f"{BASE}/nothing")).status == 404
        assert (await edge.client().request("GET", f"{BASE}/cacerts")).status == 200
        refused = await edge.client().enroll(b64(make_csr("dev-no-room")[1]))
        assert (refused.status, "audit.spool_full" in refused.text) == (503, True)
        # The bus is back before the disk: what waits in memory goes out without it.
        await edge.stack.layout.nats.start()
        async with asyncio.timeout(30):
            while "bus" in await admin_get(port, "/readyz"):
                await asyncio.sleep(0.1)
    async with asyncio.timeout(30):
        while await admin_get(port, "/readyz") != "ready\n":
            await asyncio.sleep(0.1)
    assert edge.frontend.process.returncode is None
    # ca-signer finds the bus again by itself, earlier or later than the front end.
    async with asyncio.timeout(30):
        while (status := await edge.enroll("dev-room-again")) == 503:
            await asyncio.sleep(0.2)
    assert status == 200
    async with asyncio.timeout(30):
        while not any(
            r.get("reason_code") == "audit.spool_full" for r in await edge.stack.records()
        ):
            await asyncio.sleep(0.3)


@contextlib.contextmanager
def full(disk: Path, pid: int) -> Iterator[None]:
    """Leave no room on the disk; where it is not one of its own, none for files of the process."""
    if os.path.ismount(disk):
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()
        return
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
