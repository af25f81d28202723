"""What a signer does in a second: by kind of key, in a file and in a SoftHSM, one and two signers.

``.venv/bin/python benchmarks/signer.py [-n 1500] [-c 64]``: starts the whole suite, asks on the
bus as a front end does, and waits for the answers. Per row: certificates per second, p50 and p99
from request to answer, CPU-ms per certificate of the signers (with the token's worker), of
PostgreSQL, NATS and audit. At the end: how long after a revocation was answered the certificate
is refused at EST, and OCSP and the CRL say so. ``openssl speed`` of the same minute comes first.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from nats.aio.msg import Msg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from ca_signer.ceremony import offline_ca
from estbench.processes import cpu_s
from estclient.est.keys import make_csr, make_key
from estcore import ids
from estcore.clock import SystemClock
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested, Principal
from estcore.messages.envelope import decode, encode
from estcore.pki.profile import Priority
from estcore.runtime import command_line
from estcore.runtime.bus import Bus, Outgoing
from estcore.runtime.command_line import CONTEXT
from estcore.runtime.settings import BusSettings
from estdev.layout import Layout, Ports
from estdev.local import LocalSuite
from estsuite_testing.softhsm import ALGORITHMS, SoftHSM, with_keys

CLOCK = SystemClock()
STORES = ("file", "token")


def ca_for(folder: Path, passphrase: Path, csr: Path) -> Path:
    """Return a new CA whose issuing key made ``csr``."""
    offline_ca.init(folder, name="Bench", passphrase_file=passphrase, clock=CLOCK, issuing_csr=csr)
    return folder


def issuers(folder: Path, hsm: SoftHSM) -> list[dict[str, Any]]:
    """Return the settings of an issuer for each kind of key and each place of it."""
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    found = []
    for key_id, algorithm in ALGORITHMS.items():
        for store in STORES:
            issuer_id = f"{store}-{algorithm}"
            if store == "token":
                csr = hsm.csr(key_id)
                key = {"token": hsm.settings(key_id).model_dump(mode="json")}
            else:
                csr, key = key_file(folder, algorithm, passphrase)
            ca = ca_for(folder / issuer_id, passphrase, csr)
            paths = {"certificate_file": ca / "issuing.pem", "chain_file": ca / "chain.pem"}
            found.append({"issuer_id": issuer_id, **{k: str(v) for k, v in paths.items()}, **key})
    return found


def key_file(folder: Path, algorithm: Any, passphrase: Path) -> tuple[Path, dict[str, Any]]:
    """Make a key in an encrypted file; returns its request and settings."""
    key = make_key(algorithm)
    path = folder / f"{algorithm}.key"
    encryption = BestAvailableEncryption(passphrase.read_bytes())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    csr = folder / f"{algorithm}.csr"
    der = make_csr(key, "CN=Bench CA")
    csr.write_bytes(x509.load_der_x509_csr(der).public_bytes(Encoding.PEM))
    return csr, {"key_file": str(path), "passphrase_file": str(passphrase)}


def policy(issuer_ids: list[str]) -> dict[str, Any]:
    labels = {i: {"issuer": i, "profiles": ["service-mtls"]} for i in issuer_ids}
    rule = {
        "name": "bench",
        "principal": {"secret": "bench"},
        "owner": {"tenant": "bench", "service": "load"},
        "labels": list(labels),
        "profiles": ["service-mtls"],
        "names": {"common_names": ["bench-*"]},
    }
    boss = {
        "name": "boss",
        "certificate_issuer": issuer_ids[0],
        "certificate_subject": "CN=boss",
        "roles": ["revoker", "auditor"],
    }
    return {
        "default_label": issuer_ids[0],
        "labels": labels,
        "rules": [rule],
        "operators": [boss],
    }


class Front:
    """Asks on the bus like a front end, many at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, asyncio.Future[EnrollmentAnswered]] = {}

    async def start(self) -> None:
        await self._bus.subscribe("est.reply.default.bench.*", self._answered)

    async def stop(self) -> None:
        await self._bus.close()

    async def _answered(self, message: Msg) -> None:
        answer = decode(EnrollmentAnswered, message.data)
        waiting = self._waiting.pop(answer.request_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def ask(self, issuer: str, csr: bytes) -> float:
        """Return the milliseconds until the certificate was there."""
        message = EnrollmentRequested(
            id=ids.uuid7(),
            source="est-frontend/bench",
            time=CLOCK.now(),
            correlation_id=ids.uuid7(),
            operation="simpleenroll",
            label=issuer,
            group="default",
            instance="bench",
            issuer=issuer,
            priority=Priority.NORMAL,
            principal=Principal(method="secret", name="bench"),
            csr=csr,
        )
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[message.id] = waiting
        topic = topics.request_topic("default", issuer, Priority.NORMAL)
        began = time.perf_counter()
        await self._bus.publish_confirmed([Outgoing(topic, encode(message), message.id)])
        async with asyncio.timeout(60):
            answer = await waiting
        assert answer.outcome == "issued", answer
        return (time.perf_counter() - began) * 1000

    async def load(self, issuer: str, csrs: list[bytes], concurrency: int) -> list[float]:
        took: list[float] = []
        left = iter(csrs)

        async def worker() -> None:
            for csr in left:
                took.append(await self.ask(issuer, csr))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
        return took


def requests(count: int) -> list[bytes]:
    """CSRs by distinct P-256 keys."""
    found = []
    for n in range(count):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"bench-{n}")])
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder(name).sign(key, SHA256())
        found.append(csr.public_bytes(Encoding.DER))
    return found


class Bench:
    """The suite and what it used."""

    def __init__(self, folder: Path, issuer_settings: list[dict[str, Any]]) -> None:
        ports = Ports.free()
        ports.choose()
        self.folder = folder
        self.layout = Layout(folder / "suite", ports)
        self.issuer_ids = [one["issuer_id"] for one in issuer_settings]
        crl = {"crl_listen": {"port": ports.est + 1, "ocsp": True}}
        self.layout.overrides = {
            "ca-signer": {"issuers": issuer_settings, "ocsp": {}},
            "est-frontend": crl,
        }
        self.suite = LocalSuite(self.layout)

    async def start(self) -> Front:
        self.layout.prepare()
        path = self.layout.config / "policy.yaml"
        path.write_text(yaml.safe_dump(policy(self.issuer_ids)))
        await self.suite.start()
        config = str(self.layout.config_file("ca-signer"))
        self.secret = await self.suite.command(
            "ca-signer", "secret", "create", "--id", "bench", "--config", config
        )
        nats = self.layout.nats
        seed = nats.seed_file("est-frontend")
        bus = await Bus.connect(
            BusSettings(url=nats.url, nkey_seed_file=seed, senders_file=nats.senders_file),
            "est-frontend",
            "bench",
        )
        front = Front(bus)
        await front.start()
        return front

    def cpu(self) -> dict[str, float]:
        found = {"signers": 0.0, "others": 0.0}
        for name, running in self.suite.services.items():
            kind = "signers" if name.startswith("ca-signer") else "others"
            found[kind] += cpu_s(running.process.pid)
        found["others"] += cpu_s(self.layout.postgres.pid) + cpu_s(self.layout.nats.pid)
        return found


async def rows(bench: Bench, front: Front, count: int, concurrency: int, signers: int) -> None:
    for issuer in bench.issuer_ids:
        csrs = await asyncio.to_thread(requests, count + 50)
        await front.load(issuer, csrs[count:], 16)
        before = bench.cpu()
        began = time.perf_counter()
        took = await front.load(issuer, csrs[:count], concurrency)
        seconds = time.perf_counter() - began
        await asyncio.sleep(1.5)
        used = {k: (v - before[k]) / count * 1000 for k, v in bench.cpu().items()}
        store, _, algorithm = issuer.partition("-")
        print(
            f"{algorithm:9} {store:6} {signers:7} {count / seconds:7.0f} "
            f"{statistics.median(took):8.0f} {statistics.quantiles(took, n=100)[98]:8.0f} "
            f"{used['signers']:9.2f} {used['others']:8.2f}",
            flush=True,
        )


async def revocation(bench: Bench, times: int) -> None:
    """Print how soon a revocation takes effect, from the answer to the operator on."""
    from estdev.operator import make_operator

    settings = await make_operator(bench.suite, "CN=boss")
    issuer = bench.issuer_ids[0]
    chain = bench.folder / issuer / "issuing.pem"
    crl_port = bench.layout.overrides["est-frontend"]["crl_listen"]["port"]
    found: dict[str, list[float]] = {"EST": [], "OCSP": [], "CRL": []}
    for n in range(times):
        pem = bench.folder / f"revoked-{n}.pem"
        await asyncio.to_thread(enrolled, bench, pem, n)
        serial = f"{x509.load_pem_x509_certificate(pem.read_bytes()).serial_number:x}"
        await bench.suite.run(
            "estctl", "cert", "revoke", "--serial", serial, "--reason", "superseded",
            "--config", str(settings),
        )  # fmt: skip
        began = time.perf_counter()
        waits = {
            "EST": lambda pem=pem: refused_at_est(bench, pem),
            "OCSP": lambda pem=pem: ocsp_says(chain, pem, crl_port),
            "CRL": lambda serial=serial: crl_says(issuer, serial, crl_port),
        }
        async with asyncio.TaskGroup() as group:
            for name, check in waits.items():
                group.create_task(until_heard(found[name], check, began))
    for name, took in found.items():
        print(f"revoked, then known to {name:5} p50 {statistics.median(took):5.2f} s, "
              f"longest {max(took):5.2f} s")  # fmt: skip


async def until_heard(found: list[float], check: Any, began: float) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.02)
    found.append(time.perf_counter() - began)


def enrolled(bench: Bench, pem: Path, n: int) -> None:
    key = pem.with_suffix(".key")
    run = subprocess.run
    run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-subj", f"/CN=bench-revoked-{n}", "-outform", "DER",
         "-out", pem.with_suffix(".csr")], check=True, capture_output=True)  # fmt: skip
    answer = curl(bench, pem.with_suffix(".csr"), "simpleenroll",
                  ["-u", f"bench:{bench.secret.strip()}"])  # fmt: skip
    p7 = run(["openssl", "pkcs7", "-inform", "DER", "-print_certs"],
             input=base64.b64decode(answer), check=True, capture_output=True)  # fmt: skip
    pem.write_bytes(p7.stdout)


def curl(bench: Bench, csr: Path, operation: str, credentials: list[str]) -> bytes:
    body = base64.b64encode(csr.read_bytes())
    return subprocess.run(
        ["curl", "-sS", "--cacert", str(bench.layout.root_file), *credentials,
         "-H", "Content-Type: application/pkcs10", "--data-binary", "@-",
         f"{bench.suite.url}/{operation}"],
        input=body, check=True, capture_output=True,
    ).stdout  # fmt: skip


def refused_at_est(bench: Bench, pem: Path) -> bool:
    credentials = ["--cert", str(pem), "--key", str(pem.with_suffix(".key"))]
    return b"revoked" in curl(bench, pem.with_suffix(".csr"), "simplereenroll", credentials)


def ocsp_says(chain: Path, pem: Path, port: int) -> bool:
    done = subprocess.run(
        ["openssl", "ocsp", "-issuer", chain, "-cert", pem, "-CAfile", chain, "-partial_chain",
         "-url", f"http://127.0.0.1:{port}/ocsp/{chain.parent.name}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ": revoked" in done.stdout


def crl_says(issuer: str, serial: str, port: int) -> bool:
    url = f"http://127.0.0.1:{port}/crl/{issuer}.crl"
    done = subprocess.run(["curl", "-sS", url], capture_output=True, check=False)
    try:
        crl = x509.load_der_x509_crl(done.stdout)
    except ValueError:
        return False
    return crl.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None


async def run(folder: Path, count: int, concurrency: int, revocations: int) -> None:
    hsm = with_keys(SoftHSM(folder / "hsm"))
    bench = Bench(folder, issuers(folder, hsm))
    # The library and the token's configuration are found by these.
    wanted = ("SOFTHSM2_CONF", "LD_LIBRARY_PATH")
    found = hsm.environment
    bench.suite.environment = {k: found[k] for k in wanted if k in found}
    front = await bench.start()
    try:
        print("key       store  signers   per s   p50 ms   p99 ms  CPU-ms signers   others")
        await rows(bench, front, count, concurrency, 1)
        await bench.suite.start_service("ca-signer", "ca-signer-2", wait=True)
        await rows(bench, front, count, concurrency, 2)
        await bench.suite.stop_service("ca-signer-2")
        await revocation(bench, revocations)
    finally:
        await front.stop()
        await bench.suite.stop()
        shutil.rmtree(bench.layout.postgres.home, ignore_errors=True)


def speed() -> None:
    for kind in ("ecdsap256", "ecdsap384", "rsa3072"):
        command = ["openssl", "speed", "-seconds", "1", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        signs = re.findall(r"([\d.]+)\s+[\d.]+\s*$", done.stdout.strip())
        print(f"openssl {kind}: {signs[0]} signatures/s")


@click.command("signer", help="Measure ca-signer by kind of key.", context_settings=CONTEXT)
@click.option("-n", "--count", type=int, default=1500, help="Certificates in each row.")
@click.option("-c", "--concurrency", type=int, default=64, help="Requests at once.")
@click.option("--revocations", type=int, default=10, help="Revocations to wait for.")
def signer(count: int, concurrency: int, revocations: int) -> None:
    speed()
    work = Path(tempfile.mkdtemp(prefix="estsuite-bench-"))
    try:
        asyncio.run(run(work, count, concurrency, revocations))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(command_line.run(signer, "signer"))
