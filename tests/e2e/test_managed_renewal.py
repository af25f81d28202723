"""Managed renewal over the wire: devices that only fetch, with curl and openssl as documented."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from estclient.agent.agent import Agent
from estclient.agent.bundle import Bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.settings import AgentSettings
from estclient.est.client import ESTClient, Limits
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.est.renewal_info import RenewalInfo, cert_id
from estsuite_testing.e2e_stack import (
    POLICY,
    Stack,
    same_key,
    start_stack,
    stop_stack,
    write_key,
)
from estsuite_testing.signer_stack import PROFILES

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
ONBOARDING = Path(__file__).parents[2] / "docs" / "onboarding.md"
PATIENT = Limits(timeout_s=10, attempts=10, longest_pause_s=5)
OPERATIONS = ["simpleenroll", "simplereenroll", "serverkeygen"]
LABELS = {
    "same": {"same_key": True, "max_key_age": "90d"},
    "sealed": {"server_key": True},
    "plain": None,
}
"""What managed renewal of a label's profile allows."""


def rules(folder: Path) -> tuple[Path, Path]:
    """Write a policy and profiles with one label and profile for each of ``LABELS``."""
    policy, profiles = yaml.safe_load(POLICY.read_text()), yaml.safe_load(PROFILES.read_text())
    for label, managed in LABELS.items():
        policy["labels"][label] = {
            "issuer": "issuing",
            "profiles": [label],
            "operations": OPERATIONS,
        }
        policy["rules"][0]["labels"].append(label)
        policy["rules"][0]["profiles"].append(label)
        renewal: dict[str, Any] = {"reaction_time": "7d", "overlap": "0s"}
        if managed is not None:
            renewal |= {"mode": "managed", "managed": managed}
        profiles["profiles"].append(
            {
                "name": label,
                "lifetime": "30d",
                "key_algorithms": ["ec-p256"],
                "subject_attributes": ["CN"],
                "key_usage": ["digital_signature", "key_agreement"],
                "extended_key_usage": ["client_auth"],
                "renewal": renewal,
            }
        )
    policy["rules"][0]["operations"] = OPERATIONS
    files = folder / "policy.yaml", folder / "profiles.yaml"
    for file, raw in zip(files, (policy, profiles), strict=True):
        file.write_text(yaml.safe_dump(raw))
    return files


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("managed")
    policy, profiles = rules(folder)
    started = await start_stack(
        folder,
        policy=policy,
        profiles=profiles,
        overrides={
            "est-frontend": {"renewal_info": {"poll_s": 0.2}},
            "renewal": {"renewal_info": {"check_every_s": 0.3}, "scheduler": {"poll_s": 0.2}},
            "ca-signer": {
                "lease_s": 3,
                "groups": {
                    "default": {
                        "labels": ["services", "strict", "demo", *LABELS],
                        "profiles": ["service-mtls", "demo", *LABELS],
                    }
                },
            },
        },
    )
    try:
        yield started
    finally:
        await stop_stack(started)


@dataclass
class Device:
    """A device with curl and openssl: its credential is in orders.pem and orders.key."""

    stack: Stack
    folder: Path
    label: str
    certificates: list[x509.Certificate] = field(default_factory=list)

    @classmethod
    async def enroll(cls, stack: Stack, folder: Path, label: str, name: str) -> Device:
        folder.mkdir()
        device = cls(stack, folder, label)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        csr = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
        client = device.client(secret=("load", stack.secret))
        enrolled = await client.simpleenroll(csr)
        write_key(folder / "orders.key", key)
        (folder / "orders.pem").write_bytes(enrolled.certificate.public_bytes(Encoding.PEM))
        device.certificates.append(enrolled.certificate)
        return device

    def client(self, **changes: Any) -> ESTClient:
        return ESTClient(
            f"https://localhost:{self.stack.layout.ports.est}",
            trust=self.stack.layout.root_file,
            label=self.label,
            limits=PATIENT,
            **changes,
        )

    @property
    def certificate(self) -> x509.Certificate:
        return self.certificates[-1]

    async def info(self) -> RenewalInfo:
        return await self.client().renewal_info(self.certificate)

    async def until(self, state: str | None) -> None:
        async with asyncio.timeout(30):
            while (await self.info()).managed != state:
                await asyncio.sleep(0.2)

    async def make_due(self) -> None:
        """Let the present certificate be due now."""
        await sql(
            self.stack,
            "update renewal.renewal_slot s set due_at = now(), next_attempt_at = now() "
            "from renewal.certificate c where c.issuance_id = s.active_id and c.serial = $1 "
            "and s.state = 'idle'",
            _serial(self.certificate),
        )

    async def shell(self, script: str) -> str:
        """Run commands of the documentation in the folder of the device."""
        root, port = self.stack.layout.root_file, self.stack.layout.ports.est
        octets, *_ = [block for block in commands("Renew with curl") if "AKI=" in block]
        setup = octets.split("curl ")[0].replace("/est/demo", f"/est/{self.label}")
        setup = f"ROOT={root}\n{setup}".replace("localhost:8443", f"localhost:{port}")
        process = await asyncio.create_subprocess_exec(
            "bash", "-eo", "pipefail", "-c", f"{setup}\n{script}",
            cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, f"{script}\n{output.decode(errors='replace')}"
        return output.decode()

    def take(self) -> tuple[x509.Certificate, Any]:
        """Use the new certificate, with its key where there is one, from now on."""
        new = x509.load_pem_x509_certificates((self.folder / "orders2.pem").read_bytes())[0]
        (self.folder / "orders2.pem").replace(self.folder / "orders.pem")
        if (self.folder / "orders2.key").exists():
            (self.folder / "orders2.key").replace(self.folder / "orders.key")
        key = load_pem_private_key((self.folder / "orders.key").read_bytes(), None)
        assert same_key(new, key)
        self.certificates.append(new)
        return new, key


def commands(heading: str) -> list[str]:
    """Return the blocks of commands in a section of the documentation."""
    text = ONBOARDING.read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


async def sql(stack: Stack, query: str, *arguments: Any) -> list[Any]:
    database = await stack.layout.postgres.superuser()
    try:
        return list(await database.fetch(query, *arguments))
    finally:
        await database.close()


def _serial(certificate: x509.Certificate) -> str:
    text = f"{certificate.serial_number:x}"
    return text if len(text) % 2 == 0 else "0" + text


async def slot_is(device: Device, state: str) -> Any:
    query = (
        "select s.* from renewal.renewal_slot s join renewal.certificate c using (slot_id) "
        "where c.serial = $1"
    )
    async with asyncio.timeout(30):
        while True:
            (row,) = await sql(device.stack, query, _serial(device.certificate))
            if row["state"] == state:
                return row
            await asyncio.sleep(0.1)


async def fetches(stack: Stack) -> dict[str, int]:
    """How often each certificate was fetched, by the audit log."""
    fetched = [r for r in await stack.records() if r["action"] == "est.renewed"]
    return Counter(
        r["details"]["fetched_serial"] for r in fetched if "fetched_serial" in r.get("details", {})
    )


async def test_a_device_that_only_fetches_keeps_its_key_through_two_rotations(
    stack: Stack, tmp_path: Path
) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "same", "dev-same")
    first = load_pem_private_key((device.folder / "orders.key").read_bytes(), None)
    fetch, _ = commands("Managed renewal with curl")
    for number in (1, 2):
        await device.until("scheduled")
        await device.make_due()
        await device.until("available")
        await device.shell(fetch)
        again = (
            f"{fetch.split('tr -d', 1)[0]}".replace("-o renewed", "-o again") + "cmp renewed again"
        )
        await device.shell(again)
        new, _ = device.take()
        assert same_key(new, first)
        row = await slot_is(device, "idle")
        assert row["generation"] == number + 1
    assert len({c.serial_number for c in device.certificates}) == 3
    wanted = {_serial(c): 2 for c in device.certificates[1:]}
    async with asyncio.timeout(40):
        while not wanted.items() <= (await fetches(stack)).items():
            await asyncio.sleep(0.5)
    records = await stack.records()
    slot = str((await slot_is(device, "idle"))["slot_id"])
    steps = [r["action"] for r in records if r.get("target", {}).get("slot_id") == slot]
    assert steps.count("rotation.activated") == 2
    assert "rotation.stalled" not in steps


async def test_a_device_that_only_fetches_gets_new_keys_through_two_rotations(
    stack: Stack, tmp_path: Path
) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "sealed", "dev-sealed")
    fetch, open_sealed = commands("Managed renewal with curl")
    download = fetch.split("tr -d", 1)[0]
    prove = fetch.splitlines()[-1].replace("orders.key", "orders2.key")
    keys = {_point(device.certificate)}
    for number in (1, 2):
        await device.until("scheduled")
        await device.make_due()
        await device.until("available")
        await device.shell(download)
        text = await device.shell(open_sealed)
        assert "CMS Verification successful" in text
        await device.shell(f"{download}\ncp renewed again\n{download}\ncmp renewed again")
        await device.shell(prove)
        new, _ = device.take()
        keys.add(_point(new))
        row = await slot_is(device, "idle")
        assert row["generation"] == number + 1
    assert len(keys) == 3
    # What was sealed is deleted when it is proven to be in use.
    async with asyncio.timeout(20):
        while await sql(
            stack,
            "select 1 from ca_signer.managed_issuance m join ca_signer.issuance using (issuance_id)"
            " where m.sealed_key is not null and subject = 'CN=dev-sealed'",
        ):
            await asyncio.sleep(0.2)


def _point(certificate: x509.Certificate) -> int:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_numbers().x


async def status_of(device: Device, other: Device | None = None, label: str | None = None) -> str:
    """Fetch what replaces the certificate of ``other``; returns status and code."""
    named = cert_id((other or device).certificate)
    text = await device.shell(
        "curl -sS --cacert $ROOT --cert orders.pem --key orders.key -o body -w '%{http_code}' "
        f"{'$EST' if label is None else f'${{EST%/*}}/{label}'}/renewed/{named}; "
        "echo; grep -o '\\[.*\\]' body || true; rm -f body"
    )
    return " ".join(text.split())


async def test_another_client_and_a_stranger_fetch_nothing(stack: Stack, tmp_path: Path) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "same", "dev-mine")
    other = await Device.enroll(stack, tmp_path / "o", "same", "dev-other")
    assert await status_of(device) == "204"
    await device.until("scheduled")
    await device.make_due()
    await device.until("available")
    assert await status_of(other, device) == "403 [renewed.identity]"
    assert await status_of(device, None, "plain") == "403 [reenroll.label]"
    text = await device.shell(
        "curl -sS --cacert $ROOT -o /dev/null -w '%{http_code}' $EST/renewed/$AKI.$SERIAL"
    )
    assert text.strip() == "401"
    assert (await status_of(device)).startswith("200")
    records: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not records:
            await stack.until_recorded()
            records = [
                r for r in await stack.records() if r.get("reason_code") == "renewed.identity"
            ]
    assert records[0]["action"] == "est.renewed"


async def test_a_device_whose_profile_is_not_managed_renews_by_itself(
    stack: Stack, tmp_path: Path
) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "plain", "dev-plain")
    await device.until(None)
    assert await status_of(device) == "204"


async def test_a_refused_device_sees_that_it_has_to_enroll(stack: Stack, tmp_path: Path) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "same", "dev-old-key")
    await device.until("scheduled")
    await sql(
        stack,
        "update ca_signer.key_binding set created_at = now() - interval '91 days' "
        "where spki_sha256 = (select spki_sha256 from ca_signer.issuance where subject = $1)",
        "CN=dev-old-key",
    )
    await device.make_due()
    await device.until(None)
    row = await slot_is(device, "failed")
    assert row["last_error_class"] == "managed.key_too_old"
    assert await status_of(device) == "204"
    credential = (device.folder / "orders.pem", device.folder / "orders.key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-old-key")])
    csr = x509.CertificateSigningRequestBuilder(subject).sign(key, SHA256())
    await device.client(credential=credential).simplereenroll(csr)
    await slot_is(device, "overlap")


@pytest.mark.parametrize("fault", ["signer.5.recorded", "signer.9.stored"])
async def test_a_signer_that_dies_on_the_way_leaves_one_certificate(
    stack: Stack, tmp_path: Path, fault: str
) -> None:
    device = await Device.enroll(stack, tmp_path / "d", "sealed", f"dev-{fault.replace('.', '-')}")
    await device.until("scheduled")
    suite = stack.suite
    (name,) = [n for n in suite.services if n.startswith("ca-signer")]
    await suite.stop_service(name)
    # Its own certificate, which signs sealed keys, is the first one.
    environment = {"ESTSUITE_FAULT": f"{fault}:exit:2"}
    await suite.start_service("ca-signer", name, wait=True, environment=environment)
    await device.make_due()
    async with asyncio.timeout(30):
        await suite.services[name].process.wait()
    await suite.stop_service(name)
    await suite.start_service("ca-signer", name, wait=True)
    await device.until("available")
    fetch, open_sealed = commands("Managed renewal with curl")
    await device.shell(fetch.split("tr -d", 1)[0])
    await device.shell(open_sealed)
    device.take()
    rows = await sql(
        stack,
        "select state from ca_signer.issuance where subject = $1 "
        "and (context::json)->>'operation' = 'managed'",
        f"CN=dev-{fault.replace('.', '-')}",
    )
    assert [row["state"] for row in rows] == ["issued"]


@pytest.mark.parametrize("label", ["same", "sealed"])
async def test_an_agent_with_managed_fetches_and_proves(
    stack: Stack, tmp_path: Path, label: str
) -> None:
    device = await Device.enroll(stack, tmp_path / "d", label, f"dev-agent-{label}")
    key = load_pem_private_key((device.folder / "orders.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authorities = tuple(await device.client().cacerts())
    store = CredentialStore(tmp_path / "store")
    now = SystemClock().now()
    first = store.save(Bundle(device.certificate, key, authorities), now=now)
    store.note(replace(first, in_use=True, proven=True))
    settings = AgentSettings.model_validate(
        {
            "server": {
                "urls": [f"https://localhost:{stack.layout.ports.est}"],
                "trust_file": stack.layout.root_file,
                "label": label,
            },
            "store": tmp_path / "store",
            "managed": True,
        }
    )
    for number in (2, 3):
        await device.until("scheduled")
        await Agent(settings).advance()
        unchanged = store.load()  # nothing to fetch, and no renewal of its own
        assert unchanged is not None
        assert unchanged.certificate == device.certificate
        await device.make_due()
        await device.until("available")
        await Agent(settings).advance()
        bundle = store.load()
        assert bundle is not None
        assert bundle.proven
        assert bundle.fingerprint != first.fingerprint
        device.certificates.append(bundle.certificate)
        row = await slot_is(device, "idle")
        assert row["generation"] == number
    assert same_key(device.certificate, key) is (label == "same")
    operations = await sql(
        stack,
        "select (context::json)->>'operation' as operation from ca_signer.issuance "
        "where subject = $1 order by issued_at",
        f"CN=dev-agent-{label}",
    )
    assert [r["operation"] for r in operations] == ["simpleenroll", "managed", "managed"]


@pytest.mark.parametrize("label", ["same", "sealed"])
async def test_estctl_renew_fetches(stack: Stack, tmp_path: Path, label: str) -> None:
    device = await Device.enroll(stack, tmp_path / "d", label, f"dev-estctl-{label}")
    files = ["--certificate", str(device.folder / "orders.pem")]
    server = [
        *("--url", f"https://localhost:{stack.layout.ports.est}", "--label", label),
        *("--trust", str(stack.layout.root_file)),
    ]
    await device.until("scheduled")
    with pytest.raises(ConfigurationError, match="nothing to fetch"):
        await stack.suite.run("estctl", "renew", *server, *files, "--fetch")
    await device.make_due()
    await device.until("available")
    text = await stack.suite.run("estctl", "renew", *server, *files, "--fetch", "--prove")
    assert "proven to be in use" in text
    new = x509.load_pem_x509_certificates((device.folder / "orders.pem").read_bytes())[0]
    assert new != device.certificate
    key = load_pem_private_key((device.folder / "orders.key").read_bytes(), None)
    assert same_key(new, key)
