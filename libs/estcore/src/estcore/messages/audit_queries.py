"""Commands about the audit log and its sinks: ``pki.command.audit.<verb>``, to est-audit.

est-audit has ca-signer verify and record each of them before it does anything: ca-signer has the
ledger and the policy that say who is an auditor. It receives the same octets, on
``pki.command.ca-signer.<verb>``, from est-audit only.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from estcore.pki.profile import StrictModel, Token

Text = Annotated[str, Field(min_length=1, max_length=512)]
LogIndex = Annotated[int, Field(ge=0, lt=1 << 63)]
MAX_PAGE = 200


class Conditions(StrictModel):
    """Which records are wanted: all conditions together, for one fact."""

    correlation_id: Text | None = None
    serial: Annotated[str, Field(pattern=r"^[0-9A-Fa-f:]{1,80}$")] | None = None
    name: Text | None = Field(default=None, description="SAN entry, subject or common name")
    principal: Text | None = Field(default=None, description="who acted; an operator by name too")
    owner: Text | None = Field(default=None, description="tenant/service, or the tenant")
    action: Text | None = None
    outcome: Literal["success", "failure", "unknown"] | None = None
    phase: Literal["intent", "outcome", "denied", "error"] | None = None
    producer: Text | None = Field(default=None, description="the service that wrote the record")


class AuditSearch(Conditions):
    """Which records to find, newest first."""

    since: AwareDatetime | None = Field(default=None, description="recorded then or later")
    until: AwareDatetime | None = Field(default=None, description="recorded before")
    before: LogIndex | None = Field(default=None, description="next, as the page before said")
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)
    full: bool = Field(default=False, description="whole records, without certificates")


class AuditTail(Conditions):
    """Which records to follow, oldest first, from one on; without ``after`` from the next one."""

    after: LogIndex | None = Field(default=None, description="log index to begin with")


class AuditProve(StrictModel):
    """What to prove under the newest checkpoint: one record, or an older checkpoint."""

    index: LogIndex | None = Field(default=None, description="log index of the record")
    old_size: LogIndex | None = Field(
        default=None, ge=1, description="records of the older checkpoint"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.index is None) == (self.old_size is None):
            raise ValueError("give index or old_size, exactly one")
        return self


class AuditExport(StrictModel):
    """Which part of an export to read: lines from a record on, then from a checkpoint on."""

    size: LogIndex | None = Field(
        default=None, description="records of the export, as the first part said"
    )
    record: LogIndex = Field(default=0, description="next_record, as the part before said")
    checkpoint: LogIndex = Field(default=0, description="next_checkpoint, as the part before said")


class AuditReport(StrictModel):
    """Which period to report on, and which part of a file of the report to read."""

    since: AwareDatetime = Field(description="recorded then or later")
    until: AwareDatetime = Field(description="recorded before")
    file: Text | None = Field(default=None, description="without it, the manifest and the names")
    offset: LogIndex = Field(default=0, description="octet to begin with")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.since >= self.until:
            raise ValueError("since is not before until")
        return self


Month = Annotated[str, Field(pattern=r"^2[0-9]{3}-(0[1-9]|1[0-2])$")]


class PurgeProposal(StrictModel):
    """Which month of the log to purge; nothing is purged by it."""

    month: Month


class PurgeConfirmation(StrictModel):
    """A second operator's consent to a proposal, by what its answer said."""

    id: Text = Field(description="id of the proposal")
    month: Month
    records: int = Field(
        ge=1, lt=1 << 63, description="records of the month, as the proposal's answer said"
    )


class SinkStatus(StrictModel):
    """How far each sink is."""


class SinkTest(StrictModel):
    """Which sink to connect to, as the service does."""

    sink: Token
    send: bool = Field(default=False, description="deliver one entry that says it is a test")


class SinkReplay(StrictModel):
    """From which record on a sink gets everything again."""

    sink: Token
    start: LogIndex


class SinkDeadLetters(StrictModel):
    """Which sink's dead letters to list or deliver, oldest first, from one on."""

    sink: Token
    after: LogIndex | None = Field(default=None, description="as the page before said")


ARGUMENTS: dict[str, type[StrictModel]] = {
    "audit-search": AuditSearch,
    "audit-prove": AuditProve,
    "audit-tail": AuditTail,
    "audit-export": AuditExport,
    "audit-report": AuditReport,
    "audit-purge-propose": PurgeProposal,
    "audit-purge-confirm": PurgeConfirmation,
    "sink-status": SinkStatus,
    "sink-test": SinkTest,
    "sink-replay": SinkReplay,
    "sink-dead-letters": SinkDeadLetters,
    "sink-deliver": SinkDeadLetters,
}
"""The model of the arguments, by verb (``topics.AUDIT_VERBS``)."""
