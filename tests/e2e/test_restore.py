"""A ledger restored from a backup: nothing is signed before the audit log has completed it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estcore.errors import ConfigurationError
from estdev.local import admin_get
from estdev.operator import make_operator
from estdev.ports import free_port
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    certificate_in,
    make_csr,
    start_stack,
    stop_stack,
    write_key,
)
from estsuite_testing.raw_client import BASE, Answer, Client, b64

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Story:
    """A suite, and what its ledger was at some time."""

    stack: Stack
    folder: Path
    crl_port: int

    async def backup(self) -> None:
        """Copy every table of the ledger beside it."""
        connection = await self.stack.layout.postgres.superuser()
        try:
            await connection.execute("create schema backup")
            for name in await self._tables(connection):
                await connection.execute(f"create table backup.{name} as table ca_signer.{name}")
        finally:
            await connection.close()

    async def restore(self) -> None:
        """Put the ledger back to what it was; the audit log is another schema and stays."""
        connection = await self.stack.layout.postgres.superuser()
        try:
            names = await self._tables(connection)
            tables = ", ".join(f"ca_signer.{name}" for name in names)
            async with connection.transaction():
                await connection.execute(f"truncate {tables}")
                for name in names:
                    await connection.execute(
                        f"insert into ca_signer.{name} overriding system value "
                        f"select * from backup.{name}"
                    )
        finally:
            await connection.close()

    async def _tables(self, connection: Any) -> list[str]:
        rows = await connection.fetch(
            "select table_name from information_schema.tables where table_schema = 'ca_signer' "
            "and table_type = 'BASE TABLE' and table_name <> 'alembic_version' order by 1"
        )
        return [f'"{row["table_name"]}"' for row in rows]

    async def export(self, *, sealed: bool = True) -> Path:
        """Export the audit log up to the next checkpoint."""
        out = self.folder / f"audit-{len(list(self.folder.iterdir()))}.jsonl"
        config = str(self.stack.layout.config_file("audit"))
        more = ["--sealed"] if sealed else []
        await self.stack.suite.command(
            "audit", "export", *more, "--out", str(out), "--config", config
        )
        return out

    @contextlib.asynccontextmanager
    async def traffic(self) -> AsyncIterator[None]:
        """Clients that are refused, and are on record, several times a second."""

        async def knock() -> None:
            client = Client.of(self.stack)
            client.basic = "Basic " + b64(b"web-bootstrap:wrong").decode()
            while True:
                await client.request("GET", f"{BASE}/nothing-here")
                await asyncio.sleep(0.1)

        knocking = asyncio.ensure_future(knock())
        try:
            yield
        finally:
            knocking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await knocking

    async def reconcile(self, export: Path, vkey: Path | None = None) -> str:
        key = vkey or self.stack.layout.config / "audit.vkey"
        arguments = ["--export", str(export), "--vkey", str(key)]
        config = ["--config", str(self.stack.layout.config_file("ca-signer"))]
        return await self.stack.suite.command("ca-signer", "reconcile", *arguments, *config)

    async def refused(self, export: Path, vkey: Path | None = None) -> str:
        with pytest.raises(ConfigurationError) as refused:
            await self.reconcile(export, vkey)
        return refused.value.reason

    async def estctl(self, settings: Path, *arguments: str) -> dict[str, Any]:
        out = await self.stack.suite.run("estctl", *arguments, "--config", str(settings), "--json")
        return dict(json.loads(out))

    async def enroll(self, csr: bytes, **more: str) -> Answer:
        return await Client.of(self.stack).enroll(b64(csr), **more)

    async def reenroll(self, certificate: x509.Certificate, key: Any, csr: bytes) -> Answer:
        pem = self.folder / f"{certificate.serial_number:x}.pem"
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        context = self.stack.client_context(pem, write_key(pem.with_suffix(".key"), key))
        path = f"{BASE}/simplereenroll"
        return await Client.of(self.stack).request("POST", path, b64(csr), context=context)

    async def crl(self) -> x509.CertificateRevocationList:
        url = f"http://127.0.0.1:{self.crl_port}/crl/issuing.crl"
        done = await asyncio.to_thread(
            subprocess.run, ["curl", "-sSf", url], check=True, capture_output=True
        )
        return x509.load_der_x509_crl(done.stdout)


def number_of(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def csr_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    return csr.public_bytes(Encoding.DER)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    folder: Path = tmp_path_factory.mktemp("restore")
    policy = yaml.safe_load(POLICY.read_text())
    policy["operators"] = [
        {
            "name": "boss",
            "certificate_issuer": "issuing",
            "certificate_subject": "CN=boss",
            "roles": ["revoker", "auditor"],
        }
    ]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    port = free_port()
    overrides = {
        "est-frontend": {"crl_listen": {"port": port}},
        "audit": {"checkpoint": {"interval_s": 4}},
    }
    stack = await start_stack(folder, policy=path, overrides=overrides)
    try:
        yield Story(stack, folder, port)
    finally:
        await stop_stack(stack)


@pytest.mark.logs_errors(
    "ledger is older than the bus, run ca-signer reconcile",
    "service stops after a crash",
)
async def test_a_restored_ledger_signs_only_after_it_was_completed(story: Story) -> None:
    stack, suite = story.stack, story.stack.suite
    operator = await make_operator(suite, "CN=boss")
    config = ["--config", str(stack.layout.config_file("ca-signer"))]
    once = ["secret", "create", "--id", "once", "--one-time"]
    spent = (await suite.command("ca-signer", *once, *config)).strip()
    as_once = "Basic " + b64(f"once:{spent}".encode()).decode()

    # 1. A backup, and life that goes on: a renewal, a first one, a lost key, a spent secret.
    key, csr = make_csr("dev-client")
    before = certificate_in((await story.enroll(csr)).body)
    await story.backup()
    renewed_key, renewal = make_csr("dev-client")
    renewed = certificate_in((await story.reenroll(before, key, renewal)).body)
    _, kept_csr = make_csr("dev-kept")
    kept = certificate_in((await story.enroll(kept_csr)).body)
    lost_key, lost_csr = make_csr("dev-lost")
    lost = certificate_in((await story.enroll(lost_csr)).body)
    client = Client.of(stack)
    client.basic = as_once
    once_csr = make_csr("dev-once")[1]
    with_secret = await client.enroll(b64(once_csr))
    assert with_secret.status == 200
    revoke = ["cert", "revoke", "--fingerprint", lost.fingerprint(SHA256()).hex()]
    await story.estctl(operator, *revoke, "--reason", "keyCompromise")
    async with asyncio.timeout(20):
        while (listed := await story.crl()).get_revoked_certificate_by_serial_number(
            lost.serial_number
        ) is None:
            await asyncio.sleep(0.2)

    # 2. The ledger becomes what it was. The signer that runs ends by itself; a new one waits.
    running = suite.services["ca-signer"]
    await story.restore()
    async with asyncio.timeout(30):
        assert await running.process.wait() != 0
    await suite.stop_service("ca-signer")
    waiting = await suite.start_service("ca-signer", "ca-signer", wait=False)
    async with asyncio.timeout(20):
        while "ledger_complete" not in (ready := await admin_get(waiting.admin_port, "/readyz")):
            await asyncio.sleep(0.2)
    assert not ready.startswith("ready")
    assert (await story.enroll(make_csr("dev-new")[1])).status == 202
    request = story.folder / "boss.csr"
    request.write_bytes(csr_for("boss", ec.generate_private_key(ec.SECP256R1())))
    out = ["--csr", str(request), "--out", str(story.folder / "boss.pem")]
    with pytest.raises(ConfigurationError, match="run ca-signer reconcile"):
        await suite.command("ca-signer", "operator", "enroll", *out, *config)

    # 3. A log that was changed, or is by another key, completes nothing.
    export = await story.export()
    changed = story.folder / "changed.jsonl"
    changed.write_bytes(export.read_bytes().replace(b"dev-kept", b"dev-hers"))
    assert "does not verify" in await story.refused(changed)
    other = await suite.run(
        "est-audit",
        "keygen",
        "--origin",
        "other.example/audit",
        "--out",
        str(story.folder / "k.pem"),
    )
    foreign = story.folder / "other.vkey"
    foreign.write_text(other.strip() + "\n")
    assert "does not verify" in await story.refused(export, foreign)
    assert not (await admin_get(waiting.admin_port, "/readyz")).startswith("ready")

    # 4. The right one does, under traffic; the waiting signer goes on.
    async with story.traffic():
        await asyncio.sleep(1)
        export = await story.export(sealed=False)
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        sealed_size = max(x["size"] for x in lines if x["type"] == "checkpoint")
        assert sealed_size < sum(x["type"] == "record" for x in lines)
        report = await story.reconcile(export)
    assert (
        "put back: 4 certificates, 0 serial numbers never delivered, 1 revocations, 0 rollovers"
        in report
    )
    assert "boss certificate-revoke" in report
    await suite.wait_ready(waiting)
    again = await story.reconcile(export)
    assert (
        "put back: 0 certificates, 0 serial numbers never delivered, 0 revocations, 0 rollovers"
        in again
    )

    # 5. The same enrollments are answered with the same certificates.
    assert certificate_in((await story.enroll(kept_csr)).body) == kept
    repeated = await story.reenroll(before, key, renewal)
    assert certificate_in(repeated.body) == renewed
    assert certificate_in((await client.enroll(b64(once_csr))).body) == certificate_in(
        with_secret.body
    )
    another = await story.reenroll(renewed, renewed_key, make_csr("dev-client")[1])
    assert another.status == 200, another.text

    # 6. What was revoked stays so, its key too; what was spent stays spent.
    refused = await story.reenroll(lost, lost_key, make_csr("dev-lost")[1])
    assert (refused.status, "[auth.certificate_revoked]" in refused.text) == (401, True)
    refused = await story.enroll(csr_for("dev-other", lost_key))
    assert "[key.compromised]" in refused.text
    refused = await client.enroll(b64(make_csr("dev-more")[1]))
    assert "[secret.spent]" in refused.text
    async with asyncio.timeout(30):
        while number_of(now := await story.crl()) <= number_of(listed):
            await asyncio.sleep(0.3)
    assert now.get_revoked_certificate_by_serial_number(lost.serial_number) is not None

    # 7. Ledger, log and renewal agree, and what was done is on record.
    async with asyncio.timeout(120):
        while "\nverified: " not in (found := await stack.verify_cross()):
            await asyncio.sleep(1)
    assert "\nverified: " in found
    leaves = [json.loads(line) for line in (await story.export()).read_text().splitlines()]
    records = [json.loads(x["leaf"])["record"] for x in leaves if x["type"] == "record"]
    actions = [r["action"] for r in records]
    assert "signing.refused" in actions
    done = [r["details"] for r in records if r["action"] == "ledger.reconciled"]
    assert [d["issued"] for d in done] == ["4", "0"]
