"""``ca-signer reconcile``: complete a restored ledger from an export of the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ca_signer.issuers.issuer import CACertificate, read_certificates
from ca_signer.publishing.publisher import EventPublisher
from ca_signer.recovery.audit_log import AuditLogContents, check_issued, read_export
from ca_signer.recovery.event_stream import announced
from ca_signer.recovery.ledger_check import StaleLedgerCheck
from ca_signer.recovery.restore import Restored, Restorer
from ca_signer.signing.issuers import SigningContext
from estcore.errors import ConfigurationError, ESTSuiteError
from estcore.ids import is_token
from estcore.pki.certificate import IssuerCertificate
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.terminal import write_line
from estcore.tlog.checkpoint import VerifierKey


@dataclass(frozen=True)
class Sources:
    """What is trusted: an export and its key; with ``events`` the event stream for the rest.

    ``other_issuers`` are issuers that are not configured here, as ``ID=FILE``.
    """

    export: Path
    vkey: str
    other_issuers: Sequence[str] = ()
    events: bool = False


async def reconcile(
    bus: Bus,
    database: Database,
    decision_context: SigningContext,
    publisher: EventPublisher,
    sources: Sources,
) -> None:
    """Verify the export, check every certificate in it, put back what the ledger lacks.

    Nothing is written before everything was checked.

    Raises:
        ConfigurationError: the export cannot be read, does not verify, or is not complete.
        RequestRejected: a record or certificate is not right.
        Unavailable: bus or database is unavailable; repeat it.
    """
    try:
        contents = _read(decision_context, sources)
        if sources.events:
            more = await announced(bus, contents.issued.keys())
            contents.issued |= {issued.intent.issuance_id: issued for issued in more}
            for issued in more:
                contents.given_up.pop(issued.intent.issuance_id, None)
        issuers = {
            **decision_context.issuers,
            **dict(_other(text) for text in sources.other_issuers),
        }
        for issued in contents.issued.values():
            check_issued(issued, issuers)
        done = await Restorer(bus, database).restore(contents)
    except ESTSuiteError as exc:
        details = {"reason": exc.code, "export": sources.export.name}
        await publisher.own.report("ledger.reconcile_refused", details)
        raise
    counts = {
        "issued": str(done.issued),
        "given_up": str(done.given_up),
        "revocations": str(done.revocations),
        "rollovers": str(done.rollovers),
        "forgotten_commands": str(len(done.unrecoverable_commands)),
        "events": "used" if sources.events else "not used",
    }
    await publisher.own.report("ledger.reconciled", {**counts, "export": sources.export.name})
    _tell(done)
    missing = await StaleLedgerCheck(bus, database, issuers).missing()
    if missing:
        raise ConfigurationError(
            f"the bus knows {len(missing)} certificates or revocations that the export does not: "
            "wait until audit has caught up, and export again; if audit lost them too: --events",
            code="ledger.stale",
        )
    write_line("the ledger is complete; signers go on")


def _read(decision_context: SigningContext, sources: Sources) -> AuditLogContents:
    key = VerifierKey.parse(_text(sources.vkey))
    try:
        with sources.export.open("rb") as lines:
            return read_export(lines, key, decision_context.profiles, decision_context.clock.now())
    except OSError as exc:
        raise ConfigurationError(f"cannot read {sources.export}: {exc.strerror}") from exc


def _other(text: str) -> tuple[str, CACertificate]:
    issuer_id, separator, file = text.partition("=")
    if not separator or not is_token(issuer_id):
        raise ConfigurationError(f"--issuer {text}: ID=FILE is meant")
    certificate = read_certificates(Path(file))[0]
    return issuer_id, CACertificate(IssuerCertificate(issuer_id, certificate), [certificate])


def _text(vkey: str) -> str:
    path = Path(vkey)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else vkey


def _tell(done: Restored) -> None:
    write_line(
        f"put back: {done.issued} certificates, {done.given_up} serial numbers never delivered, "
        f"{done.revocations} revocations, {done.rollovers} rollovers"
    )
    if done.sent_upstream:
        write_line("sent to an upstream CA, outcome unknown; check at that CA:")
    for line in done.sent_upstream:
        write_line(f"  issuance {line}")
    if done.unrecoverable_commands:
        write_line("commands that the ledger has forgotten; give again what is needed:")
    for line in done.unrecoverable_commands:
        write_line(f"  {line}")
