"""Good certificates that a selector matches, composed with SQLAlchemy Core."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import JSON, ColumnElement, cast, func, select
from sqlalchemy.sql.dml import Insert

from ca_signer.ledger.selector import Selector
from ca_signer.ledger.tables import certificate, certificate_name, issuance
from estcore.policy.internal_profiles import INTERNAL_PROFILES
from estcore.runtime import statements
from estcore.runtime.database import Connection

_TIMEOUT_S = 120


def matching(selector: Selector) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions on rows of ``issuance``: issued, valid, not revoked, and the selector's.

    Certificates of operators and OCSP responders match only where the selector names their profile.
    """
    yield issuance.c.state == "issued"
    yield issuance.c.revoked_at.is_(None)
    yield issuance.c.not_after > func.now()
    yield from _conditions(selector)


async def insert_members(connection: Connection, statement: Insert) -> int:
    """Record the members of a fleet operation, which may take long; returns how many.

    Raises:
        LedgerUnavailable: it took longer than two minutes; nothing is recorded.
    """
    sql, values = statements.compiled(statement)
    await connection.execute(f"set local statement_timeout = '{_TIMEOUT_S}s'")
    done = await connection.execute(sql, *values, timeout=_TIMEOUT_S + 5)
    await connection.execute("set local statement_timeout to default")
    return int(done.split()[-1])


def _conditions(selector: Selector) -> Iterator[ColumnElement[bool]]:
    row = issuance.c
    context = cast(row.context, JSON)
    equal = (
        (row.issuer_id, selector.issuer),
        (row.profile, selector.profile),
        (context["key_algorithm"].as_string(), selector.key_algorithm),
        (row.tenant, selector.tenant),
        (row.service, selector.service),
        (context["team"].as_string(), selector.team),
        (context["cluster"].as_string(), selector.cluster),
    )
    for column, value in equal:
        if value is not None:
            yield column == value
    if selector.key_sha256 is not None:
        yield row.spki_sha256 == bytes.fromhex(selector.key_sha256)
    if selector.name is not None:
        named = (
            select(certificate.c.issuance_id)
            .select_from(
                certificate_name.join(certificate, certificate.c.no == certificate_name.c.no)
            )
            .where(certificate_name.c.name == func.lower(selector.name))
        )
        yield row.issuance_id.in_(named)
    if selector.issued_before is not None:
        yield row.issued_at < selector.issued_before
    if selector.issued_after is not None:
        yield row.issued_at >= selector.issued_after
    if selector.profile is None:
        yield row.profile.not_in(INTERNAL_PROFILES)
