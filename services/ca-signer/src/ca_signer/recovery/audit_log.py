"""Contents of a verified audit log export, for a restored ledger (pure).

1. The log is verified whole: hashes, tree, checkpoints by the given key. What no checkpoint covers
   yet may not be about certificates or commands, and is not used.
2. Outcomes of issuance become rows with their certificates. Intents without an outcome become
   abandoned rows, so that their serial numbers are not used again.
3. Every certificate must be what its record says, signed by an issuer that is configured here.
4. Revocations, holds and releases are applied in the order of the log, and so are rollovers: the
   signing generation must not go back.

Older outcome records do not name their enrollment. Their certificates are restored as well; the
same request made again then gets a new one.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import TypeAdapter, ValidationError

from ca_signer.issuers.issuer import CACertificate
from ca_signer.ledger.revocations import HOLD
from ca_signer.model import IssuanceIntent, IssuedCertificate, RequestFacts
from ca_signer.recovery.rollover_history import Move
from ca_signer.settings import SERVICE
from ca_signer.signing import signatures
from estcore.errors import ConfigurationError, MalformedRequest
from estcore.messages.audit import AuditRecord
from estcore.messages.topics import audit_issue_topic
from estcore.pki.keys import spki_der
from estcore.pki.parsers import PARSER_ERRORS
from estcore.pki.profile import Priority, ProfileSet
from estcore.tlog.checkpoint import VerifierKey
from estcore.tlog.items import expanded
from estcore.tlog.verify import Options, verify

BAD = "reconcile.record"
_HARMLESS = {
    "intent.open", "sequence.gap", "sequence.end_unknown",
    "checkpoint.none", "checkpoint.overdue", "record.ahead",
}  # fmt: skip
"""Findings about missing records or wrong clocks, not about a changed log."""
_LEDGER_ACTIONS = ("certificate.", "operator.")
_RESTORED = "restored"
_MOVE: TypeAdapter[Move] = TypeAdapter(Move)
_REVOKED = "operator.certificate-revoke"
ROLLOVER = "operator.rollover-"
_CHANGES = {_REVOKED, "operator.certificate-hold", "operator.certificate-unhold"}


@dataclass(frozen=True)
class Change:
    """How a certificate stands after so many revocations, holds and releases."""

    reason: str | None
    at: dt.datetime
    by: str | None
    count: int


@dataclass
class AuditLogContents:
    """What the log knows, by issuance id; ``commands`` are those carried out, oldest first.

    ``sent_upstream`` are those that were sent to an upstream CA and have no known outcome.
    """

    issued: dict[str, IssuedCertificate] = field(default_factory=dict)
    given_up: dict[str, IssuanceIntent] = field(default_factory=dict)
    sent_upstream: set[str] = field(default_factory=set)
    changes: dict[str, Change] = field(default_factory=dict)
    commands: list[AuditRecord] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


def read_export(
    lines: Iterable[bytes], key: VerifierKey, profiles: ProfileSet, now: dt.datetime
) -> AuditLogContents:
    """Return what a whole export says, after it was verified.

    Raises:
        ConfigurationError: the log does not verify, or records of issuing are not sealed.
        MalformedRequest: a record of issuing is not one.
    """
    verified = verify(lines, Options(now=now, key=key, whole=True))
    serious = [f for f in verified.report.findings if f.code not in _HARMLESS]
    if serious:
        raise ConfigurationError(f"the export does not verify: {serious[0]}", code="reconcile.log")
    if verified.report.partial:
        raise ConfigurationError(
            "the export is of one correlation id: export the whole log", code="reconcile.unsealed"
        )
    # Only what came on ca-signer's own topic counts as its word.
    own = [
        (leaf["log_index"], leaf["record"])
        for leaf in verified.records
        if leaf.get("topic") == audit_issue_topic(SERVICE)
    ]
    sealed = [record for index, record in own if index < verified.report.sealed]
    tail = [record for index, record in own if index >= verified.report.sealed]
    # Clients and readers of the log are recorded all the time; only what changes a ledger counts.
    needed = sum(str(r.get("action")).startswith(_LEDGER_ACTIONS) for r in tail)
    if needed:
        raise ConfigurationError(
            f"{needed} records of certificates or commands are under no checkpoint yet: "
            "export with --sealed",
            code="reconcile.unsealed",
        )
    return read_records(sealed, profiles)


def read_records(records: Iterable[Mapping[str, Any]], profiles: ProfileSet) -> AuditLogContents:
    """Return what records in the order of the log say.

    Raises:
        MalformedRequest: a record of issuing is not one.
    """
    contents = AuditLogContents()
    for raw in (fact for record in records for fact in expanded(record)):
        action, phase = raw.get("action"), raw.get("phase")
        if action == "certificate.issue" and phase in {"intent", "outcome"}:
            _issuing(contents, _record(raw), profiles)
        elif action == "certificate.superseded" and phase == "outcome":
            _change(contents, _record(raw), "superseded")
        elif action == "certificate.revoked" and phase == "outcome":
            # By a bulk revocation, each of its certificates.
            record = _record(raw)
            _change(contents, record, str((record.details or {})["reason"]))
        elif str(action).startswith("operator.") and phase == "outcome":
            record = _record(raw)
            contents.commands.append(record)
            if str(action).startswith(ROLLOVER):
                _move(contents, record)
                continue
            if action in _CHANGES and (record.details or {}).get("changed") is True:
                _change(contents, record, _reason(record))
    contents.sent_upstream -= contents.issued.keys()
    for issuance_id in contents.issued:
        contents.given_up.pop(issuance_id, None)
    return contents


def _record(raw: Mapping[str, Any]) -> AuditRecord:
    try:
        return AuditRecord.model_validate(raw)
    except ValidationError as exc:
        raise MalformedRequest(f"record {raw.get('record_id')} is not one", code=BAD) from exc


def _issuing(contents: AuditLogContents, record: AuditRecord, profiles: ProfileSet) -> None:
    if record.phase == "intent" and record.target.serial is None:
        # The serial number was for an upstream CA to choose.
        contents.sent_upstream.add(str(record.target.issuance_id))
        return
    try:
        intent = _intent(record, profiles)
        if record.phase == "intent":
            contents.given_up.setdefault(intent.issuance_id, intent)
        elif record.outcome == "success" and intent.issuance_id not in contents.issued:
            target = record.target
            assert target.certificate is not None  # noqa: S101 - below, with the other gaps
            assert target.issued_at is not None  # noqa: S101
            der = base64.b64decode(target.certificate, validate=True)
            contents.issued[intent.issuance_id] = IssuedCertificate(intent, der, target.issued_at)
    except (AssertionError, ValueError, TypeError, KeyError, binascii.Error) as exc:
        raise MalformedRequest(
            f"record {record.record_id} does not say all of an issuance", code=BAD
        ) from exc


def _intent(record: AuditRecord, profiles: ProfileSet) -> IssuanceIntent:
    target, details = record.target, record.details or {}
    values = {name: _required(target, name) for name in _NEEDED}
    predecessor = details.get("predecessor_sha256")
    enrollment = details.get("enrollment_id")
    issuance_id = str(values["issuance_id"])
    return IssuanceIntent(
        issuance_id=issuance_id,
        # One that no request can have, where the record does not say which it was.
        enrollment_id=bytes.fromhex(str(enrollment))
        if enrollment
        else sha256(f"{_RESTORED}/{issuance_id}".encode()).digest(),
        request_id=str(target.request_id or issuance_id),
        issuer_id=str(values["issuer_id"]),
        serial_number=int(str(values["serial"]), 16),
        tbs=b"",
        tenant=str(values["tenant"]),
        service=str(values["service"]),
        profile=str(values["profile"]),
        slot_id=str(values["slot_id"]),
        subject=str(target.subject or ""),
        san=target.san or (),
        spki_sha256=bytes.fromhex(str(values["spki_sha256"])),
        not_before=_required(target, "not_before"),
        not_after=_required(target, "not_after"),
        predecessor_sha256=bytes.fromhex(str(predecessor)) if predecessor else None,
        presented_sha256=None,
        secret_id=record.actor.subject.removeprefix("secret:")
        if record.actor.auth_method == "secret" and record.actor.subject
        else None,
        sign_before=record.occurred_at,
        context=_context(record, profiles),
    )


_NEEDED = (
    "issuance_id", "issuer_id", "serial", "tenant", "service", "profile", "slot_id", "spki_sha256",
)  # fmt: skip


def _required(target: Any, name: str) -> Any:
    value = getattr(target, name)
    if value is None:
        raise KeyError(name)
    return value


def _context(record: AuditRecord, profiles: ProfileSet) -> RequestFacts:
    target, actor = record.target, record.actor
    profile = profiles.profiles.get(target.profile or "")
    renewal = profile.renewal if profile else None
    return RequestFacts(
        correlation_id=record.correlation_id,
        operation=str((record.details or {}).get("operation", _RESTORED)),
        group=_RESTORED,
        instance=_RESTORED,
        label=target.label or _RESTORED,
        principal=actor.subject or _RESTORED,
        auth_method=actor.auth_method or _RESTORED,
        presented_serial=actor.certificate_serial,
        rule=actor.rule or _RESTORED,
        policy_version=target.policy_version or _RESTORED,
        profile_version=target.profile_version or _RESTORED,
        priority=profile.priority if profile else Priority.NORMAL,
        key_algorithm=target.key_algorithm or _RESTORED,
        csr_sha256=target.csr_sha256 or _RESTORED,
        predecessor_serial=target.predecessor_serial,
        mode=renewal.mode if renewal else "poll",
        expiry=renewal.expiry if renewal else "unexpected",
        reaction_time_s=int(renewal.reaction_time.total_seconds()) if renewal else 0,
        overlap_s=int(renewal.overlap.total_seconds()) if renewal else 0,
        spread=renewal.spread if renewal else 0,
    )


def _move(contents: AuditLogContents, record: AuditRecord) -> None:
    details = record.details or {}
    if details.get("changed") is not True:
        return
    try:
        move = _MOVE.validate_python(
            {
                "rollover_id": details["rollover_id"],
                "family": record.target.issuer_id,
                "from_issuer": details["from"],
                "to_issuer": details["to"],
                "state": details["state"],
                "at": record.occurred_at,
                "by": record.actor.rule,
                "fleet": details.get("fleet"),
                "fetched": details.get("fetched"),
            }
        )
    except (KeyError, ValidationError) as exc:
        raise MalformedRequest(
            f"record {record.record_id} does not say all of a rollover", code=BAD
        ) from exc
    contents.moves.append(move)


def _reason(record: AuditRecord) -> str | None:
    if record.action == _REVOKED:
        return str((record.details or {})["reason"])
    return HOLD if record.action == "operator.certificate-hold" else None


def _change(contents: AuditLogContents, record: AuditRecord, reason: str | None) -> None:
    issuance_id = record.target.issuance_id
    if issuance_id is None:
        return
    before = contents.changes.get(issuance_id)
    count = before.count + 1 if before else 1
    by = record.actor.rule or record.actor.subject
    contents.changes[issuance_id] = Change(reason, record.occurred_at, by, count)


def check_issued(issued: IssuedCertificate, issuers: Mapping[str, CACertificate]) -> None:
    """Check that a certificate is what its record says, and that its issuer signed it.

    Raises:
        MalformedRequest: it is not.
    """
    intent = issued.intent
    issuer = issuers.get(intent.issuer_id)
    if issuer is None:
        raise MalformedRequest(
            f"issuance {intent.issuance_id} is by {intent.issuer_id}, which is not configured here",
            code="reconcile.issuer",
        )
    try:
        certificate = x509.load_der_x509_certificate(issued.certificate)
        signatures.verify(
            issuer.certificate.public_key,
            certificate.tbs_certificate_bytes,
            certificate.signature,
        )
        recorded = (intent.serial_number, intent.spki_sha256, intent.not_before, intent.not_after)
        spki = sha256(spki_der(certificate.public_key())).digest()
        is_so = (
            certificate.serial_number,
            spki,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
        same = certificate.public_bytes(Encoding.DER) == issued.certificate and recorded == is_so
    except PARSER_ERRORS as exc:
        raise MalformedRequest(
            f"the certificate of issuance {intent.issuance_id} is not by {intent.issuer_id}",
            code="reconcile.certificate",
        ) from exc
    if not same or certificate.issuer != issuer.certificate.subject:
        raise MalformedRequest(
            f"the certificate of issuance {intent.issuance_id} is not what its record says",
            code="reconcile.certificate",
        )
