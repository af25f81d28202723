"""Settings of est-renewal (environment prefix ``EST_RENEWAL``)."""

from __future__ import annotations

import datetime as dt

from pydantic import Field

from estcore.pki.durations import Duration
from estcore.pki.profile import Priority, StrictModel
from estcore.runtime.settings import DatabaseSettings, ServiceSettings

SERVICE = "renewal"
_MINUTE = dt.timedelta(minutes=1)


class EventConsumerSettings(StrictModel):
    """How events of ca-signer become rows."""

    batch_size: int = Field(default=256, ge=1, le=256, description="messages in one transaction")
    linger_ms: int = Field(
        default=100, ge=0, le=1000, description="how long a first event waits for others"
    )
    credit: int = Field(default=1024, ge=1, le=4000, description="messages in hand at most")
    retry_s: float = Field(default=2, ge=0.1, le=300, description="delay after a failed batch")
    max_attempts: int = Field(
        default=5, ge=1, le=1000, description="failures of one message before it is a dead letter"
    )


class LeaseSettings(StrictModel):
    """Seconds an agent has to renew before its slot is dispatched again, by priority."""

    critical: Duration = 15 * _MINUTE
    high: Duration = 60 * _MINUTE
    normal: Duration = 180 * _MINUTE
    low: Duration = 360 * _MINUTE
    share: float = Field(
        default=0.25, gt=0, le=0.5, description="never more than this share of what is left"
    )

    def longest(self, priority: Priority) -> dt.timedelta:
        """Return the lease of a priority before the share of what is left is applied."""
        return {
            Priority.CRITICAL: self.critical,
            Priority.HIGH: self.high,
            Priority.NORMAL: self.normal,
            Priority.LOW: self.low,
        }[priority]


class SchedulerSettings(StrictModel):
    """How due slots are found and announced."""

    poll_s: float = Field(
        default=1,
        ge=0.05,
        le=60,
        description="mean distance of two looks; three times that while nothing is due",
    )
    claim_size: int = Field(
        default=200, ge=1, le=5000, description="slots dispatched at one look, all priorities"
    )
    sweep_after_s: float = Field(
        default=10,
        ge=0.1,
        le=3600,
        description="what was not announced by then is announced by any replica",
    )
    max_unanswered: int = Field(
        default=2000,
        ge=10,
        le=1_000_000,
        description="slots that are announced and have no new certificate yet, at most; "
        "a tenth is kept for each higher priority",
    )
    answer_s: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="after so long an announcement without an answer no longer counts there",
    )
    lease: LeaseSettings = LeaseSettings()


class RotationSettings(StrictModel):
    """How old and new certificate live side by side."""

    client_reload: Duration = Field(
        default=dt.timedelta(seconds=5),
        description="longest time a client takes to reload; the overlap is at least twice this",
    )
    stall_safety: Duration = Field(
        default=dt.timedelta(days=1),
        description="without proof of use a rotation counts as stalled this long before the old "
        "certificate expires, at most an eighth of its lifetime",
    )
    require_signed_proof: bool = Field(
        default=False,
        description="refuse a proof that is a TLS connection alone: a front end in other hands "
        "can invent one",
    )
    proof_wait: Duration = Field(
        default=dt.timedelta(seconds=2),
        description="how long a proof waits for the event of its certificate before it is refused",
    )
    proof_skew: Duration = Field(
        default=dt.timedelta(minutes=5), description="how far a proof's iat may be from now"
    )


class WindowSettings(StrictModel):
    """Anti-entropy with the ledger of ca-signer."""

    recheck_s: float = Field(
        default=5, ge=0.1, le=600, description="distance of two looks at a window that differs"
    )
    patience: int = Field(
        default=2, ge=0, le=20, description="looks before the window is asked for again"
    )
    max_requests: int = Field(
        default=5, ge=1, le=100, description="requests for one window before it is given up"
    )
    ledger_every_s: float = Field(
        default=3600,
        ge=1,
        le=86_400,
        description="distance of two comparisons of the last day with the ledger",
    )


class RenewalInfoSettings(StrictModel):
    """Renewal information that front ends answer clients with (RFC 9773)."""

    expired_days: int = Field(
        default=7,
        ge=1,
        le=400,
        description="days after its expiry that a certificate is known as expired, not as unknown",
    )
    check_every_s: float = Field(
        default=10, ge=0.1, le=3600, description="distance of two comparisons with the stream"
    )
    republish_per_s: float = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="certificates published a second where the stream has to be filled again",
    )


class RenewalSettings(ServiceSettings):
    """All settings of est-renewal."""

    database: DatabaseSettings
    event_consumer: EventConsumerSettings = EventConsumerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    rotation: RotationSettings = RotationSettings()
    windows: WindowSettings = WindowSettings()
    renewal_info: RenewalInfoSettings = RenewalInfoSettings()
    metrics_every_s: float = Field(
        default=15, ge=1, le=600, description="distance of two counts of slots for the gauges"
    )
