"""Campaigns by operators of the role ``renewer``: propose, look, confirm, pause, resume, stop.

- A campaign that revokes what it replaced needs the role ``revoker`` as well.
- Whether the proposer may confirm is in the policy (``campaigns.two_operators``); by default not
  where the campaign revokes.
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import AwareDatetime, Field, JsonValue

from ca_signer.campaigns import store
from ca_signer.campaigns.store import NewCampaign
from ca_signer.issuance.decision_context import DecisionContext
from ca_signer.ledger.selector import Selector
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from estcore import ids
from estcore.errors import Conflict, NotAuthorized
from estcore.messages.events import EarlyReason
from estcore.pki.crl import RevocationReason
from estcore.pki.profile import StrictModel
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_RENEWING: frozenset[Role] = frozenset({"renewer"})
_LOOKING: frozenset[Role] = frozenset({"renewer", "auditor"})
_SHOWN = 20


class Proposal(Selector):
    """Which certificates, why, how many a minute, in which window, and whether to revoke them."""

    reason: EarlyReason
    explanation_url: str | None = Field(
        default=None, max_length=512, pattern=r"^https?://[!-~]+$", description="clients show it"
    )
    per_minute: int = Field(default=store.DEFAULT_PER_MINUTE, ge=1, le=12_000)
    starts_at: AwareDatetime | None = None
    renew_by: AwareDatetime | None = None
    revoke: RevocationReason | None = Field(
        default=None, description="why replaced certificates are revoked after proof of use"
    )

    def campaign(self) -> NewCampaign:
        """Return the campaign that is proposed."""
        conditions = self.model_dump(include=set(Selector.model_fields), exclude_none=True)
        return NewCampaign(
            selector=Selector.model_validate(conditions),
            reason=self.reason,
            per_minute=self.per_minute,
            starts_at=self.starts_at,
            renew_by=self.renew_by,
            explanation_url=self.explanation_url,
            revoke=self.revoke,
        )


class One(StrictModel):
    """Names a campaign."""

    id: UUID


class Confirmation(One):
    """Confirms a campaign of exactly so many certificates."""

    count: int = Field(ge=1)


class Listing(StrictModel):
    """How many campaigns to list, newest first."""

    limit: int = Field(default=20, ge=1, le=200)


class CampaignVerbs:
    """The verbs, with the policy in force."""

    def __init__(self, decision_context: DecisionContext) -> None:
        self._decision_context = decision_context

    def verbs(self) -> Verbs:
        """Return the verbs about campaigns."""
        return table(
            Verb("campaign-propose", _RENEWING, Proposal, self._propose),
            Verb("campaign-confirm", _RENEWING, Confirmation, self._confirm),
            Verb("campaign-pause", _RENEWING, One, _pause),
            Verb("campaign-resume", _RENEWING, One, _resume),
            Verb("campaign-stop", _RENEWING, One, _stop),
            Verb("campaign-show", _LOOKING, One, _show, reads=True),
            Verb("campaign-list", _LOOKING, Listing, _list, reads=True),
        )

    def needs_two(self, *, revokes: bool) -> bool:
        """Return whether another operator than the proposer has to confirm."""
        return self._decision_context.policy.campaigns.needs_two(revokes=revokes)

    async def start(
        self, connection: Connection, new: NewCampaign, caller: Caller
    ) -> dict[str, JsonValue]:
        """Start a campaign that belongs to another command, or return the open one like it.

        It runs once its members are selected, or awaits a second operator where the policy wants
        two.

        Raises:
            NotAuthorized: the caller has not the role ``renewer``.
            Conflict: the window has ended.
        """
        _check_roles(caller, revokes=new.revoke is not None)
        row = await store.find_open(connection, new.reason, new.selector)
        if row is None:
            confirmed = not self.needs_two(revokes=new.revoke is not None)
            row = await store.insert(connection, new, caller.name, confirmed=confirmed)
        return _facts(row)

    async def _propose(
        self, connection: Connection, proposal: Proposal, caller: Caller
    ) -> CommandResult:
        _check_roles(caller, revokes=proposal.revoke is not None)
        return _result(await store.insert(connection, proposal.campaign(), caller.name))

    async def _confirm(
        self, connection: Connection, confirmation: Confirmation, caller: Caller
    ) -> CommandResult:
        row = await store.find(connection, confirmation.id)
        revokes = row["revoke_reason"] is not None
        _check_roles(caller, revokes=revokes)
        if self.needs_two(revokes=revokes) and row["proposed_by"] == caller.name:
            raise NotAuthorized(
                "another operator than the proposer confirms this campaign", code="campaign.dual"
            )
        if row["state"] == "running" and row["confirmed_by"] == caller.name:
            return _result(row)
        if row["state"] != "proposed":
            raise Conflict(f"the campaign is {row['state']}, not proposed", code="campaign.state")
        if row["now"] - row["proposed_at"] > store.LIFETIME:
            raise Conflict("the proposal is older than a day; propose again", code="campaign.state")
        if row["members"] != confirmation.count:
            raise Conflict(
                f"the campaign has {row['members']} certificates, not {confirmation.count}",
                code="campaign.count",
            )
        if row["renew_by"] is not None and row["renew_by"] <= row["now"]:
            raise Conflict("the window of the campaign has ended", code="campaign.window")
        await store.run(connection, confirmation.id, caller.name)
        return _result(await store.find(connection, confirmation.id))


async def _pause(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await store.find(connection, reference.id)
    if row["state"] == "running":
        await store.pause(connection, reference.id, caller.name)
    elif row["state"] != "paused":
        raise Conflict(f"the campaign is {row['state']}, not running", code="campaign.state")
    return _result(await store.find(connection, reference.id))


async def _resume(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await store.find(connection, reference.id)
    _check_roles(caller, revokes=row["revoke_reason"] is not None)
    if row["state"] == "paused":
        await store.run(connection, reference.id, caller.name)
    elif row["state"] != "running":
        raise Conflict(f"the campaign is {row['state']}, not paused", code="campaign.state")
    return _result(await store.find(connection, reference.id))


async def _stop(connection: Connection, reference: One, caller: Caller) -> CommandResult:
    row = await store.find(connection, reference.id)
    if row["state"] in store.OPEN:
        await store.end(connection, reference.id, "stopped", by=caller.name)
    elif row["state"] != "stopped":
        raise Conflict(f"the campaign is {row['state']}", code="campaign.state")
    return _result(await store.find(connection, reference.id))


async def _show(connection: Connection, reference: One, _: Caller) -> CommandResult:
    # Not locked: while the members are selected, which may take long, it can be shown.
    row = await store.find(connection, reference.id, lock=False)
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    owners = await operator_reads.campaign_owners(connection, reference.id, limit=_SHOWN)
    some = await operator_reads.campaign_members(connection, reference.id, limit=_SHOWN)
    counts = await store.member_counts(connection, reference.id)
    progress: dict[str, JsonValue] = dict(counts) if row["members"] is not None else {}
    return CommandResult(
        {
            **_facts(row),
            "requests_end_at": _requests_end(row, counts),
            "progress": progress,
            "owners": [dict(r) for r in owners],
            "some": [_member(r) for r in some],
        }
    )


async def _list(connection: Connection, listing: Listing, _: Caller) -> CommandResult:
    from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

    rows = await operator_reads.campaigns(connection, limit=listing.limit)
    shown = ("id", "state", "count", "reason", "selector", "proposed_by")
    facts = map(_facts, rows)
    return CommandResult({"campaigns": [{name: f[name] for name in shown} for f in facts]})


def _check_roles(caller: Caller, *, revokes: bool) -> None:
    """Check the roles that a campaign needs.

    Raises:
        NotAuthorized: one is missing.
    """
    missing = {"renewer", *({"revoker"} if revokes else ())} - caller.roles
    if missing:
        raise NotAuthorized(
            f"this campaign is for the roles renewer{' and revoker' if revokes else ''}",
            code="command.role",
        )


def _requests_end(row: asyncpg.Record, counts: dict[str, int]) -> str | None:
    """Return when the last renewal will have been requested at the pace; None once it is."""
    waiting = counts["members"] - counts["requested"] - counts["skipped"]
    if row["state"] not in {"proposed", "running", "paused"} or waiting <= 0:
        return None
    start: dt.datetime = max(row["now"], row["starts_at"] or row["now"])
    end = start + dt.timedelta(minutes=waiting / row["per_minute"])
    return end.replace(microsecond=0).isoformat()


def _member(row: asyncpg.Record) -> dict[str, JsonValue]:
    return {
        "issuer": row["issuer_id"],
        "serial": ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
        "subject": row["subject"],
        "not_after": row["not_after"].isoformat(),
    }


def _facts(row: asyncpg.Record) -> dict[str, JsonValue]:
    return {
        "id": str(row["campaign_id"]),
        "state": row["state"],
        "selector": store.selector_text(row),
        "reason": row["reason"],
        "explanation_url": row["explanation_url"],
        "count": row["members"],
        "per_minute": row["per_minute"],
        "starts_at": _time(row["starts_at"]),
        "renew_by": _time(row["renew_by"]),
        "revoke": row["revoke_reason"],
        "proposed_by": row["proposed_by"],
        "proposed_at": _time(row["proposed_at"]),
        "confirmed_by": row["confirmed_by"],
        "paused_by": row["paused_by"],
        "stopped_by": row["stopped_by"],
        "ended_at": _time(row["ended_at"]),
    }


def _time(moment: Any) -> str | None:
    return moment.isoformat() if moment is not None else None


def _result(row: asyncpg.Record) -> CommandResult:
    return CommandResult(
        _facts(row), details={"campaign": str(row["campaign_id"]), "state": row["state"]}
    )
