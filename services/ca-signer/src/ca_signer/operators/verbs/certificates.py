"""Looking certificates up in the ledger, for operators."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import asyncpg
from pydantic import AwareDatetime, Field, JsonValue, model_validator

from ca_signer.ledger.issuance_rows import serial_octets
from ca_signer.operators.verb import Caller, CommandResult, Verb
from ca_signer.publishing.audit_records import certificate_target
from estcore import ids
from estcore.errors import Conflict
from estcore.pki.profile import StrictModel, Token
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

LOOKING: frozenset[Role] = frozenset({"auditor", "reader", "revoker", "approver"})
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{2,64}$")]


class One(StrictModel):
    """Names one certificate: by serial number or by fingerprint."""

    serial: Hex | None = None
    fingerprint: Hex | None = None
    issuer: Token | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.serial is None) == (self.fingerprint is None):
            raise ValueError("give serial or fingerprint, exactly one")
        return self


class Listing(StrictModel):
    """Which certificates to list: all conditions together; newest first unless said below."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=300,
        description="a SAN entry or subject value, exactly, or with one * first or last; by name",
    )
    serial: Hex | None = None
    issuer: Token | None = None
    profile: Token | None = None
    tenant: Token | None = None
    service: Token | None = None
    team: Token | None = None
    cluster: Token | None = None
    state: Literal["good", "expired", "revoked", "held"] | None = None
    expires_after: AwareDatetime | None = Field(default=None, description="by expiry")
    expires_before: AwareDatetime | None = Field(default=None, description="by expiry")
    after: str | None = Field(default=None, max_length=1000, description="next of the page before")
    limit: int = Field(default=50, ge=1, le=500)
    with_certificate: bool = Field(default=False, description="the certificates themselves too")


async def find(connection: Connection, reference: One, *, lock: bool = False) -> asyncpg.Record:
    """Return the row of a certificate, locked for an update where ``lock``.

    Raises:
        Conflict: there is none, or several issuers have this serial number.
    """
    serial = None if reference.serial is None else serial_octets(int(reference.serial, 16))
    fingerprint = None if reference.fingerprint is None else _octets(reference.fingerprint)
    from ca_signer.ledger import certificate_search  # SQLAlchemy, at the first command

    rows = await certificate_search.find(
        connection,
        serial_number=serial,
        fingerprint=fingerprint,
        issuer_id=reference.issuer,
        lock=lock,
    )
    if not rows:
        raise Conflict("the ledger has no such certificate", code="command.unknown")
    if len(rows) > 1:
        raise Conflict("several issuers have this serial number", code="command.ambiguous")
    return rows[0]


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.rjust(len(text) + len(text) % 2, "0"))


def facts(row: asyncpg.Record) -> dict[str, JsonValue]:
    """Return what operators see of a certificate."""
    revoked = row["revoked_at"]
    return {
        "issuer": row["issuer_id"],
        "serial": ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
        "fingerprint": row["certificate_sha256"].hex(),
        "subject": row["subject"],
        "san": list(filter(None, row["san"].split("\n"))),
        "tenant": row["tenant"],
        "service": row["service"],
        "profile": row["profile"],
        "not_before": row["not_before"].isoformat(),
        "not_after": row["not_after"].isoformat(),
        "issued_at": row["issued_at"].isoformat(),
        "revoked_at": revoked.isoformat() if revoked else None,
        "reason": row["revocation_reason"],
    }


async def _show(connection: Connection, reference: One, _: Caller) -> CommandResult:
    row = await find(connection, reference)
    return CommandResult(
        {**facts(row), "certificate": row["certificate"].hex()}, certificate_target(row)
    )


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import certificate_search  # SQLAlchemy, at the first command

    query = certificate_search.Query(
        serial_number=None if listing.serial is None else serial_octets(int(listing.serial, 16)),
        issuer_id=listing.issuer,
        **listing.model_dump(exclude={"serial", "issuer", "with_certificate"}),
    )
    try:
        rows, following = await certificate_search.search(connection, query)
    except asyncpg.QueryCanceledError as exc:
        raise Conflict(
            "too many certificates to look through; add an owner, a profile or a narrower name",
            code="command.search_too_wide",
        ) from exc
    certificates: list[JsonValue] = [
        {**facts(row), "certificate": row["certificate"].hex()}
        if listing.with_certificate
        else facts(row)
        for row in rows
    ]
    return CommandResult({"certificates": certificates, "next": following})


SHOW = Verb("certificate-show", LOOKING, One, _show, reads=True)
LIST = Verb("certificate-list", LOOKING, Listing, _list, reads=True)
