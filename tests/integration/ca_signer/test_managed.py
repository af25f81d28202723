"""Managed renewal: what renewal finds due is renewed once, by the rules of now, and fetched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
import pytest_asyncio
import yaml
from cryptography import x509

from estcore import ids
from estcore.messages import topics
from estcore.messages.enrollment import Principal
from estcore.messages.envelope import encode
from estcore.messages.events import RotationEvent
from estcore.pki.keys import spki_der
from estcore.pki.profile import Profile
from estcore.policy.document import PolicyDocument
from estcore.runtime.bus import Outgoing
from estsuite_testing.e2e_stack import POLICY, make_csr, same_key
from estsuite_testing.managed_stack import Managed, managed_stack
from estsuite_testing.operators import operator
from estsuite_testing.platform import Platform

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def managed(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Managed]:
    async with managed_stack(platform, tmp_path_factory.mktemp("managed")) as stack:
        yield stack


async def test_a_due_certificate_is_renewed_once_for_the_same_key(managed: Managed) -> None:
    """Delivered twice, and asked again by a later dispatch: one certificate."""
    key, old = await managed.enroll()
    first = await managed.event(old)
    await managed.request(first, times=2)
    new = await managed.renewed(old)
    again = await managed.event(old, fence=2)
    await managed.request(again, first)
    certificate, previous = map(x509.load_der_x509_certificate, (new, old))
    assert same_key(certificate, key)
    assert certificate.subject == previous.subject
    assert certificate.serial_number != previous.serial_number
    await asyncio.sleep(1)
    (row,) = await managed.successors(old)
    assert str(row["slot_id"]) == await managed.slot(old)
    records = [
        r for r in await managed.signer.audited("certificate.issue")
        if r.target.issuance_id == str(row["issuance_id"])
    ]  # fmt: skip
    assert {(r.phase, r.outcome) for r in records} == {
        ("intent", "unknown"),
        ("outcome", "success"),
    }
    assert {(r.actor.subject, r.actor.auth_method) for r in records} == {
        ("service:renewal", "managed")
    }


async def test_an_intent_of_a_dead_signer_is_finished_with_its_serial_number(
    managed: Managed,
) -> None:
    """The signer dies between the intent and the signature; the request is delivered again."""
    signer = managed.signer
    _, old = await managed.enroll()
    event = await managed.event(old)
    left = await managed.leave_intent(event, old)
    await managed.request(event, await managed.event(old, fence=2))
    await asyncio.sleep(0.5)
    assert [r["state"] for r in await managed.successors(old)] == ["intended"]
    await signer.expire_lease(left)
    new = x509.load_der_x509_certificate(await managed.renewed(old))
    assert new.serial_number == left.serial_number


async def test_a_stale_intent_is_abandoned_and_a_later_dispatch_is_served(
    managed: Managed,
) -> None:
    signer = managed.signer
    _, old = await managed.enroll()
    event = await managed.event(old)
    left = await managed.leave_intent(event, old)
    await signer.make_stale(left)
    await managed.request(event)
    async with asyncio.timeout(20):
        while [r["state"] for r in await managed.successors(old)] != ["abandoned"]:
            await asyncio.sleep(0.05)
    assert {r.reason_code for r in await managed.records_of(event)} >= {"request.abandoned"}
    await managed.request(await managed.event(old, fence=2))
    new = x509.load_der_x509_certificate(await managed.renewed(old))
    assert new.serial_number != left.serial_number
    assert event.id not in {refused.causation_id for refused in await managed.refusals()}


_OF_KEY = "where spki_sha256 = $1"
_OF_CERTIFICATE = "where certificate_sha256 = $1"
_LEDGER = {
    "managed.key_too_old": f"update key_binding set created_at = now() - interval '101 d' {_OF_KEY}",
    "managed.key_age_unknown": f"update key_binding set created_at = null {_OF_KEY}",
    "managed.no_request": "update issuance set context = (context::jsonb - 'csr')::text "
    + _OF_CERTIFICATE,
    "auth.certificate_revoked": f"update issuance set revoked_at = now() {_OF_CERTIFICATE}",
    "auth.certificate_expired": f"update issuance set not_after = now() {_OF_CERTIFICATE}",
}
"""What makes the certificate one that is not renewed, by the code of the refusal."""


async def is_refused(managed: Managed, event: RotationEvent, old: bytes, code: str) -> None:
    """Request a renewal twice: one refusal with the code, one record, no certificate."""
    before = len(await managed.successors(old))
    await managed.request(event, times=2)
    refused = await managed.refused(event)
    assert (refused.code, refused.fence, refused.slot_id) == (code, event.fence, event.slot_id)
    assert refused.rotation_id == event.rotation_id
    (record,) = await managed.records_of(event)
    assert (record.reason_code, record.phase) == (code, "denied")
    assert record.target.slot_id == event.slot_id
    await asyncio.sleep(0.3)
    assert len(await managed.successors(old)) == before


@pytest.mark.parametrize("code", _LEDGER)
async def test_the_ledger_of_now_decides(managed: Managed, code: str) -> None:
    _, old = await managed.enroll()
    event = await managed.event(old)
    sql = _LEDGER[code]
    value = _spki(old) if _OF_KEY in sql else sha256(old).digest()
    await managed.signer.value(sql, value)
    await is_refused(managed, event, old, code)


def _by_agent(profile: Profile) -> Profile:
    rules = profile.renewal.model_copy(update={"mode": "agent", "managed": None})
    return profile.model_copy(update={"renewal": rules})


@pytest.mark.parametrize("code", ["managed.profile", "profile.unknown", "policy.renewal_withdrawn"])
async def test_the_rules_of_now_decide(managed: Managed, code: str) -> None:
    _, old = await managed.enroll()
    with managed.other_rules() as context:
        profiles = dict(context.profiles.profiles)
        plain = profiles.pop("service-mtls")
        if code == "managed.profile":
            profiles["service-mtls"] = _by_agent(plain)
        if code != "policy.renewal_withdrawn":
            context.profiles = context.profiles.model_copy(update={"profiles": profiles})
        else:
            raw = yaml.safe_load(POLICY.read_text())
            raw["rules"] = [r for r in raw["rules"] if r["owner"]["service"] != "load"]
            context.policy = PolicyDocument.model_validate(raw)
        await is_refused(managed, await managed.event(old), old, code)


async def test_after_an_incident_a_key_is_not_certified_again(managed: Managed) -> None:
    """A weak generator of keys is a reason for a campaign."""
    _, old = await managed.enroll()
    event = (await managed.event(old)).model_copy(update={"reason": "incident"})
    await is_refused(managed, event, old, "managed.incident")
    other = (await managed.event(old, fence=2)).model_copy(update={"reason": "ca_rollover"})
    await managed.request(other)
    await managed.renewed(old)


async def test_a_certificate_of_another_slot_is_not_renewed(managed: Managed) -> None:
    _, old = await managed.enroll()
    event = (await managed.event(old)).model_copy(update={"slot_id": ids.uuid7()})
    await is_refused(managed, event, old, "managed.unknown")


async def test_what_its_client_renewed_is_not_renewed(managed: Managed) -> None:
    _, old = await managed.enroll()
    name = x509.load_der_x509_certificate(old).subject.rfc4514_string()
    principal = Principal(
        method="certificate",
        name=f"issuing/{name}",
        certificate=old,
        certificate_issuer="issuing",
    )
    csr = make_csr(name.removeprefix("CN="))[1]
    own = managed.signer.message(csr, operation="simplereenroll", principal=principal)
    assert (await managed.signer.ask(own)).certificate is not None
    await is_refused(managed, await managed.event(old), old, "managed.superseded")


async def test_what_no_client_fetched_is_not_renewed(managed: Managed) -> None:
    """So renewal can have one certificate made for a client, until the client fetches it."""
    _, old = await managed.enroll()
    await managed.request(await managed.event(old))
    unfetched = await managed.renewed(old)
    event = await managed.event(unfetched)
    await is_refused(managed, event, unfetched, "managed.not_fetched")


async def test_a_key_that_is_known_to_be_lost_is_not_certified(managed: Managed) -> None:
    _, old = await managed.enroll()
    _, other = await managed.enroll()
    await managed.signer.value(
        "update issuance set spki_sha256 = $2, revoked_at = now(), "
        f"revocation_reason = 'keyCompromise' {_OF_CERTIFICATE}",
        sha256(other).digest(),
        _spki(old),
    )
    await is_refused(managed, await managed.event(old), old, "key.compromised")


async def test_a_refusal_of_the_moment_is_on_record_and_ends_nothing(managed: Managed) -> None:
    """max_active: the client has as many good certificates as it may; later it has fewer."""
    _, old = await managed.enroll()
    event = await managed.event(old)
    with managed.other_rules() as context:
        profiles = dict(context.profiles.profiles)
        profiles["service-mtls"] = profiles["service-mtls"].model_copy(update={"max_active": 1})
        context.profiles = context.profiles.model_copy(update={"profiles": profiles})
        await managed.request(event)
        (record,) = await managed.records_of(event)
    assert record.reason_code == "profile.max_active"
    assert event.id not in {refused.causation_id for refused in await managed.refusals()}
    await managed.request(await managed.event(old, fence=2))
    await managed.renewed(old)


async def test_a_key_of_a_revoked_successor_is_certified_anew(managed: Managed) -> None:
    """A certificate that was revoked before it was used is no successor."""
    _, old = await managed.enroll()
    await managed.request(await managed.event(old))
    revoked = await managed.renewed(old)
    boss = await operator(managed.signer, "CN=boss")
    which = {"fingerprint": sha256(revoked).hexdigest(), "reason": "superseded"}
    await boss.give(managed.signer, "certificate-revoke", which)
    await managed.request(await managed.event(old, fence=2))
    async with asyncio.timeout(20):
        while len(await managed.successors(old)) < 2:
            await asyncio.sleep(0.05)


@pytest.mark.logs_errors("message dead-lettered")
async def test_what_is_no_request_is_a_dead_letter(managed: Managed) -> None:
    _, old = await managed.enroll()
    event = await managed.event(old)
    topic = topics.rotation_topic("requested", event.tenant, event.service)
    for payload in (b"{", encode(event.model_copy(update={"old": None}))):
        await managed.renewal.publish_confirmed([Outgoing(topic, payload, ids.uuid7())])
    async with asyncio.timeout(20):
        while len(await managed.signer.audited("request.dead_letter")) < 2:
            await asyncio.sleep(0.05)
    await managed.request(event)
    await managed.renewed(old)


async def test_a_client_fetches_what_replaces_its_certificate(managed: Managed) -> None:
    _, old = await managed.enroll()
    assert (await managed.fetch(old)).outcome == "none"
    await managed.request(await managed.event(old))
    new = await managed.renewed(old)
    answers = [
        await managed.fetch(old),
        await managed.fetch(old),
        await managed.fetch(new, named=old),
    ]
    assert {(a.outcome, a.certificate, a.issuer) for a in answers} == {("ready", new, "issuing")}
    assert (await managed.fetch(new)).outcome == "none"
    # The next rotation: what was fetched may be renewed.
    await managed.request(await managed.event(new))
    newest = await managed.renewed(new)
    assert (await managed.fetch(old)).certificate == newest


async def test_while_an_intent_is_open_a_client_waits(managed: Managed) -> None:
    _, old = await managed.enroll()
    await managed.leave_intent(await managed.event(old), old)
    answer = await managed.fetch(old)
    assert answer.outcome == "pending"
    assert answer.retry_after_s


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("another client", "renewed.identity"),
        ("a stranger", "auth.certificate_unknown"),
        ("revoked", "auth.certificate_revoked"),
        ("expired", "auth.certificate_expired"),
        ("label", "frontend.label"),
        ("profile", "reenroll.label"),
        ("group", "frontend.route"),
        ("no id", "renewal_info.certificate_id"),
    ],
)
async def test_a_client_gets_nothing_of_another_identity(
    managed: Managed, wrong: str, code: str
) -> None:
    _, old = await managed.enroll()
    await managed.request(await managed.event(old))
    await managed.renewed(old)
    presented, changes = old, {}
    if wrong == "another client":
        _, presented = await managed.enroll()
    elif wrong == "a stranger":
        presented = managed.signer.decision_context.issuers["issuing"].certificate.der
    elif wrong == "revoked":
        await managed.signer.mark_revoked(old)
    elif wrong == "expired":
        await managed.signer.expire_certificate(old)
    else:
        changes = {
            "label": {"label": "other"},
            "profile": {"label": "demo"},
            "group": {"group": "others"},
            "no id": {"certificate_id": "x"},
        }[wrong]
    answer = await managed.fetch(presented, named=old, **changes)
    assert (answer.outcome, answer.code, answer.certificate) == ("rejected", code, None)


def _spki(certificate: bytes) -> bytes:
    return sha256(spki_der(x509.load_der_x509_certificate(certificate).public_key())).digest()
