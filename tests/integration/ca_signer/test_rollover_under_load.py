"""The switch under load: no request is refused, and no signer signs too early or too late."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from ca_signer.ceremony import cross_certificates
from ca_signer.issuers.cacerts import cacerts_of
from ca_signer.issuers.generations import Generation, Generations
from ca_signer.main import load_signing_context
from estcore.clock import SystemClock
from estcore.messages.enrollment import EnrollmentAnswered
from estsuite_testing.operators import operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import PROFILES, SignerStack, signer_settings, signer_stack

pytestmark = pytest.mark.integration
CRL = "http://crl.test/crl/{issuer}.crl"


def settings_of_two(platform: Platform, folder: Path) -> dict[str, Any]:
    first = signer_settings(platform, folder).issuers[0].model_dump()
    place, passphrase = folder / "ca2", folder / "ca.passphrase"
    cross_certificates.issuing(
        folder / "ca", out=place, name="Test", passphrase_file=passphrase, clock=SystemClock()
    )
    second = first | {
        "issuer_id": "issuing-2",
        "generation_of": "issuing",
        "certificate_file": place / "issuing.pem",
        "key_file": place / "issuing.key",
    }
    profiles = yaml.safe_load(PROFILES.read_text())
    for profile in profiles["profiles"]:
        profile["crl_url"] = CRL
    (folder / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    return {
        "issuers": [first, second],
        "policy_file": policy_with_operators(folder),
        "profiles_file": folder / "profiles.yaml",
    }


async def test_D5_a_switch_under_load_loses_nothing(platform: Platform, tmp_path: Path) -> None:
    changes = settings_of_two(platform, tmp_path)
    async with (
        signer_stack(platform, tmp_path, **changes) as first,
        # The other one looks rarely: for seconds it does not know who signs.
        signer_stack(platform, tmp_path, running=False, **changes) as second,
    ):
        stop = asyncio.Event()
        jobs = [second.worker.run, second.cycle.keep_marking, second.operations.outbox.run]
        tasks = [asyncio.ensure_future(job(stop)) for job in jobs]
        boss = await operator(first, "CN=boss")
        for verb, more in (("plan", {"to": "issuing-2"}), ("publish", {})):
            await boss.give(first, f"rollover-{verb}", {"issuer": "issuing", **more})
        await first.state.publish()

        async def ask(signer: SignerStack) -> EnrollmentAnswered:
            message = signer.message()
            await signer.send(message)
            async with asyncio.timeout(60):
                return await signer.answers[message.id]

        async def load() -> list[EnrollmentAnswered]:
            found = []
            for _ in range(12):
                found += await asyncio.gather(*(ask(first) for _ in range(10)))
                await asyncio.sleep(0.05)
            return found

        loading = asyncio.ensure_future(load())
        await asyncio.sleep(0.4)
        switch = {"issuer": "issuing", "min_fetched": 0}
        answer = await boss.give(first, "rollover-sign", switch)
        assert answer.result is not None
        await asyncio.sleep(1.5)
        await second.state.follow()
        answers = await loading
        stop.set()
        await asyncio.gather(*tasks)

        assert {answer.outcome for answer in answers} == {"issued"}
        at = dt.datetime.fromisoformat(str(answer.result["signing_at"]))
        rows = await first.rows(
            "select issuer_id, created_at, certificate from issuance where profile <> 'operator'"
        )
        assert len(rows) == len(answers) == 120
        by = {
            name: [r for r in rows if r["issuer_id"] == name] for name in ("issuing", "issuing-2")
        }
        assert by["issuing"]
        assert by["issuing-2"]
        assert min(r["created_at"] for r in by["issuing-2"]) >= at
        # A statement that began before the switch was committed may end after it, not later.
        assert max(r["created_at"] for r in by["issuing"]) <= at + dt.timedelta(seconds=1)
        for name, found in by.items():
            made = x509.load_der_x509_certificate(found[0]["certificate"])
            points = made.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
            (url,) = points[0].full_name or []
            assert url.value == CRL.format(issuer=name)


@pytest.mark.logs_errors("issuer not configured in this signer")
def test_a_signer_without_the_new_issuer_says_so_and_publishes_nothing(
    platform: Platform, tmp_path: Path
) -> None:
    """It must not take away trust that another signer published."""
    settings = signer_settings(platform, tmp_path, **settings_of_two(platform, tmp_path))
    known = {
        "issuing": Generation("issuing", "issuing", "signing"),
        "issuing-2": Generation("issuing-2", "issuing", "published"),
    }
    for issuers, lacking in ((settings.issuers, []), (settings.issuers[:1], ["issuing-2"])):
        decision_context = load_signing_context(settings.model_copy(update={"issuers": issuers}))
        decision_context.generations = Generations(known)
        assert decision_context.missing_issuers == lacking
        now = SystemClock().now()
        published = cacerts_of(
            "issuing", decision_context.issuers, decision_context.generations, now
        )
        assert (published is None) == bool(lacking)
