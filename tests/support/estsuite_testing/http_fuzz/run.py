"""One run: a suite, connections that send mutated requests for a time, and the checks."""

from __future__ import annotations

import asyncio
import copy
import random
import shutil
import ssl
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
    write_key,
)
from estsuite_testing.error_log import ERRORS
from estsuite_testing.http_fuzz.answers import BadAnswer, read_answers
from estsuite_testing.http_fuzz.mutations import Plan, plan
from estsuite_testing.raw_client import BASE, Client, b64
from estsuite_testing.suite_template import share_template

CONNECTIONS = 8
_EXCHANGES = 12
_FIRST_S, _NEXT_S, _PAUSE_S = 0.5, 0.05, 0.01
_WARM_UP = 0.2
_MAX_GROWTH_MIB = 96
_OK = 200
_INFO = "renewal-info/aYhba4dGQEHhs3uEe9CuLN4ByNQ.AIdlQyE"
_RATE = 1e6
_OVERRIDES = {
    "est-frontend": {
        "rates": {
            "source_per_s": _RATE,
            "source_burst": _RATE,
            "identity_per_s": _RATE,
            "identity_burst": _RATE,
        },
        "limits": {"head_timeout_s": 1, "body_timeout_s": 1},
    }
}


@dataclass
class Outcome:
    """What came of a run."""

    seed: int
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    rss_mib: tuple[int, int] = (0, 0)
    findings: list[str] = field(default_factory=list)
    kept: Path | None = None

    def lines(self) -> list[str]:
        """What a person reads."""
        statuses = ", ".join(f"{status} {count}" for status, count in sorted(self.statuses.items()))
        return [
            f"seed {self.seed}, {self.cut} connections ended by the server without an answer",
            f"answers  {statuses}",
            f"codes    {', '.join(f'{code} {count}' for code, count in self.codes.most_common())}",
            f"memory   {self.rss_mib[0]} MiB, at the end {self.rss_mib[1]} MiB",
            *self.findings,
        ]


def seeds(basic: str, csr: bytes) -> list[bytes]:
    """Return a good request of each operation, and of each way to send one."""
    body = b64(csr)
    get = "{} {}/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n"
    head = (
        "POST {}/{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: {}\r\n"
        "Content-Transfer-Encoding: base64\r\n{}\r\n"
    )
    found = [
        get.format(method, BASE, operation, basic).encode()
        for method in ("GET", "HEAD")
        for operation in (
            *("cacerts", "csrattrs", "services/cacerts", "strict/csrattrs", _INFO),
            _INFO.replace("renewal-info", "renewed"),
        )
    ]
    length = f"Content-Length: {len(body)}\r\n"
    for path in ("simpleenroll", "simplereenroll", "serverkeygen", "fullcmc", "demo/simpleenroll"):
        found.append(head.format(BASE, path, basic, "application/pkcs10", length).encode() + body)
    jws = b"e30.e30.AA"
    length_of_jws = f"Content-Length: {len(jws)}\r\n"
    found.append(
        head.format(BASE, "rotation-ack", basic, "application/jose", length_of_jws).encode() + jws
    )
    empty = "POST {}/rotation-ack HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    found.append(empty.format(BASE).encode())
    slow = head.format(
        BASE, "simpleenroll", basic, "application/pkcs10", f"Expect: 100-continue\r\n{length}"
    )
    chunked = head.format(
        BASE, "simpleenroll", basic, "application/pkcs10", "Transfer-Encoding: chunked\r\n"
    )
    absolute = get.format("GET", f"https://localhost{BASE}", "cacerts", basic)
    return [
        *found,
        slow.encode() + body,
        chunked.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        absolute.encode(),
    ]


class _Sender:
    """One connection after the other; keeps what was sent on the one that has a bad answer."""

    def __init__(
        self, client: Client, contexts: list[ssl.SSLContext], outcome: Outcome, findings: Path
    ) -> None:
        self._client, self._contexts = client, contexts
        self._outcome, self._findings = outcome, findings

    async def run(self, source: random.Random, requests: list[bytes], until: float) -> None:
        """Send until the time is over."""
        while time.monotonic() < until:
            sent: list[Plan] = []
            context = source.choice(self._contexts)
            # A source of its own: wrong passwords of others must not make this one pause.
            client = _from(self._client, source.randrange(2, 2**16))
            async with client.connection(context) as (reader, writer):
                for _ in range(_EXCHANGES):
                    sent.append(plan(source, requests))
                    self._outcome.sent += 1
                    if not await self._exchange(reader, writer, sent):
                        break

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: list[Plan]
    ) -> bool:
        """Send the last plan; returns whether the connection can be used again."""
        octets, ended = b"", False
        try:
            for piece in sent[-1].pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(_PAUSE_S if len(sent[-1].pieces) > 1 else 0)
            if sent[-1].close_early:
                return False
            octets, ended = await _received(reader)
        except (ConnectionError, ssl.SSLError):
            # After an answer that ends the connection, or while a part of a long body is written.
            self._outcome.cut += len(sent) == 1
            return False
        try:
            answers = read_answers(octets, whole=ended)
        except BadAnswer as exc:
            self._keep(str(exc), sent)
            return False
        self._outcome.cut += ended and not answers and len(sent) == 1
        self._outcome.statuses.update(status for status, _ in answers)
        self._outcome.codes.update(code for _, code in answers if code)
        if any(code == "internal" for _, code in answers):
            self._keep("the code internal", sent)
        return bool(answers) and not ended

    def _keep(self, what: str, sent: list[Plan]) -> None:
        octets = b"".join(one.octets for one in sent)
        self._findings.mkdir(parents=True, exist_ok=True)
        kept = self._findings / f"http-{sha256(octets).hexdigest()[:16]}"
        kept.write_bytes(octets)
        self._outcome.kept = kept
        self._outcome.findings.append(f"{what} ({kept.name})")


def _from(client: Client, number: int) -> Client:
    """Return a client that connects from a loopback address of this number."""
    other = copy.copy(client)
    other.address, other.source = "127.0.0.1", f"127.1.{number >> 8}.{number & 255}"
    return other


async def _received(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return what comes until the server pauses or ends, and whether it ended."""
    octets, wait = b"", _FIRST_S
    while True:
        try:
            async with asyncio.timeout(wait):
                more = await reader.read(65_536)
        except TimeoutError:
            return octets, False
        if not more:
            return octets, True
        octets, wait = octets + more, _NEXT_S


def _rss_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024


async def run_http(folder: Path, findings: Path, *, seed: int, seconds: float) -> Outcome:
    """Start a suite in a folder and send for so long; findings are kept and named."""
    policy = yaml.safe_load(POLICY.read_text(encoding="utf-8"))
    policy["labels"]["services"]["operations"] = ["simpleenroll", "simplereenroll", "serverkeygen"]
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump(policy), encoding="utf-8")
    stack = await start_stack(folder, overrides=_OVERRIDES, policy=file)
    outcome = Outcome(seed)
    try:
        await _send(stack, outcome, findings, seconds)
        await _check(stack, outcome)
    finally:
        await stop_stack(stack)
    outcome.findings += [f"logged: {line}" for line in ERRORS.unexpected(set())]
    return outcome


async def _send(stack: Stack, outcome: Outcome, findings: Path, seconds: float) -> None:
    client = Client.of(stack)
    key, csr = make_csr("dev-fuzz")
    answer = await client.enroll(b64(csr))
    certificate = stack.folder / "client.pem"
    certificate.write_bytes(certificate_in(answer.body).public_bytes(Encoding.PEM))
    own = stack.client_context(certificate, write_key(stack.folder / "client.key", key))
    requests = seeds(client.basic, csr)
    (service,) = [s for s in stack.suite.services.values() if s.service == "est-frontend"]
    start = time.monotonic()
    senders = asyncio.gather(
        *(
            _Sender(client, [client.context, own], outcome, findings).run(
                random.Random(f"{outcome.seed}/{number}"), requests, start + seconds
            )
            for number in range(CONNECTIONS)
        )
    )
    await asyncio.sleep(seconds * _WARM_UP)
    before = _rss_mib(service.process.pid)
    await senders
    outcome.rss_mib = before, _rss_mib(service.process.pid)


async def _check(stack: Stack, outcome: Outcome) -> None:
    """Everything still works: CA certificates, an enrollment, memory."""
    client = _from(Client.of(stack), 1)
    for what, answer in (
        ("/cacerts", await client.request("GET", f"{BASE}/cacerts")),
        ("an enrollment", await client.enroll(b64(make_csr("dev-after")[1]))),
    ):
        if answer.status != _OK:
            outcome.findings.append(f"{what} afterwards: {answer.seen}")
    before, after = outcome.rss_mib
    if after - before > _MAX_GROWTH_MIB:
        outcome.findings.append(f"est-frontend has grown from {before} to {after} MiB")


def run_alone(findings: Path, *, seed: int, seconds: float) -> Outcome:
    """Run outside pytest, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="http-fuzz-"))
    share_template(folder / "template")
    (folder / "run").mkdir()
    try:
        return asyncio.run(run_http(folder / "run", findings, seed=seed, seconds=seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
