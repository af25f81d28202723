"""A campaign over a running suite: ``estctl``, clients that poll, proofs, revocation, a killed signer."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.ids import serial_hex
from estdev.operator import make_operator
from estsetup import service_settings as suite_settings
from estsuite_testing.e2e_stack import POLICY, Stack, start_stack, stop_stack
from estsuite_testing.polling_service import Service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]
URL = "https://ca.test/incidents/17"
PROFILES = Path(suite_settings.__file__).parent / "examples" / "profiles.yaml"
OPERATORS = ("boss", "second")
COLUMNS = 100


@dataclass
class Story:
    """A suite, and two operators with their settings for ``estctl``."""

    stack: Stack
    settings: dict[str, Path]

    async def estctl(self, by: str, verb: str, *arguments: str) -> str:
        command = ("campaign", verb, *arguments, "--config", str(self.settings[by]))
        return await self.stack.suite.run("estctl", *command)

    async def give(self, by: str, verb: str, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(await self.estctl(by, verb, *arguments, "--json")))

    async def until(self, campaign: str, state: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while (shown := await self.give("boss", "show", "--id", campaign))["state"] != state:
                await asyncio.sleep(0.2)
        return shown


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    folder = tmp_path_factory.mktemp("campaign")
    policy = yaml.safe_load(POLICY.read_text())
    policy["operators"] = [
        {
            "name": name,
            "certificate_issuer": "issuing",
            "certificate_subject": f"CN={name}",
            "roles": ["renewer", "revoker", "auditor"],
        }
        for name in OPERATORS
    ]
    profiles = yaml.safe_load(PROFILES.read_text())
    for profile in profiles["profiles"]:
        if profile["name"] == "service-mtls":
            profile["renewal"]["overlap"] = "1s"
    files = []
    for name, content in (("policy", policy), ("profiles", profiles)):
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(content))
    stack = await start_stack(
        folder,
        policy=files[0],
        profiles=files[1],
        overrides={
            "est-frontend": {"renewal_info": {"poll_s": 0.2}},
            "renewal": {
                "rotation": {"client_reload": "0s"},
                "renewal_info": {"check_every_s": 0.3},
                "scheduler": {"poll_s": 0.2},
            },
        },
    )
    try:
        settings = {n: await make_operator(stack.suite, f"CN={n}", n) for n in OPERATORS}
        yield Story(stack, settings)
    finally:
        await stop_stack(stack)


async def follow(service: Service, reached: list[str]) -> None:
    """Do what a client does that polls: renew once the window has begun, and prove it."""
    while True:
        info = await service.info()
        if info.reason != "lifetime":
            break
        await asyncio.sleep(0.3)
    # Without --renew-by the window is over at once: the pace spreads the fleet.
    assert info.start <= SystemClock().now()
    assert info.end - info.start == dt.timedelta(seconds=1)
    assert info.explanation_url == URL
    reached.append(service.name)
    await service.renew()
    await service.client(service.credential).prove_use()


def row_of(stack_rows: list[dict[str, Any]], certificate: x509.Certificate) -> dict[str, Any]:
    serial = serial_hex(certificate.serial_number)
    (row,) = [row for row in stack_rows if row["serial"] == serial]
    return row


async def test_a_fleet_is_renewed_at_a_pace_and_the_old_certificates_are_revoked(
    story: Story, tmp_path: Path
) -> None:
    # 1. A fleet of five; a campaign that is not yet confirmed requests nothing.
    stack = story.stack
    await stack.suite.start_service("ca-signer", "ca-signer-2", wait=True)
    began = SystemClock().now()
    fleet = [await Service.enroll(stack, tmp_path / str(n), f"dev-{n}") for n in range(5)]
    old = [service.certificate for service in fleet]
    which = ("--profile", "service-mtls", "--issued-after", began.isoformat())
    why = ("--reason", "incident", "--explanation-url", URL)
    proposal = await story.give(
        "boss", "propose", *which, *why, "--per-minute", "60", "--revoke", "superseded"
    )
    campaign = proposal["id"]
    assert (await story.until(campaign, "proposed"))["count"] == 5
    # 2. One renews by itself before its turn; the proposer may not confirm, a second one may.
    await fleet[0].renew()
    await fleet[0].client(fleet[0].credential).prove_use()
    confirm = ("--id", campaign, "--count", "5")
    with pytest.raises(ConfigurationError, match=r"campaign\.dual"):
        await story.give("boss", "confirm", *confirm)
    assert (await story.give("second", "confirm", *confirm))["state"] == "running"
    reached: list[str] = []
    async with asyncio.TaskGroup() as group:
        following = [group.create_task(follow(service, reached)) for service in fleet[1:]]
        # 3. Paused with the first renewals under way; a signer dies; resumed.
        async with asyncio.timeout(30):
            while not reached:
                await asyncio.sleep(0.1)
        assert (await story.give("boss", "pause", "--id", campaign))["state"] == "paused"
        await stack.suite.stop_service("ca-signer-2", kill=True)
        assert len(reached) < len(fleet) - 1
        assert (await story.give("boss", "resume", "--id", campaign))["state"] == "running"
        # 4. A watch prints the progress until the campaign ends.
        watched = await asyncio.wait_for(
            story.estctl("boss", "show", "--id", campaign, "--watch"), 120
        )
        assert all(task.done() for task in following)
    lines = watched.splitlines()
    assert max(map(len, (line for line in lines if "=" not in line))) < COLUMNS
    assert lines[-1].split() == ["done", "5", "4", "1", "5", "5", "5", "0"]
    # 5. Every old certificate is revoked, every new one is good, and the log proves it.
    rows = await stack.ledger()
    assert {row_of(rows, certificate)["revoked"] for certificate in old} == {True}
    assert {row_of(rows, service.certificate)["revoked"] for service in fleet} == {False}
    records = [r for r in await stack.records() if r.get("correlation_id") == campaign]
    revoked = [r["details"]["reason"] for r in records if r["action"] == "certificate.revoked"]
    assert revoked == ["superseded"] * len(old)
    verified = await stack.verify_cross()
    assert "\nverified: " in verified
    listed = await story.estctl("second", "list")
    assert f"id={campaign}  state=done  count=5" in listed


@pytest.mark.parametrize(
    "fault",
    [
        "signer.campaign:exit:2",
        "signer.campaign.audited:exit:1",
        "signer.campaign.published:exit:1",
    ],
)
async def test_a_signer_killed_at_any_step_of_a_request_loses_and_repeats_none(
    story: Story, tmp_path: Path, fault: str
) -> None:
    suite = story.stack.suite
    name = f"dev-{fault.replace('.', '-').replace(':', '-')}"
    service = await Service.enroll(story.stack, tmp_path / "s", name)
    await suite.stop_service("ca-signer")
    await suite.start_service(
        "ca-signer", "ca-signer", wait=True, environment={"ESTSUITE_FAULT": fault}
    )
    doomed = suite.services["ca-signer"].process
    proposal = await story.give("boss", "propose", "--name", name, "--reason", "operator")
    campaign = proposal["id"]
    await story.until(campaign, "proposed")
    await story.give("boss", "confirm", "--id", campaign, "--count", "1")
    async with asyncio.timeout(20):
        assert await doomed.wait() == 137
    await suite.stop_service("ca-signer")
    await suite.start_service("ca-signer", "ca-signer", wait=True)
    async with asyncio.timeout(60):
        while (await service.info()).reason != "operator":
            await asyncio.sleep(0.2)
        await service.renew()
        await service.client(service.credential).prove_use()
    progress = (await story.until(campaign, "done"))["progress"]
    assert (progress["requested"], progress["proven"]) == (1, 1)
    await story.stack.until_recorded()
    records = [r for r in await story.stack.records() if r.get("correlation_id") == campaign]
    assert len({r["record_id"] for r in records if r["action"] == "campaign.requested"}) == 1
