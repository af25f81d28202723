"""``check-store``: nothing in a good store, everything in a bad one, and memory holds one page."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca_signer.store_lint import run
from ca_signer.store_lint.run import Checked, Scope, StoredCertificateLint
from estcore import ids
from estcore.clock import SystemClock
from estsuite_testing.other_ca import named
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signer(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignerStack]:
    folder: Path = tmp_path_factory.mktemp("store")
    async with signer_stack(platform, folder) as stack:
        for answer in await asyncio.gather(*(stack.ask(stack.message()) for _ in range(12))):
            assert answer.outcome == "issued"
        await stack.operations.lists.refresh()
        yield stack


async def check(signer: SignerStack, **scope: Any) -> tuple[Checked, list[dict[str, Any]]]:
    issuers = {
        name: issuer.certificate.certificate
        for name, issuer in signer.decision_context.issuers.items()
    }
    lines: list[dict[str, Any]] = []
    lint = StoredCertificateLint(
        signer.database, issuers, SystemClock(), lambda line: lines.append(dict(line))
    )
    done = await lint.run(Scope(**scope))
    assert lines[-1] == {"kind": "summary", **vars(done)}
    return done, lines[:-1]


async def spoil(signer: SignerStack, change: str, *values: Any) -> str:
    """Change one row by hand; returns its issuance id. The caller puts it back."""
    row = (await signer.rows("select issuance_id from issuance order by issuance_id limit 1"))[0]
    await signer.value(f"update issuance set {change} where issuance_id = $1", *row, *values)
    return str(row["issuance_id"])


async def test_a_good_store_has_no_findings(signer: SignerStack) -> None:
    done, findings = await check(signer, severity="notice")
    assert findings == []
    assert done.certificates >= 12
    assert done.lists >= 1
    assert done.unsigned == 0


@pytest.mark.parametrize(
    ("change", "check_name"),
    [
        ("subject = 'CN=dev-somebody-else'", "subject"),
        ("san = 'dns:extra.test'", "san"),
        ("not_after = not_after + interval '1 second'", "not_after"),
        ("spki_sha256 = sha256('x'::bytea)", "key"),
        ("certificate_sha256 = sha256('x'::bytea)", "fingerprint"),
    ],
)
async def test_a_row_that_says_another_thing_than_its_certificate_is_found(
    signer: SignerStack, change: str, check_name: str
) -> None:
    column = change.partition(" ")[0]
    sql = f"select issuance_id, {column} as kept from issuance order by issuance_id limit 1"
    kept = (await signer.rows(sql))[0]["kept"]
    spoilt = await spoil(signer, change)
    try:
        _, findings = await check(signer)
    finally:
        await spoil(signer, f"{column} = $2", kept)
    (found,) = findings
    assert (found["issuance_id"], found["linter"], found["check"]) == (spoilt, "ledger", check_name)
    assert found["issuer"] == "issuing"


async def test_a_certificate_of_a_different_ca_is_found_by_both_linters(
    signer: SignerStack,
) -> None:
    """Put into the ledger by an attacker with its password: unsigned, a CA, without extensions."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    bad = (
        x509.CertificateBuilder()
        .subject_name(named("dev-inserted"))
        .issuer_name(named("unknown"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    issuance_id = ids.uuid7()
    await signer.value(
        "insert into issuance (issuance_id, enrollment_id, request_id, issuer_id, serial_number, "
        "state, lease_until, sign_before, certificate, certificate_sha256, tenant, service, "
        "profile, slot_id, subject, san, spki_sha256, not_before, not_after, context, issued_at) "
        "select $1, enrollment_id, $2, issuer_id, $3, state, lease_until, sign_before, $4, $5, "
        "tenant, service, profile, slot_id, subject, san, spki_sha256, not_before, not_after, "
        "context, now() from issuance where state = 'issued' limit 1",
        issuance_id,
        ids.uuid7(),
        b"\x01" * 18,
        bad,
        sha256(bad).digest(),
    )
    try:
        done, findings = await check(signer)
        own = [f for f in findings if f["issuance_id"] == issuance_id]
        assert {"signature", "ca", "key_usage", "subject", "key"} <= {
            f["check"] for f in own if f["linter"] == "ledger"
        }
        assert [f for f in own if f["linter"] == "pkilint"]
        assert own == findings
        assert done.findings == len(findings)
        # Without pkilint, our own is left.
        _, fewer = await check(signer, pkilint=False)
        assert {f["linter"] for f in fewer} == {"ledger"}
    finally:
        # The runtime role may not delete; what is over is not looked at any more.
        await signer.value(
            "update issuance set state = 'abandoned', certificate = null, "
            "certificate_sha256 = null where issuance_id = $1",
            issuance_id,
        )


async def test_a_list_that_is_late_or_of_another_number_is_found(signer: SignerStack) -> None:
    await signer.value("update crl set number = number + 7, last_number = last_number + 7")
    try:
        _, findings = await check(signer)
    finally:
        await signer.value("update crl set number = number - 7, last_number = last_number - 7")
    assert {(f["kind"], f["check"]) for f in findings} == {("crl", "number")}


async def test_pages_sample_and_time_leave_nothing_out_and_nothing_twice(
    signer: SignerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, _ = await check(signer, pkilint=False)
    monkeypatch.setattr(run, "PAGE", 5)
    paged, _ = await check(signer, pkilint=False)
    assert paged.certificates == everything.certificates
    half, _ = await check(signer, pkilint=False, percent=50)
    again, _ = await check(signer, pkilint=False, percent=50)
    assert half.certificates == again.certificates < everything.certificates
    since = SystemClock().now() - dt.timedelta(hours=1)
    assert (await check(signer, pkilint=False, since=since))[0] == everything
    await signer.value(
        "update issuance set issued_at = issued_at - interval '2 hours' where issuance_id = "
        "(select issuance_id from issuance where state = 'issued' limit 1)"
    )
    recent, _ = await check(signer, pkilint=False, since=since)
    assert recent.certificates == everything.certificates - 1
    unknown, _ = await check(signer, pkilint=False, issuer="unknown")
    assert (unknown.certificates, unknown.lists) == (0, 0)


async def test_the_command_ends_with_one_and_a_line_and_is_on_record(
    signer: SignerStack, tmp_path: Path
) -> None:
    config = tmp_path / "ca-signer.yaml"
    raw = json.loads(signer.settings.model_dump_json(exclude_none=True))
    config.write_text(yaml.safe_dump(raw))

    async def run(*arguments: str) -> tuple[int | None, list[dict[str, Any]], str]:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "ca-signer"),
            "check-store",
            "--config",
            str(config),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, [json.loads(x) for x in out.splitlines()], err.decode()

    code, lines, _ = await run("--since", "12h")
    assert (code, lines[-1]["findings"]) == (0, 0)
    row = (await signer.rows("select subject from issuance order by issuance_id limit 1"))[0]
    await spoil(signer, "subject = 'CN=spoilt'")
    try:
        code, lines, err = await run("--no-pkilint")
    finally:
        await spoil(signer, "subject = $2", row["subject"])
    assert code == 1
    assert [line["check"] for line in lines[:-1]] == ["subject"]
    assert "1 findings in" in err
    assert "[store.findings]" in err
    records = await signer.audited("certificates.checked")
    assert [(r.outcome, r.severity) for r in records] == [("success", "info"), ("failure", "error")]
    details = records[-1].details
    assert details is not None
    assert details["findings"] == 1
    code, _, err = await run("--percent", "0")
    assert code == 2
    assert "--percent" in err
