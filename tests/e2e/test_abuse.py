"""Whatever comes in: never 500, never a hang, and the next one is served."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable

import pytest
import pytest_asyncio

from est_frontend.audit_trail.refusal_counts import WINDOW_S
from estcore.messages.audit import AuditRecord
from estsuite_testing.e2e_stack import Stack, make_csr
from estsuite_testing.raw_client import BASE, Answer, Client, b64
from estsuite_testing.refusals import accounted

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

OPERATIONS = ("simpleenroll", "simplereenroll", "serverkeygen", "csrattrs", "cacerts", "fullcmc")
SEED = 8951
ROUNDS = 400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: Stack) -> Client:
    return Client.of(stack)


def damaged(source: random.Random, octets: bytes) -> bytes:
    """The octets with something wrong: flipped, cut, doubled, stuffed."""
    work = bytearray(octets)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(work) + 1)
        match source.randrange(5):
            case 0 if work:
                work[place % len(work)] ^= 1 << source.randrange(8)
            case 1:
                del work[place : place + source.randint(1, 20)]
            case 2:
                work[place:place] = source.randbytes(source.randint(1, 20))
            case 3:
                work[place:place] = work[: source.randint(0, 200)]
            case _:
                work[place:place] = source.choice(
                    [b"\r\n", b"\0", b"\xff\xff\xff\xff", b"\x30\x80"]
                )
    return bytes(work)


def body_of(source: random.Random, csr: bytes) -> bytes:
    kinds: list[Callable[[], bytes]] = [
        lambda: b64(damaged(source, csr)),
        lambda: damaged(source, b64(csr)),
        lambda: source.randbytes(source.randint(0, 2000)),
        lambda: b64(b"\x30\x84\xff\xff\xff\xff" + csr),
        lambda: b64(b"\x30\x80" * source.randint(1, 5000)),
        lambda: b"A" * source.randint(0, 65_000),
        lambda: b64(csr),
    ]
    return source.choice(kinds)()


def head_of(source: random.Random, client: Client, size: int) -> bytes:
    """A head that is nearly right: odd credentials, types, lengths, names, versions."""
    credentials = [
        client.basic,
        "Basic",
        "Basic " + base64.b64encode(source.randbytes(source.randint(0, 300))).decode(),
        "Basic " + "A" * source.randint(1, 3000),
        "Digest " + 'username="a", ' * source.randint(1, 30),
        "Bearer " + ".".join(["eyJhbGciOiJub25lIn0"] * source.randint(1, 6)),
        "DPoP x.y.z",
        "Nonsense\tvalue",
    ]
    path = f"{BASE}/{source.choice(['', 'services/', 'strict/', 'x/'])}{source.choice(OPERATIONS)}"
    lines = [
        f"{source.choice(['POST', 'POST', 'GET', 'HEAD', 'PUT'])} {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {size}",
        f"Authorization: {source.choice(credentials)}",
    ]
    extra = [
        "Content-Type: application/pkcs10",
        "Content-Type: application/pkcs10; charset=" + "x" * source.randint(0, 500),
        "Content-Type: multipart/mixed; boundary=" + "-" * source.randint(0, 80),
        "X-Correlation-ID: " + "y" * source.randint(0, 4000),
        "User-Agent: " + "\u00e9" * source.randint(1, 300),
        "DPoP: " + "." * source.randint(0, 20),
        "Accept-Encoding: gzip, deflate, br",
        "Cookie: " + "a=b; " * source.randint(0, 200),
    ]
    lines += source.sample(extra, source.randint(1, len(extra)))
    if source.random() < 0.7:
        lines.append("Content-Type: application/pkcs10")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


async def test_requests_that_are_nearly_right_are_answered_and_never_break_anything(
    client: Client,
) -> None:
    source = random.Random(SEED)
    csr = make_csr("dev-fuzz")[1]
    seen: dict[int, int] = {}

    async def one(head: bytes, body: bytes) -> None:
        try:
            octets = await client.raw(head + body)
        except (ConnectionError, OSError):
            seen[0] = seen.get(0, 0) + 1
            return
        # A head that HTTP itself forbids may end the connection without an answer.
        status = Answer(octets).status if octets else 0
        seen[status] = seen.get(status, 0) + 1
        assert status != 500, head[:300]

    for start in range(0, ROUNDS, 20):
        del start
        bodies = [body_of(source, csr) for _ in range(20)]
        await asyncio.gather(*(one(head_of(source, client, len(b)), b) for b in bodies))
    assert seen.get(400, 0) > ROUNDS // 20, seen
    assert seen.get(200, 0) > 0, seen
    assert (await client.enroll(b64(csr))).status == 200


async def test_octets_that_are_no_tls_or_no_http_end_at_once(client: Client) -> None:
    source = random.Random(SEED)
    for _ in range(60):
        octets = source.randbytes(source.randint(1, 400))
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(octets)
        writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
    for _ in range(60):
        garbage = source.randbytes(source.randint(1, 400)) + b"\r\n\r\n"
        async with asyncio.timeout(12):
            answer = await client.raw(garbage)
        assert not answer.startswith(b"HTTP/1.1 5")
    assert (await client.request("GET", f"{BASE}/cacerts")).status == 200


async def test_every_refusal_of_a_flood_is_counted_and_none_starves_enrollment(
    client: Client,
) -> None:
    csr = b64(make_csr("dev-flood")[1])

    async def refused() -> int:
        return (await client.request("POST", f"{BASE}/simpleenroll", csr)).status

    async def on_record() -> int:
        records = await client.stack.records()
        return accounted(map(AuditRecord.model_validate, records))["auth.required"]

    # What other tests were refused is on record when a window of counts has passed.
    before, now = -1, await on_record()
    while before != now:
        await asyncio.sleep(WINDOW_S + 1)
        before, now = now, await on_record()
    statuses = await asyncio.gather(*(refused() for _ in range(200)))
    assert set(statuses) == {401}
    assert (await client.enroll(csr)).status == 200
    # What was only counted is on record when its window ends.
    async with asyncio.timeout(40):
        while await on_record() < before + 200:
            await asyncio.sleep(1)
    assert await on_record() == before + 200
