"""Every octet in every header that is read or kept, on every operation, over TLS.

Afterwards est-frontend still answers, and its audit records have reached the log.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from estcore.messages.audit import AuditRecord
from estsuite_testing.e2e_stack import Stack, make_csr, start_stack, stop_stack
from estsuite_testing.raw_client import BASE, Client, b64
from estsuite_testing.refusals import accounted

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

OPERATIONS = {
    "cacerts": "GET",
    "csrattrs": "GET",
    "simpleenroll": "POST",
    "simplereenroll": "POST",
    "serverkeygen": "POST",
    "fullcmc": "POST",
    "rotation-ack": "POST",
    "renewal-info/x": "GET",
    "nothing": "GET",
}
HEADERS = (
    "User-Agent",
    "X-Correlation-ID",
    "Authorization",
    "DPoP",
    "Content-Type",
    "Expect",
    "Host",
    "Forwarded",
    "Accept",
)
CONNECTIONS = 8
CODE = re.compile(rb"X-Error-Code: (\S+)|\[([a-z_.]+)\]")
ANSWERS = {200, 204, 400, 401, 403, 404, 405, 415, 417, 501}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def octets_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A suite whose limits on rates let the test through."""
    rates = {"source_per_s": 1e6, "source_burst": 1e6, "identity_per_s": 1e6, "identity_burst": 1e6}
    started = await start_stack(
        tmp_path_factory.mktemp("octets"), overrides={"est-frontend": {"rates": rates}}
    )
    try:
        yield started
    finally:
        await stop_stack(started)


def request(method: str, path: bytes, body: bytes = b"", **more: bytes) -> bytes:
    """Return a request; ``more`` replaces or adds headers."""
    fields = {"Host": b"localhost", **{k.replace("_", "-"): v for k, v in more.items()}}
    if method == "POST":
        fields = {"Content-Type": b"application/pkcs10", **fields}
        fields["Content-Length"] = b"%d" % len(body)
    lines = b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in fields.items())
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method.encode(), path, lines, body)


class Pool:
    """Sends requests one after the other on a connection that is renewed when it ends."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, octets: bytes) -> tuple[int, bytes]:
        """Return status and the whole answer."""
        reader, writer = self._stream or await self._client.connect()
        self._stream = reader, writer
        writer.write(octets)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            if b"Content-Length: " in head:
                length = head.partition(b"Content-Length: ")[2].partition(b"\r")[0]
                body = await reader.readexactly(int(length))
        if b"\r\nConnection: close\r\n" in head:
            await self.close()
        return int(head.split(b" ")[1]), head + body

    async def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


async def test_every_octet_in_every_header_is_answered_and_on_record(octets_stack: Stack) -> None:
    client = Client.of(octets_stack)
    basic = client.basic.encode()
    body = b64(make_csr("dev-octets")[1])
    path = f"{BASE}/simpleenroll".encode()
    work: list[bytes] = []
    for octet in range(256):
        value = b"a" + bytes([octet]) + b"b"
        every = dict.fromkeys(HEADERS, value)
        for operation, method in OPERATIONS.items():
            work.append(request(method, f"{BASE}/{operation}".encode(), body, **every))
        work.append(request("GET", f"{BASE}/".encode() + value))
        # One by one behind a known secret, since a refusal keeps the next header from being read.
        for name in ("Content-Type", "Expect", "Host", "DPoP"):
            work.append(request("POST", path, body, Authorization=basic, **{name: value}))
        for scheme in (b"Basic ", b"Digest ", b"Bearer ", b"DPoP "):
            work.append(request("POST", path, body, Authorization=scheme + value))
    seen: Counter[int] = Counter()
    refused: Counter[str] = Counter()

    async def part(start: int) -> None:
        pool = Pool(client)
        for octets in work[start::CONNECTIONS]:
            status, answer = await pool.send(octets)
            seen[status] += 1
            if status >= 400:
                code = CODE.search(answer)
                assert code is not None, answer
                refused[(code[1] or code[2]).decode()] += 1
            assert status in ANSWERS, (octets[:400], answer)
            assert b"\r\nServer: est\r\n" in answer
            assert b"\r\nX-Correlation-ID: " in answer
        await pool.close()

    await asyncio.gather(*(part(start) for start in range(CONNECTIONS)))
    assert {200, 400, 401, 404, 415, 417, 501} <= seen.keys(), seen

    async def missing() -> Counter[str]:
        records = await octets_stack.records()
        return refused - accounted(map(AuditRecord.model_validate, records))

    # By code: what follows a line end in a header is a refusal of its own, which is not read here.
    async with asyncio.timeout(60):
        while await missing():
            await asyncio.sleep(1)
    answered = await client.request("GET", f"{BASE}/cacerts")
    assert answered.status == 200


async def test_every_octet_that_is_accepted_is_delivered_in_an_audit_record(
    octets_stack: Stack,
) -> None:
    """Enrollments are on record one by one, so each of them shows what became of its octet."""
    client = Client.of(octets_stack)
    body = b64(make_csr("dev-delivered")[1])
    accepted: set[int] = set()

    async def part(start: int) -> None:
        pool = Pool(client)
        for octet in range(start, 256, CONNECTIONS):
            value = b"a" + bytes([octet]) + b"b"
            more = {"User-Agent": value, "X-Correlation-ID": b"octet-%d-" % octet + value}
            path = f"{BASE}/simpleenroll".encode()
            auth = client.basic.encode()
            status, _ = await pool.send(request("POST", path, body, Authorization=auth, **more))
            if status == 200:
                accepted.add(octet)
            else:
                assert status == 400, octet
        await pool.close()

    # The first one makes the certificate that all others are answered with.
    assert (await client.enroll(body)).status == 200
    await asyncio.gather(*(part(start) for start in range(CONNECTIONS)))
    assert accepted >= {9, *range(0x20, 0x7F), *range(0x80, 0x100)}
    delivered: dict[int, str] = {}
    for _ in range(40):
        for record in await octets_stack.records():
            origin = record.get("origin") or {}
            claimed = origin.get("client_correlation_id") or ""
            if claimed.startswith("octet-"):
                assert claimed.isprintable()
                assert origin["user_agent"].isprintable()
                delivered[int(claimed.split("-")[1])] = origin["user_agent"]
        if delivered.keys() >= accepted:
            break
        await asyncio.sleep(0.25)
    assert delivered.keys() >= accepted
    assert delivered[0xFF] == "a\ufffdb"
    assert delivered[0x41] == "aAb"
    written = "".join(p.read_text() for p in octets_stack.layout.logs.glob("est-frontend*"))
    assert '"message":"request refused"' in written
    assert "Traceback" not in written
    assert '"trace":' not in written
