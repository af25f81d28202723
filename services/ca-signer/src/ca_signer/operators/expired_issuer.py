"""Replace the generation that signs after its CA certificate has expired.

Certificates of operators end with the CA that issued them, so no operator is left who could
command the rollover. It is done where the signer's settings are, like ``operator enroll``:

1. The CA certificate of the generation that signs has expired, by the ledger's clock.
2. The new generation is configured, its certificate is valid, and its key is available.
3. Plan, publish and sign in one transaction. No client is waited for: no certificate of the
   expired CA is valid any more.
4. Each transition is a command in the ledger and has its audit record, as in any rollover.
"""

from __future__ import annotations

import datetime as dt

import asyncpg

from ca_signer.issuers import rollover
from ca_signer.issuers.generations import read_generations
from ca_signer.operators.console import Console
from ca_signer.signing.issuers import SigningContext, SigningIssuer
from estcore.errors import Conflict
from estcore.messages.audit import Target
from estcore.runtime.database import Connection, Database


async def replace_expired(
    database: Database,
    console: Console,
    decision_context: SigningContext,
    family: str,
    to_issuer: str,
) -> bool:
    """Let ``to_issuer`` sign for ``family``; returns False where it does so already.

    Raises:
        Conflict: the CA certificate that signs has not expired, or the new one cannot sign.
        Unavailable: PostgreSQL is unavailable.
    """
    generations = await read_generations(database)
    now, signing = generations.as_of or decision_context.clock.now(), generations.signing(family)
    if signing == to_issuer:
        return False
    _require_expired(decision_context, signing, now)
    _require_able(decision_context, family, to_issuer, now)

    async def work(connection: Connection) -> None:
        row = await _planned(connection, console, family, to_issuer)
        row, published = await rollover.publish(connection, family, console.name)
        if published:
            await _record(connection, console, "rollover-publish", row)
        row, _ = await rollover.sign(connection, family, console.name, least_percent=0)
        await _record(connection, console, "rollover-sign", row)

    await database.run(work)
    return True


async def _planned(
    connection: Connection, console: Console, family: str, to_issuer: str
) -> asyncpg.Record:
    """Return the rollover to ``to_issuer``; one that operators had published goes on."""
    try:
        row = await rollover.under_way(connection, family)
    except Conflict:
        row, _ = await rollover.begin(connection, family, to_issuer, console.name)
        await _record(connection, console, "rollover-plan", row)
    if row["to_issuer"] != to_issuer:
        raise Conflict(
            f"a rollover of {family} to {row['to_issuer']} is {row['state']}: name it with --to",
            code="rollover.open",
        )
    return row


def _require_expired(decision_context: SigningContext, issuer_id: str, now: dt.datetime) -> None:
    issuer = decision_context.issuers.get(issuer_id)
    if issuer is None:
        raise Conflict(f"{issuer_id} signs and is not in these settings", code="rollover.issuer")
    end = issuer.certificate.certificate.not_valid_after_utc
    if now <= end:
        raise Conflict(
            f"the CA certificate of {issuer_id} is valid until {end.isoformat()}: "
            "use estctl ca rollover",
            code="rollover.not_expired",
        )


def _require_able(
    decision_context: SigningContext, family: str, issuer_id: str, now: dt.datetime
) -> SigningIssuer:
    issuer = decision_context.issuers.get(issuer_id)
    if issuer is None or issuer.family != family:
        raise Conflict(
            f"no issuer {issuer_id} is configured as generation_of {family}",
            code="rollover.issuer",
        )
    certificate = issuer.certificate.certificate
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise Conflict(
            f"the CA certificate of {issuer_id} is not valid now", code="rollover.issuer"
        )
    if not issuer.keystore.ready:
        raise Conflict(f"the key of {issuer_id} is unavailable", code="rollover.key")
    return issuer


async def _record(connection: Connection, console: Console, verb: str, row: asyncpg.Record) -> None:
    details: dict[str, str | bool] = {
        "from": row["from_issuer"],
        "to": row["to_issuer"],
        "state": row["state"],
        "rollover_id": str(row["rollover_id"]),
        "changed": True,
        "expired": True,
    }
    await console.record(connection, verb, Target(issuer_id=row["family"]), details)
