"""Rollover of an issuer: the ledger decides who signs, whatever a signer has read before."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509

from ca_signer.ceremony import cross_certificates, offline_ca
from ca_signer.issuance.decision import decide
from ca_signer.issuers import rollover
from ca_signer.main import load_signing_context
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import Conflict, IssuerUnavailable
from estcore.messages import topics
from estcore.messages.audit import AuditRecord
from estcore.messages.commands import CommandAnswered
from estcore.messages.enrollment import EnrollmentAnswered, Principal
from estcore.messages.envelope import decode
from estcore.messages.state import CACertificates, TrustFetched
from estcore.runtime.bus import Bus
from estcore.runtime.stored_messages import last_values
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.operators import TestOperator, operator, policy_with_operators
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_settings, signer_stack

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
CLOCK = SystemClock()


@dataclass
class Rolling:
    """Two signers of one ledger; the second reads its state only on request."""

    signer: SignerStack
    deaf: SignerStack
    boss: TestOperator
    frontend: Bus
    folder: Path

    async def give(self, verb: str, **arguments: Any) -> CommandAnswered:
        """Give a command (twice, as the bus may) and wait until the first signer knows."""
        said = {"issuer": "issuing", **arguments}
        answer = await self.boss.give(self.signer, f"rollover-{verb}", said)
        await self.signer.state.publish()
        return answer

    async def done(self, verb: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.give(verb, **arguments)
        assert answer.outcome == "done", answer
        assert answer.result is not None
        return answer.result

    async def refused(self, verb: str, **arguments: Any) -> str:
        answer = await self.give(verb, **arguments)
        assert answer.outcome == "refused", answer
        assert answer.code is not None
        return answer.code

    async def enroll(self, name: str, by: bytes | None = None) -> EnrollmentAnswered:
        """Enroll, or re-enroll where the certificate to present is given."""
        message = self.signer.message(make_csr(name)[1])
        if by is not None:
            subject = x509.load_der_x509_certificate(by).subject.rfc4514_string()
            principal = Principal(
                method="certificate",
                name=f"issuing/{subject}",
                certificate=by,
                certificate_issuer="issuing",
            )
            changes = {"operation": "simplereenroll", "principal": principal}
            message = message.model_copy(update=changes)
        return await self.signer.ask(message)

    async def row(self, certificate: bytes | None) -> Any:
        assert certificate is not None
        sql = "select * from issuance where certificate_sha256 = $1"
        return (await self.signer.rows(sql, sha256(certificate).digest()))[0]

    async def audited(self, verb: str, phase: str) -> list[AuditRecord]:
        """Records of a command; both signers' auditors share one consumer."""
        action = f"operator.{verb}"
        found = [*await self.signer.audited(action), *await self.deaf.audited(action)]
        return [record for record in found if record.phase == phase]

    async def published(self) -> CACertificates:
        """The issuer's state as published to front ends."""
        topic = topics.cacerts_topic("issuing")
        (stored,) = await last_values(self.frontend, topics.PKI_STATE, topic)
        return decode(CACertificates, stored.payload)


def issuers(folder: Path) -> list[dict[str, Any]]:
    """Settings of three generations: one of the same root, one of a root of its own."""
    passphrase = folder / "ca.passphrase"
    common = {"passphrase_file": passphrase, "generation_of": "issuing"}
    found = []
    for name, place in (("issuing", "ca"), ("issuing-2", "ca2"), ("issuing-3", "ca3")):
        files = {
            "certificate_file": folder / place / "issuing.pem",
            "chain_file": folder / place / "chain.pem",
            "key_file": folder / place / "issuing.key",
        }
        found.append({"issuer_id": name, **files, **common})
    found[0].pop("generation_of")
    found[2]["cross_file"] = folder / "cross.pem"
    return found


def make_generations(platform: Platform, folder: Path) -> None:
    signer_settings(platform, folder)  # makes the first one
    passphrase = folder / "ca.passphrase"
    cross_certificates.issuing(
        folder / "ca", out=folder / "ca2", name="Test", passphrase_file=passphrase, clock=CLOCK
    )
    offline_ca.init(
        folder / "ca3", name="Test", passphrase_file=passphrase, clock=CLOCK, generation=3
    )
    cross_certificates.cross(
        folder / "ca", folder / "ca3", out=folder / "cross.pem", passphrase_file=passphrase
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rolling(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rolling]:
    folder: Path = tmp_path_factory.mktemp("rolling")
    make_generations(platform, folder)
    changes: dict[str, Any] = {
        "policy_file": policy_with_operators(folder),
        "issuers": issuers(folder),
    }
    frontend = await Bus.connect(platform.bus("est-frontend"), "est-frontend", "watching")
    async with (
        signer_stack(platform, folder, **changes) as signer,
        signer_stack(platform, folder, running=False, **changes) as deaf,
    ):
        yield Rolling(signer, deaf, await operator(signer, "CN=boss"), frontend, folder)
    await frontend.close()


async def test_C5_C6_D5_D6_an_issuing_ca_is_rolled_over_step_by_step(rolling: Rolling) -> None:
    signer, boss = rolling.signer, rolling.boss
    # 1. A slot under the first generation, and a second signer that reads no state.
    first = await rolling.enroll("dev-rolled")
    lonely = await rolling.enroll("dev-lonely")
    assert (await rolling.row(first.certificate))["issuer_id"] == "issuing"
    assert len((await rolling.published()).chain) == 2

    # 2. Planned: invisible. What is no generation of it, or signs already, is refused.
    assert await rolling.refused("plan", to="unknown") == "rollover.issuer"
    assert await rolling.refused("plan", to="issuing") == "rollover.state"
    planned = await rolling.done("plan", to="issuing-2")
    assert (planned["state"], planned["changed"]) == ("planned", True)
    assert (await rolling.done("plan", to="issuing-2"))["changed"] is False
    assert await rolling.refused("plan", to="issuing-3") == "rollover.open"
    assert len((await rolling.published()).chain) == 2
    assert (await rolling.published()).extra == ()

    # 3. It cannot sign before it was published.
    assert await rolling.refused("sign") == "rollover.state"
    # 4. Rolled back from planned, it leaves no trace; planned again.
    assert (await rolling.done("rollback"))["state"] == "rolled_back"
    assert (await rolling.done("rollback"))["changed"] is False
    await rolling.done("plan", to="issuing-2")

    # 5. Published: the new chain is there, each certificate once; only the old one signs.
    assert (await rolling.done("publish"))["state"] == "published"
    published = await rolling.published()
    assert (
        len({*published.chain, *published.extra})
        == len(published.chain) + len(published.extra)
        == 3
    )
    assert [a.issuer_id for a in published.accepted] == ["issuing"]
    assert published.rollover is not None
    still = await rolling.enroll("dev-still")
    assert (await rolling.row(still.certificate))["issuer_id"] == "issuing"

    # 6. No client has fetched: no switch, unless the operator says that this is right.
    assert await rolling.refused("sign") == "rollover.not_fetched"
    assert await rolling.refused("sign", min_fetched=1) == "rollover.not_fetched"
    # Reported twice counts once; strangers, and reports about another rollover, do not count.
    count = signer.operations.fetches.count
    assert first.certificate is not None
    seen = (sha256(first.certificate).hexdigest(), "00" * 32)
    assert await count(TrustFetched(rollover=uuid.uuid4(), fingerprints=seen)) == 0
    fetched = TrustFetched(rollover=published.rollover, fingerprints=seen)
    assert [await count(fetched), await count(fetched)] == [1, 0]
    status = await rolling.done("status", lacking=True, limit=1)
    assert (status["fetched"], status["fleet"]) == (1, 3)
    rest = await rolling.done("status", lacking=True, after=status["after"])
    lacking = [slot["subject"] for slot in (*status["lacking"], *rest["lacking"])]
    assert sorted(lacking) == ["CN=dev-lonely", "CN=dev-still"]
    assert await rolling.refused("sign", min_fetched=34) == "rollover.not_fetched"
    candidate = decide(
        deaf_message := rolling.deaf.message(),
        topics.request_topic("default", "issuing", deaf_message.priority),
        rolling.deaf.batch.decision_context,
        None,
    )
    switched = await rolling.done("sign", min_fetched=0)
    assert (switched["state"], switched["fetched_at_switch"]) == ("signing", 1)

    # 7. A signer that has not read it records nothing, and answers: later.
    assert candidate.intent.issuer_id == "issuing"
    assert await rolling.deaf.ledger.insert([candidate.intent]) == set()
    with pytest.raises(IssuerUnavailable) as unknown:
        await rolling.deaf.resolver.resolve(candidate)
    assert unknown.value.code == "issuer.generation"

    # 8. The slot goes on under the new generation, by its certificate of the old one.
    assert first.certificate is not None
    second = await rolling.enroll("dev-rolled", by=first.certificate)
    old_row, new_row = await rolling.row(first.certificate), await rolling.row(second.certificate)
    assert new_row["issuer_id"] == "issuing-2"
    assert new_row["slot_id"] == old_row["slot_id"]
    assert new_row["predecessor_sha256"] == old_row["certificate_sha256"]
    assert second.certificate is not None
    third = await rolling.enroll("dev-rolled", by=second.certificate)
    assert (await rolling.row(third.certificate))["slot_id"] == old_row["slot_id"]
    made = x509.load_der_x509_certificate(second.certificate)
    made.verify_directly_issued_by(
        signer.decision_context.issuers["issuing-2"].certificate.certificate
    )

    # 9. It cannot be rolled back any more, and slots that stayed behind keep it from retiring.
    assert await rolling.refused("rollback") == "rollover.state"
    assert await rolling.refused("retire") == "rollover.left_behind"
    # 10. Nor does it retire by the hand of an operator who would be locked out by it.
    assert await rolling.refused("retire", left_behind=9) == "rollover.operator"
    rolling.boss = await operator(signer, "CN=boss")
    assert (await rolling.row(rolling.boss.certificate))["issuer_id"] == "issuing-2"
    _, intent = await signer.leave_intent()
    retired = await rolling.done("retire", left_behind=9)
    assert retired["state"] == "retired"
    assert (await rolling.done("retire", left_behind=9))["changed"] is False

    # 11. The old chain is gone from /cacerts and its certificates do not authenticate.
    published = await rolling.published()
    assert (len(published.chain), published.extra, published.rollover) == (2, (), None)
    assert [a.issuer_id for a in published.accepted] == ["issuing-2"]
    assert lonely.certificate is not None
    refused = await rolling.enroll("dev-lonely", by=lonely.certificate)
    assert (refused.outcome, refused.code) == ("rejected", "auth.certificate_retired")
    answer = await boss.give(signer, "certificate-list")
    assert (answer.outcome, answer.code) == ("refused", "command.operator")
    assert intent.issuer_id == "issuing-2"

    # 12. Its revocation lists go on: one of its leaves is revoked and appears on its own list.
    fingerprint = sha256(lonely.certificate).hexdigest()
    revoke = {"fingerprint": fingerprint, "reason": "superseded"}
    await rolling.boss.give(signer, "certificate-revoke", revoke)
    await signer.operations.lists.refresh()
    crl = x509.load_der_x509_crl(
        await signer.value("select crl from crl where issuer_id = 'issuing'")
    )
    number = x509.load_der_x509_certificate(lonely.certificate).serial_number
    assert crl.get_revoked_certificate_by_serial_number(number) is not None
    assert await rolling.refused("plan", to="issuing") == "rollover.state"

    # Once its leaves are over, the old issuer leaves the settings, and labels go on naming it.
    settings = signer.settings.model_copy(update={"issuers": signer.settings.issuers[1:2]})
    later = load_signing_context(settings)
    later.generations = signer.decision_context.generations
    assert later.signing("issuing").issuer_id == "issuing-2"
    assert (later.families, later.missing_issuers) == (("issuing",), [])

    # 13. The next one changes the root: both roots and what links them are shown.
    await rolling.done("plan", to="issuing-3")
    await rolling.done("publish")
    published = await rolling.published()
    shown = [x509.load_der_x509_certificate(c) for c in (*published.chain, *published.extra)]
    assert len(shown) == len(set(shown)) == 6
    assert all(c.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for c in shown)
    # 14. Rolled back from published: nothing of it stays.
    await rolling.done("rollback")
    published = await rolling.published()
    assert (len(published.chain), published.extra) == (2, ())
    # 15. Each command is on record once, refused ones too.
    async with asyncio.timeout(10):
        while len(await rolling.audited("rollover-publish", "outcome")) < 2:
            await asyncio.sleep(0.2)
    done = await rolling.audited("rollover-sign", "outcome")
    assert [r.details["state"] for r in done if r.details] == ["signing"]
    denied = [r.reason_code or "" for r in await rolling.audited("rollover-sign", "denied")]
    assert sorted(c for c in denied if c.startswith("rollover.")) == [
        *["rollover.not_fetched"] * 3,
        "rollover.state",
    ]


async def test_D5_a_rollover_back_makes_the_old_generation_sign_again(rolling: Rolling) -> None:
    """What has signed is not undone: going back is a rollover of its own."""
    family, old, new = (f"{ids.uuid7()[-12:]}{end}" for end in ("", "", "-b"))
    async with rolling.signer.database.connection() as connection, connection.transaction():
        await rollover.begin(connection, family, new, "boss")
        await rollover.publish(connection, family, "boss")
        await rollover.sign(connection, family, "boss", least_percent=100)
        with pytest.raises(Conflict):
            await rollover.begin(connection, family, f"{old}-c", "boss")
        back, _ = await rollover.begin(connection, family, family, "boss")
        assert (back["from_issuer"], back["to_issuer"]) == (new, family)
        with pytest.raises(Conflict) as open_one:
            await rollover.retire(connection, family, "boss", left_behind=0)
        assert open_one.value.code == "rollover.open"
        await rollover.publish(connection, family, "boss")
        await rollover.sign(connection, family, "boss", least_percent=100)
        states = await connection.fetch(
            "select state from rollover where family = $1 order by planned_at, rollover_id", family
        )
        assert [r["state"] for r in states] == ["reversed", "signing"]
        found = await connection.fetch(
            "select issuer_id, state from generation where family = $1", family
        )
        assert {r["issuer_id"]: r["state"] for r in found} == {family: "signing", new: "accepted"}
        await rollover.retire(connection, family, "boss", left_behind=0)
        with pytest.raises(Conflict):
            await rollover.begin(connection, family, new, "boss")


@pytest.mark.parametrize("subject", ["CN=auditor", "CN=revoker", "CN=approver"])
async def test_only_the_role_ca_rolls_over(rolling: Rolling, subject: str) -> None:
    who = await operator(rolling.signer, subject)
    for verb in ("plan", "publish", "sign", "retire", "rollback"):
        arguments = {"issuer": "issuing", **({"to": "issuing-3"} if verb == "plan" else {})}
        answer = await who.give(rolling.signer, f"rollover-{verb}", arguments)
        assert (answer.outcome, answer.code) == ("refused", "command.role")
    answer = await who.give(rolling.signer, "rollover-status", {"issuer": "issuing"})
    assert (answer.outcome == "done") == (subject == "CN=auditor")


async def test_two_commands_at_once_plan_one_rollover(rolling: Rolling) -> None:
    family = uuid.uuid4().hex

    async def plan(to: str) -> bool:
        async def work(connection: Any) -> bool:
            return (await rollover.begin(connection, family, to, "boss"))[1]

        try:
            return await rolling.signer.database.run(work)
        except Conflict:
            return False

    done = await asyncio.gather(*(plan(f"{family}-{n % 2}") for n in range(6)))
    assert sum(done) == 1
