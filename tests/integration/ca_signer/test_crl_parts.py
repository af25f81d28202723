"""Revocation lists in parts: certificates name theirs, and any number of them fits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.main import load_signing_context
from ca_signer.revocation.crl import MOST, CRLPublisher
from est_frontend.auth.client_certificates import PeerValidator
from est_frontend.revocation.http_server import CRLServer
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.ids import serial_hex
from estcore.messages import topics
from estcore.pki.crl import read_crl
from estcore.runtime.stored_messages import last_values
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.many_certificates import write_certificates
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import PROFILES, SignerStack, signer_settings, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
URL = "http://crl.clinic.example/crl/{issuer}/{partition}.crl"
OLD_URL = "http://old.clinic.example/{partition}.crl"


def profiles_in_parts(folder: Path) -> Path:
    raw = yaml.safe_load(PROFILES.read_text())
    for profile in raw["profiles"]:
        profile["crl_url"] = URL
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def issuers_in_parts(platform: Platform, folder: Path, *counts: int) -> list[dict[str, Any]]:
    (issuer,) = signer_settings(platform, folder).issuers
    return [issuer.model_dump() | {"crl_partitions": counts, "crl_urls": [OLD_URL]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("signer")
    async with signer_stack(
        platform,
        folder,
        policy_file=policy_with_operators(folder),
        profiles_file=profiles_in_parts(folder),
        issuers=issuers_in_parts(platform, folder, 16, 4),
    ) as stack:
        yield stack


async def published_state(signer: SignerStack, folder: Path) -> SignerState:
    """What a front end knows that reads all of the state."""
    state = SignerState(folder, PeerValidator(SystemClock()).set_anchors, SystemClock())
    state.load()
    for stored in await last_values(signer.frontend, topics.PKI_STATE, "pki.state.>"):
        state.apply(stored.topic, stored.payload)
    return state


async def revoked_one(signer: SignerStack) -> x509.Certificate:
    answer = await signer.ask(signer.message(make_csr("dev-in-parts")[1]))
    assert answer.certificate is not None, answer
    certificate = x509.load_der_x509_certificate(answer.certificate)
    boss = await operator(signer, "CN=boss")
    named = {"serial": serial_hex(certificate.serial_number), "reason": "superseded"}
    assert (await boss.give(signer, "certificate-revoke", named)).outcome == "done"
    return certificate


async def test_a_revoked_certificate_is_in_the_part_it_names_as_openssl_finds(
    signer: SignerStack, tmp_path: Path
) -> None:
    certificate = await revoked_one(signer)
    serial = certificate.serial_number
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    (named,) = points[0].full_name or [None]
    assert named is not None
    assert named.value == f"http://crl.clinic.example/crl/issuing/16-{serial % 16}.crl"
    await signer.operations.lists.refresh()
    state = await published_state(signer, tmp_path / "state")
    holding = []
    for part in [None, *(f"{n}-{i}" for n in (4, 16) for i in range(n))]:
        found = state.crl("issuing", part)
        assert found is not None, part
        if any(entry.serial_number == serial for entry in read_crl(found.crl)[1]):
            holding.append(part)
    assert holding == [None, f"4-{serial % 4}", f"16-{serial % 16}"]
    assert state.missing_lists() == 0
    # Over HTTP, under the path the certificate names.
    path = str(named.value).removeprefix("http://crl.clinic.example")
    server = CRLServer(CRLListenSettings(port=0), state, SystemClock())
    head, _, body = server.answer(f"GET {path} HTTP/1.1\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    for missing in ("16-16", "3-1", "16-", "1", "016-1"):
        request = f"GET /crl/issuing/{missing}.crl HTTP/1.1\r\n\r\n".encode()
        assert server.answer(request).startswith(b"HTTP/1.1 404")
    # openssl takes the part for the certificate, and no other part.
    other = state.crl("issuing", f"16-{(serial + 1) % 16}")
    assert other is not None
    (tmp_path / "leaf.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    issuer = signer.settings.issuers[0]
    (tmp_path / "chain.pem").write_bytes(
        issuer.certificate_file.read_bytes() + issuer.chain_file.read_bytes()
    )
    verdicts = {"own": body, "other": other.crl}
    for name, octets in verdicts.items():
        pem = x509.load_der_x509_crl(octets).public_bytes(Encoding.PEM)
        (tmp_path / f"{name}.pem").write_bytes(pem)
        done = subprocess.run(
            ["openssl", "verify", "-crl_check", "-CAfile", "chain.pem", "-CRLfile", f"{name}.pem",
             "leaf.pem"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        verdicts[name] = done.stderr.encode()
    assert b"certificate revoked" in verdicts["own"]
    assert b"different CRL scope" in verdicts["other"]
    (tmp_path / "own.der").write_bytes(body)
    lint = Path(sys.executable).parent / "lint_crl"
    command = [str(lint), "lint", "-t", "CRL", "-p", "PKIX", "-s", "NOTICE", "own.der"]
    judged = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (judged.returncode, judged.stdout.strip()) == (0, ""), judged.stdout + judged.stderr


async def test_a_part_says_also_what_older_certificates_call_it(signer: SignerStack) -> None:
    await signer.operations.lists.refresh()
    crl = await signer.value("select crl from crl where partition = '16-3'")
    point = x509.load_der_x509_crl(crl).extensions.get_extension_for_class(
        x509.IssuingDistributionPoint
    )
    assert point.critical
    assert [name.value for name in point.value.full_name or ()] == [
        "http://crl.clinic.example/crl/issuing/16-3.crl",
        "http://old.clinic.example/16-3.crl",
    ]


async def test_only_the_parts_that_changed_are_made_again(signer: SignerStack) -> None:
    await signer.operations.lists.refresh()
    numbers = "select partition, number from crl"
    before = {r["partition"]: r["number"] for r in await signer.rows(numbers)}
    serial = (await revoked_one(signer)).serial_number
    await signer.operations.lists.refresh()
    after = {r["partition"]: r["number"] for r in await signer.rows(numbers)}
    changed = {part for part in after if after[part] != before.get(part)}
    assert changed == {"", f"4-{serial % 4}", f"16-{serial % 16}"}


@pytest.mark.logs_errors(
    "CRL too large for one message, increase crl_partitions",
)
async def test_more_than_one_list_holds_are_all_in_the_parts(
    signer: SignerStack, tmp_path: Path
) -> None:
    await signer.operations.lists.refresh()
    full = await signer.value("select number from crl where partition = ''")
    async with signer.database.connection() as connection:
        written = await write_certificates(connection, 0, MOST + 2_000)
        await connection.execute(
            "update issuance set revoked_at = now(), revocation_reason = 'superseded', "
            "revocation_seq = 1, revocation_changed_at = now(), revocation_announced_at = now(), "
            "not_after = now() + interval '9 days' where issuance_id = any($1::uuid[])",
            written,
        )
    lists = CRLPublisher(
        signer.database,
        signer.bus,
        signer.decision_context.issuers,
        lifetime_s=86_400,
        urls=signer.decision_context.crl_urls,
    )
    await lists.refresh()
    state = await published_state(signer, tmp_path)
    listed: set[int] = set()
    for part in range(16):
        found = state.crl("issuing", f"16-{part}")
        assert found is not None
        listed |= {entry.serial_number for entry in read_crl(found.crl)[1]}
    rows = await signer.rows(
        "select serial_number from issuance where revoked_at is not null "
        "and not_after > now() - interval '1 day'"
    )
    assert listed == {int.from_bytes(r["serial_number"], "big") for r in rows}
    assert len(listed) > MOST
    # The full list stays as it was: its time runs out, and no certificate of today names it.
    assert await signer.value("select number from crl where partition = ''") == full
    # Long expired, they leave all lists, and the full one is made again.
    await signer.rows(
        "update issuance set not_after = now() - interval '9 days' "
        "where issuance_id = any($1::uuid[])",
        written,
    )
    async with signer.database.connection() as connection:
        await connection.execute("update crl set next_update = now()")
    await lists.refresh()
    assert await signer.value("select number from crl where partition = ''") > full
    # The signer's own publisher takes up from there; other tests count on it.
    await signer.operations.lists.refresh()


async def test_keys_in_files_need_the_setting_that_accepts_them(
    platform: Platform, tmp_path: Path
) -> None:
    settings = signer_settings(platform, tmp_path)
    load_signing_context(settings)
    with pytest.raises(ConfigurationError) as caught:
        load_signing_context(settings.model_copy(update={"software_keys": "refuse"}))
    assert caught.value.code == "keystore.software_refused"


async def test_a_profile_that_names_parts_needs_an_issuer_that_makes_them(
    platform: Platform, tmp_path: Path
) -> None:
    settings = signer_settings(platform, tmp_path, profiles_file=profiles_in_parts(tmp_path))
    with pytest.raises(ConfigurationError, match="no crl_partitions"):
        load_signing_context(settings)
