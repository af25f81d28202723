"""Rollovers of issuers by operators of the role ``ca``: plan, publish, sign, retire, roll back."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID

from pydantic import AwareDatetime, Field, JsonValue, model_validator

from ca_signer.campaigns.store import NewCampaign
from ca_signer.issuers import rollover
from ca_signer.issuers.cacerts import linked
from ca_signer.ledger.selector import Selector
from ca_signer.operators.verb import Caller, CommandResult, Verb, Verbs, table
from ca_signer.operators.verbs.campaigns import CampaignVerbs
from ca_signer.signing.issuers import SigningContext, SigningIssuer
from estcore import ids
from estcore.errors import Conflict
from estcore.messages.audit import Target
from estcore.pki.profile import StrictModel, Token
from estcore.policy.operators import Role
from estcore.runtime.database import Connection

_ROLLING: frozenset[Role] = frozenset({"ca"})
_LOOKING: frozenset[Role] = frozenset({"ca", "auditor"})
_HISTORY = 20


class Family(StrictModel):
    """The issuer that labels name."""

    issuer: Token


class Plan(Family):
    """Which issuer is to sign for it."""

    to: Token


class Switch(Family):
    """How much of the fleet must have fetched the new trust, and the pace of its renewal."""

    min_fetched: int = Field(default=100, ge=0, le=100)
    renew_per_minute: int | None = Field(
        default=None, ge=1, le=12_000, description="start a campaign for the old generation"
    )
    renew_by: AwareDatetime | None = Field(default=None, description="end of its window")

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.renew_by is not None and self.renew_per_minute is None:
            raise ValueError("renew_by needs renew_per_minute")
        return self


class Retirement(Family):
    """How many slots may stay behind with certificates that are not accepted any more."""

    left_behind: int = Field(default=0, ge=0)


class Question(Family):
    """Whose rollovers; ``lacking`` lists who has not fetched the trust, page by page."""

    lacking: bool = False
    after: UUID | None = None
    limit: int = Field(default=50, ge=1, le=500)


class Rolling:
    """The verbs, with the issuers this signer has."""

    def __init__(self, decision_context: SigningContext) -> None:
        self._decision_context = decision_context
        self._campaigns = CampaignVerbs(decision_context)

    def verbs(self) -> Verbs:
        """Return the verbs about rollovers."""
        return table(
            Verb("rollover-plan", _ROLLING, Plan, self._plan),
            Verb("rollover-publish", _ROLLING, Family, self._publish),
            Verb("rollover-sign", _ROLLING, Switch, self._sign),
            Verb("rollover-retire", _ROLLING, Retirement, self._retire),
            Verb("rollover-rollback", _ROLLING, Family, self._roll_back),
            Verb("rollover-status", _LOOKING, Question, self._status, reads=True),
        )

    async def _plan(self, connection: Connection, plan: Plan, caller: Caller) -> CommandResult:
        self._configured(plan.issuer, plan.to)
        row, changed = await rollover.begin(connection, plan.issuer, plan.to, caller.name)
        return _result(row, changed=changed)

    async def _publish(
        self, connection: Connection, family: Family, caller: Caller
    ) -> CommandResult:
        row = await rollover.under_way(connection, family.issuer)
        new = self._configured(family.issuer, row["to_issuer"])
        old = self._decision_context.issuers.get(row["from_issuer"])
        if old is None or not linked(new, old):
            raise Conflict(
                f"the roots of {row['from_issuer']} and {row['to_issuer']} are not linked: "
                "make OldWithNew and NewWithOld, and set cross_file",
                code="rollover.cross",
            )
        row, changed = await rollover.publish(connection, family.issuer, caller.name)
        return _result(row, changed=changed)

    async def _sign(self, connection: Connection, switch: Switch, caller: Caller) -> CommandResult:
        row, changed = await rollover.sign(
            connection, switch.issuer, caller.name, least_percent=switch.min_fetched
        )
        new = self._configured(switch.issuer, row["to_issuer"])
        if not new.keystore.ready:
            raise Conflict(f"the key of {new.issuer_id} is unavailable", code="rollover.key")
        result = _result(row, changed=changed, fleet=row["fleet"], fetched=row["fetched"])
        if switch.renew_per_minute is None:
            return result
        campaign = await self._campaigns.start(
            connection,
            NewCampaign(
                selector=Selector(issuer=row["from_issuer"]),
                reason="ca_rollover",
                per_minute=switch.renew_per_minute,
                renew_by=switch.renew_by,
            ),
            caller,
        )
        return CommandResult(
            {**result.result, "campaign": campaign["id"], "campaign_state": campaign["state"]},
            result.target,
            {**result.details, "campaign": str(campaign["id"])},
        )

    async def _retire(
        self, connection: Connection, retirement: Retirement, caller: Caller
    ) -> CommandResult:
        row, changed = await rollover.retire(
            connection, retirement.issuer, caller.name, left_behind=retirement.left_behind
        )
        own = await connection.fetchval(
            "select issuer_id from fingerprint join issuance using (issuance_id) "
            "where fingerprint.certificate_sha256 = $1",
            caller.fingerprint,
        )
        if changed and own == row["from_issuer"]:
            # Or the next command, perhaps the one that mends it, would be refused.
            raise Conflict(
                f"your own certificate is by {own}: enroll again, then retire it",
                code="rollover.operator",
            )
        return _result(row, changed=changed)

    async def _roll_back(
        self, connection: Connection, family: Family, caller: Caller
    ) -> CommandResult:
        row, changed = await rollover.roll_back(connection, family.issuer, caller.name)
        return _result(row, changed=changed)

    def _configured(self, family: str, issuer_id: str) -> SigningIssuer:
        """Return the issuer a rollover leads to.

        Raises:
            Conflict: not configured for this family, or its certificate is not of now.
        """
        issuer = self._decision_context.issuers.get(issuer_id)
        if issuer is None or issuer.family != family:
            raise Conflict(
                f"no issuer {issuer_id} is configured as generation_of {family}",
                code="rollover.issuer",
            )
        now, certificate = self._decision_context.clock.now(), issuer.certificate.certificate
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            raise Conflict(f"the certificate of {issuer_id} is not of now", code="rollover.issuer")
        return issuer

    async def _status(self, connection: Connection, question: Question, _: Caller) -> CommandResult:
        from ca_signer.ledger import operator_reads  # SQLAlchemy, at the first command

        rows = await operator_reads.rollovers(connection, question.issuer, limit=_HISTORY)
        result: dict[str, JsonValue] = {"issuer": question.issuer}
        current = next((r for r in rows if r["state"] in {"published", "signing"}), None)
        if current is not None:
            fleet = await rollover.count(connection, current)
            result |= {"fleet": fleet.slots, "fetched": fleet.fetched}
        if not question.lacking:
            result["rollovers"] = [_facts(row) for row in rows]
            result["generations"] = await self._generations(connection, question.issuer)
        elif current is not None:
            page = await rollover.lacking(
                connection, current, after=question.after, limit=question.limit
            )
            result["lacking"] = [_slot(row) for row in page]
            if len(page) == question.limit:
                result["after"] = str(page[-1]["slot_id"])
        return CommandResult(result, Target(issuer_id=question.issuer))

    async def _generations(self, connection: Connection, family: str) -> list[JsonValue]:
        rows = await connection.fetch(
            "select g.issuer_id, g.state, count(i.issuance_id) as live, max(i.not_after) as last "
            "from generation g left join issuance i on i.issuer_id = g.issuer_id "
            "and i.state = 'issued' and i.revoked_at is null and i.not_after > now() "
            "where g.family = $1 group by g.issuer_id, g.state order by g.issuer_id",
            family,
        )
        return [
            {
                "issuer": row["issuer_id"],
                "state": row["state"],
                "configured": row["issuer_id"] in self._decision_context.issuers,
                "live_certificates": row["live"],
                # Until then its revocation lists, and so its key, are needed.
                "last_not_after": row["last"].isoformat() if row["last"] else None,
            }
            for row in rows
        ]


def _result(row: Any, *, changed: bool, **more: int | None) -> CommandResult:
    counts = {name: value for name, value in more.items() if value is not None}
    facts = {"from": row["from_issuer"], "to": row["to_issuer"], "state": row["state"]}
    return CommandResult(
        {**_facts(row), "changed": changed},
        Target(issuer_id=row["family"]),
        {**facts, "rollover_id": str(row["rollover_id"]), "changed": changed, **counts},
    )


def _facts(row: Any) -> dict[str, JsonValue]:
    moments = ("planned_at", "published_at", "signing_at", "ended_at")
    times = {name: row[name].isoformat() if row[name] else None for name in moments}
    return {
        "id": str(row["rollover_id"]),
        "issuer": row["family"],
        "from": row["from_issuer"],
        "to": row["to_issuer"],
        "state": row["state"],
        **times,
        "changed_by": row["changed_by"],
        "fleet_at_switch": row["fleet"],
        "fetched_at_switch": row["fetched"],
    }


def _slot(row: Any) -> dict[str, JsonValue]:
    return {
        "tenant": row["tenant"],
        "service": row["service"],
        "profile": row["profile"],
        "subject": row["subject"],
        "san": list(filter(None, row["san"].split("\n"))),
        "issuer": row["issuer_id"],
        "serial": ids.serial_hex(int.from_bytes(row["serial_number"], "big")),
        "not_after": row["not_after"].isoformat(),
    }
