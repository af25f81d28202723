"""The fault pages of the runbooks on a running suite under light traffic.

Each test makes a fault, waits for every quoted text under "Seen" of its page (readiness, metric,
code, log line, stream, audit record), runs the page's commands as written, and waits for "Over
when". The texts are read from the page, so page and product cannot differ. Settings are the
defaults; a test that shortens a time says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from estcore.errors import ConfigurationError
from estcore.messages import topics
from estcore.runtime.bus import Bus
from estcore.runtime.settings import BusSettings
from estdev.layout import AGENTS, nats_users
from estdev.local import admin_get
from estdev.nats import EmbeddedNATS
from estsuite_testing.debian import debian_packages
from estsuite_testing.e2e_stack import POLICY, start_stack, stop_stack
from estsuite_testing.raw_client import BASE
from estsuite_testing.runbook_pages import FOLDER, STREAMS, Watched, section

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
LATER = dt.timedelta(minutes=10)
"""Verified as if so much time had passed: nothing is on its way any more."""
ROOT = Path(__file__).parents[2]
EXECUTED = {
    "A process is down or not ready": "tests/e2e/test_monitoring.py",
    "Clients get errors": "tests/e2e/test_faults.py",
    "Requests wait": "tests/integration/ca_signer/test_token.py",
    "An issuer of cert-manager is not Ready, or its requests wait or fail": "tests/cert_manager/test_requests.py",
    "A stream is nearly full": "tests/integration/estcore/test_stream_limits.py",
    "Wrong secrets": "tests/e2e/test_documents.py",
    "Connections end at a limit": "tests/e2e/test_edge.py",
    "Token keys cannot be fetched": "tests/integration/est_frontend/test_token_keys.py",
    "A certificate of the suite ends": "tests/unit/estcore/test_certificate_expiry.py",
    "Certificates come near their end": "tests/e2e/test_documents.py",
    "An agent needs attention": "tests/integration/estclient/test_agent_host.py",
    "The probe fails": "tests/e2e/test_probe.py",
    "Renewals are not announced": "tests/integration/renewal/test_claims.py",
    "A token fails": "tests/integration/ca_signer/test_token.py",
    "Make an issuing CA under a root of yours": "tests/e2e/test_documents.py",
    "Make an issuing CA whose key is in a token": "tests/integration/ca_signer/test_token_command.py",
    "An upstream outcome is unknown": "tests/e2e/test_upstream.py",
    "An upstream CA returned a wrong certificate": "tests/integration/ca_signer/test_upstream.py",
    "An upstream CA does not revoke": "tests/integration/ca_signer/test_upstream_vault.py",
    "Move the streams to their account": "tests/integration/estcore/test_accounts_upgrade.py",
    "A rotation is stalled": "tests/integration/renewal/test_rotation.py",
    "A managed renewal is refused": "tests/e2e/test_managed_renewal.py",
    "Restore from a backup": "tests/e2e/test_restore.py",
    "Add an enrollment secret": "tests/e2e/test_documents.py",
    "Become an operator": "tests/e2e/test_documents.py",
    "Approve or reject a request": "tests/e2e/test_approval.py",
    "Find certificates": "tests/e2e/test_documents.py",
    "Revoke a certificate": "tests/e2e/test_documents.py",
    "Revoke many certificates: a bulk revocation": "tests/integration/ca_signer/test_bulk_revocation.py",
    "Renew many certificates: a campaign": "tests/e2e/test_campaign.py",
    "Serve revocation lists": "tests/e2e/test_revocation.py",
    "A revocation list is late": "tests/integration/ca_signer/test_crl.py",
    "Check the store every night": "tests/integration/ca_signer/test_check_store.py",
    "The nightly check finds something": "tests/integration/ca_signer/test_check_store.py",
    "Change the policy": "tests/e2e/test_limits_and_changes.py",
    "Verify the audit log": "tests/e2e/test_documents.py",
    "Roll over the issuing CA": "tests/e2e/test_rollover.py",
    "Roll over the root": "tests/e2e/test_rollover.py",
    "The CA has expired": "tests/e2e/test_expired_ca.py",
    "Renewal information is missing or old": "tests/e2e/test_renewal_info.py",
}
"""Pages that other tests execute, in parts or as a whole; their commands or their faults."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("runbooks")
    policy = yaml.safe_load(POLICY.read_text())
    policy["labels"]["strict"]["authentication"] = ["certificate", "secret"]
    policy["rules"][0]["labels"] = ["services", "strict"]
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    stack = await start_stack(folder, policy=path)
    seed = stack.layout.nats.seed_file("migrate")
    settings = BusSettings(url=stack.layout.nats.url, nkey_seed_file=seed)
    bus = await Bus.connect(settings, "migrate", "test", seed=seed.read_text().strip())
    whole = Watched(stack, bus)
    # One label that answers 202 when it takes long, and one that answers 503.
    traffic = [
        asyncio.create_task(whole.traffic(f"{BASE}/{label}simpleenroll"))
        for label in ("", "strict/")
    ]
    try:
        yield whole
    finally:
        for task in traffic:
            task.cancel()
        await asyncio.gather(*traffic, return_exceptions=True)
        await bus.close()
        await stop_stack(stack)


async def test_every_page_is_executed_here_or_by_a_test_that_exists() -> None:
    texts = [p.read_text(encoding="utf-8") for p in FOLDER.glob("*.md") if p.stem != "README"]
    pages = [text.partition("\n")[0].removeprefix("# ") for text in texts]
    here = Path(__file__).read_text(encoding="utf-8").split("async def watched", 1)[1]
    for heading in pages:
        other = EXECUTED.get(heading)
        assert (f'"{heading}"' in here) != (other is not None), heading
        assert other is None or (ROOT / other).exists(), other
    assert set(EXECUTED) <= set(pages)


async def restarted(watched: Watched, *services: str, **environment: str) -> None:
    """Stop services and start them again with settings in their environment."""
    suite = watched.stack.suite
    for service in services:
        await suite.stop_service(service)
    await asyncio.gather(
        *(suite.start_service(s, s, wait=True, environment=environment) for s in services)
    )


async def test_PostgreSQL_is_down(watched: Watched) -> None:
    await watched.begin()
    await watched.stack.layout.postgres.stop(immediate=True)
    await watched.until_seen("PostgreSQL is down", "not ready: database")
    assert all(answer[:3] in {"200", "202", "503"} for answer in watched.answers)
    await watched.stack.layout.postgres.start()
    await watched.until_over()


async def test_ca_signer_is_down(watched: Watched) -> None:
    await watched.begin()
    await watched.stack.suite.stop_service("ca-signer", kill=True)
    await watched.until_seen("ca-signer is down", "202")
    front_end = watched.stack.suite.services["est-frontend"]
    assert (await admin_get(front_end.admin_port, "/readyz")).startswith("ready")
    config = str(watched.stack.layout.config_file("ca-signer"))
    assert "`ca-signer check-config`" in section("ca-signer is down")
    await watched.stack.suite.run("ca-signer", "check-config", "--config", config)
    await watched.stack.suite.start_service("ca-signer", "ca-signer", wait=True)
    await watched.until_over()


async def test_NATS_is_down_and_its_streams_are_lost(watched: Watched) -> None:
    await watched.begin()
    nats = watched.stack.layout.nats
    await nats.stop(kill=True)
    await watched.until_seen("NATS is down")
    shutil.rmtree(nats.store)
    await nats.start()
    stored = "NATS is connected and stores nothing"
    await watched.until_seen(stored, "bus.storage", "does not exist")
    await watched.run_page("NATS is down")
    await watched.until_over()
    values = await watched.values()
    assert values["est-frontend est_frontend_spooled_records"] == 0
    assert values["est-frontend estsuite_streams_writable"] == 1


@pytest.mark.logs_errors("audit message unreadable")
async def test_dead_letters(watched: Watched) -> None:
    await watched.begin()
    seed = watched.stack.layout.nats.seed_file("est-frontend")
    nats = watched.stack.layout.nats
    settings = BusSettings(url=nats.url, nkey_seed_file=seed, senders_file=nats.senders_file)
    bus = await Bus.connect(settings, "est-frontend", "runbook")
    try:
        await bus.publish_unconfirmed("audit.refusal.est-frontend.default", b"no JSON")
        await watched.until_seen("Dead letters")
    finally:
        await bus.close()
    await watched.until_over()


@asynccontextmanager
async def full_streams(watched: Watched) -> AsyncIterator[None]:
    """The two audit streams take two more messages; afterwards as many as ever."""
    assert watched.bus is not None
    jetstream = watched.bus.client.jetstream()
    before = {}
    for name in (topics.AUDIT_ISSUE, topics.AUDIT_REFUSAL):
        info = await jetstream.stream_info(name)
        before[name] = info.config
        full = replace(info.config, max_msgs=info.state.messages + 2)
        await jetstream.update_stream(full)
    try:
        yield
    finally:
        for config in before.values():
            await jetstream.update_stream(config)


@contextlib.contextmanager
def unwritable(file: Path) -> Iterator[None]:
    """Another writer holds the spool, as a disk that refuses would."""
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("begin immediate")
    try:
        yield
    finally:
        holder.execute("rollback")
        holder.close()


@pytest.mark.logs_errors("audit records cannot be stored")
async def test_audit_does_not_keep_up_and_the_spool_of_a_front_end_fills(watched: Watched) -> None:
    await watched.begin()
    suite, layout = watched.stack.suite, watched.stack.layout
    await suite.stop_service("audit", kill=True)
    async with full_streams(watched):
        await watched.until_seen("Audit does not keep up, or its stream is full", "202")
        with unwritable(layout.folder / "spool" / "est-frontend.sqlite"):
            await watched.until_seen("The audit spool of a front end fills")
        front_end = suite.services["est-frontend"]
        assert front_end.process.returncode is None
        await suite.start_service("audit", "audit", wait=True)
    await watched.until_over()
    async with asyncio.timeout(30):
        while (await watched.values())["est-frontend est_frontend_spooled_records"]:
            await asyncio.sleep(0.5)
    async with watched.quiet():
        await watched.stack.until_recorded()
        assert not await watched.stack.findings(later=LATER)


async def test_the_SIEM_is_down(watched: Watched) -> None:
    siem = watched.stack.suite.siem
    assert siem is not None
    await watched.begin()
    await siem.stop()
    await watched.until_seen("The SIEM is down")
    await siem.start()
    lag = 'audit est_audit_sink_lag_records{sink="local-siem"}'
    async with asyncio.timeout(60):
        while (await watched.values()).get(lag, 1) > 20:
            await asyncio.sleep(0.5)
    received = len(siem.messages())
    await watched.run_page(
        "The SIEM is down", {"--sink siem": "--sink local-siem", "--from 120000": "--from 1"}
    )
    async with asyncio.timeout(60):
        while len(siem.messages()) < received + 20 or (await watched.values())[lag] > 20:
            await asyncio.sleep(0.5)
    await watched.until_over()


SENDING_SERVICES = ("est-frontend", "ca-signer", "renewal", "audit")


def refused_messages(values: dict[str, float]) -> dict[str, float]:
    """Return the counts of messages whose signature a service did not accept."""
    return {k: v for k, v in values.items() if " estsuite_messages_refused_total" in k}


async def run_commands(folder: Path, script: str, agents: list[str]) -> None:
    """Run commands of the page in a folder; its users of NATS are those of the suite."""
    render = f"{sys.executable} {ROOT / 'deploy/nats/render.py'} {' '.join(agents)}"
    script = script.replace("deploy/nats/render.py", render)
    process = await asyncio.create_subprocess_exec("bash", "-euc", script, cwd=folder)
    assert await process.wait() == 0, script


def reload_accounts(nats: EmbeddedNATS, accounts: Path) -> None:
    """Replace the accounts of nats-server and reload it, twice as an account may be new."""
    config = json.loads(nats.config_file.read_text())
    config["accounts"] = json.loads(accounts.read_text().removeprefix("accounts:"))
    nats.config_file.write_text(json.dumps(config))
    for _ in range(2):
        os.kill(nats.pid, signal.SIGHUP)


async def until_changed(watched: Watched, times: float) -> None:
    """Wait until so many changes of message keys are on record."""
    async with asyncio.timeout(60):
        while (await watched.values()).get("record config.changed", 0) < times:
            await asyncio.sleep(0.3)


async def stored_messages(watched: Watched) -> float:
    """Return how many messages of services lie in the streams that the page names."""
    values = await watched.values()
    return sum(values.get(f"nats {stream}", 1) for stream in STREAMS[:3])


async def test_message_keys(watched: Watched) -> None:
    """Every service's key at once; no message is refused, and the old keys are worth nothing."""
    nats, folder = watched.stack.layout.nats, watched.stack.folder
    shutil.copytree(watched.stack.layout.secrets, folder / "seeds")
    shutil.copy(nats.senders_file, folder / "senders.json")
    old = {name: nats.seed_file(name).read_text() for name in SENDING_SERVICES}
    agents = [f"--agent={tenant}/{service}" for tenant, service in AGENTS.values()]
    make, finish = re.findall(r"^ *```\n(.*?)^ *```$", section("Message keys"), re.M | re.S)
    make = make.replace("nats-renewal", f"nats-{{{','.join(SENDING_SERVICES)}}}")
    await watched.begin()
    before = await watched.values()
    changes = before.get("record config.changed", 0)

    # 1. and 2.
    await run_commands(folder, make, agents)
    (folder / "senders.new.json").replace(nats.senders_file)
    await until_changed(watched, changes + len(SENDING_SERVICES))

    # 3.
    reload_accounts(nats, folder / "accounts.conf")
    for name in SENDING_SERVICES:
        new = folder / "seeds.new" / f"nats-{name}.seed"
        assert new.read_text() != old[name]
        shutil.copy(new, folder / "one.seed")
        (folder / "one.seed").replace(nats.seed_file(name))  # never half of it
    await until_changed(watched, changes + 2 * len(SENDING_SERVICES))

    # 4. The old NKeys first: every service connects again, and no message is refused.
    await run_commands(folder, finish, agents)
    reload_accounts(nats, folder / "accounts.conf")
    await watched.until_over()
    assert {answer[:3] for answer in watched.answers} <= {"200", "202", "503"}
    assert refused_messages(await watched.values()) == refused_messages(before)

    # 5. The old keys of messages: stored events by them are not read any more, work goes on.
    async with watched.quiet():
        async with asyncio.timeout(60):
            while await stored_messages(watched):
                await asyncio.sleep(0.2)
        (folder / "senders.json").replace(nats.senders_file)
        await until_changed(watched, changes + 3 * len(SENDING_SERVICES))
    await watched.until_over()
    assert {answer[:3] for answer in watched.answers} <= {"200", "202", "503"}

    # The state of ca-signer is signed with its new key: a front end starts.
    await restarted(watched, "est-frontend")

    stolen = folder / "stolen.seed"
    stolen.write_text(old["renewal"])
    stolen.chmod(0o600)
    settings = BusSettings(url=nats.url, nkey_seed_file=stolen, senders_file=nats.senders_file)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await Bus.connect(settings, "renewal", "stolen")


@pytest.mark.logs_errors("bus permission violation")
async def test_a_permission_violation(watched: Watched) -> None:
    await watched.begin()
    nats, users = watched.stack.layout.nats, nats_users()
    renewal = users["renewal"]
    fewer = tuple(topic for topic in renewal.publish if topic != "audit.issue.renewal")
    nats.reload(users | {"renewal": replace(renewal, publish=fewer)})
    await watched.until_seen("A permission violation", topics.audit_issue_topic("renewal"))
    nats.reload(users)
    await watched.look()
    assert "not ready: bus\n" in watched.texts[-20:], "stays so until it is started again"
    await restarted(watched, "renewal")
    await watched.until_over()


async def test_a_clock_is_wrong(watched: Watched) -> None:
    root = await asyncio.to_thread(debian_packages, "libfaketime")
    clock = watched.stack.folder / "clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(next(root.glob("**/libfaketimeMT.so.1"))),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    await restarted(watched, "est-frontend", **environment)
    await watched.begin()
    clock.write_text("+600\n")
    await watched.until_seen("A clock is wrong", "clock.wrong")
    clock.write_text("+0\n")
    await watched.until_over()
    await restarted(watched, "est-frontend")


_DIFFERENT = """
create temp table changed as select issuance_id, fingerprint_sha256, issued_at
  from renewal.certificate where issued_at < now() - interval '1 s' order by issued_at desc limit 1;
create temp table removed as select * from audit.issued where issuance_id::text
  in (select issuance_id::text from changed);
update renewal.certificate set issued_at = issued_at - interval '1 hour', fingerprint_sha256 =
  reverse(fingerprint_sha256) where issuance_id in (select issuance_id from changed);
delete from audit.issued where issuance_id in (select issuance_id from removed)"""
_EQUAL = """
update renewal.certificate r set issued_at = c.issued_at, fingerprint_sha256 =
  c.fingerprint_sha256 from changed c where c.issuance_id = r.issuance_id;
insert into audit.issued select * from removed"""


@pytest.mark.logs_errors(
    "audit log differs from the ledger", "reconciliation window differs from the ledger"
)
async def test_a_window_differs_from_the_ledger(watched: Watched) -> None:
    """Windows are of five seconds here and compared every second: by default it takes minutes."""
    await restarted(
        watched,
        *("ca-signer", "renewal", "audit"),
        CA_SIGNER__WINDOW_S="5",
        CA_SIGNER__WINDOW_SETTLE_S="5",
        EST_RENEWAL__WINDOWS__RECHECK_S="1",
        EST_AUDIT__WINDOWS__RETRY_S="1",
    )
    await watched.until_over()
    await asyncio.sleep(3)  # certificates of the present settings
    await watched.begin()
    page = "A window differs from the ledger"
    names = {name: str(watched.stack.folder / name) for name in ("ledger.jsonl", "renewal.jsonl")}
    database = await watched.stack.layout.postgres.superuser()
    try:
        await database.execute("set session_replication_role = replica")
        await database.execute(_DIFFERENT)
        lost = str(await database.fetchval("select issuance_id from changed"))
        await watched.until_seen(page)
        with pytest.raises(ConfigurationError, match="verification has"):
            await watched.run_page(page, names)
        findings = [str(finding) for finding in await watched.stack.findings()]
        assert any("renewal.differs" in finding and lost in finding for finding in findings)
        await database.execute(_EQUAL)
    finally:
        await database.close()
    for file in names.values():
        Path(file).unlink()
    await restarted(watched, "ca-signer", "renewal", "audit")
    await watched.until_over()
    async with watched.quiet():
        await watched.stack.until_recorded()
        assert "\nverified: " in await watched.run_page(page, names)
