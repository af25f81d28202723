"""The answer to a client that asks when to renew (RFC 9773 section 4.2), and when to ask again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from uuid import UUID

from est_frontend.renewal_info.follower import RenewalInfoFollower
from est_frontend.renewal_info.store import StoredEntry
from est_frontend.settings import RenewalInfoSettings
from estcore.clock import Clock
from estcore.errors import ESTSuiteError, MalformedRequest, Unavailable
from estcore.est.renewal_info import CertificateId, RenewalInfo, parse_cert_id
from estcore.ids import issued_at_ms
from estcore.messages.renewal_info import entry_octets

SHORTEST_S = 1
_ON_THE_WAY_S = 30
"""A certificate that is younger may be known to renewal and not yet here."""
_APPROACH = 2
"""Half of the time to the window: a client sees one that moved well before it acts."""
_LEFT = 8
"""An eighth of what is left of the certificate, once the window has begun."""
_SPREAD = 0.25


class RenewalInfoAnswers:
    """Answers about certificates from the store; no service is asked."""

    def __init__(
        self,
        follower: RenewalInfoFollower,
        settings: RenewalInfoSettings,
        clock: Clock,
        clock_is_right: Callable[[], bool],
    ) -> None:
        self._follower, self._settings, self._clock = follower, settings, clock
        self._clock_is_right = clock_is_right

    async def answer(self, text: str) -> RenewalInfo:
        """Return when the certificate with an id is best renewed.

        Raises:
            MalformedRequest: no certificate id, an unknown certificate, or one that expired.
            Unavailable: the store cannot be read, or is not complete.
        """
        certificate_id = parse_cert_id(text)
        key = entry_octets(certificate_id)
        entry = await self._follower.find(key)
        now = self._clock.now().timestamp()
        if entry is None:
            raise self._unknown(certificate_id, now)
        # By a clock that is wrong, a good certificate is not given up.
        if entry.not_after <= now and self._clock_is_right():
            raise MalformedRequest(
                "the certificate has expired and can renew nothing; enroll with the credential "
                "of the first enrollment",
                code="renewal_info.expired",
            )
        draw = int.from_bytes(key[-4:], "big") / (1 << 32)
        return renewal_info(entry, now=now, longest_s=self._settings.retry_after_s, draw=draw)

    def _unknown(self, certificate_id: CertificateId, now: float) -> ESTSuiteError:
        """Return the error for a certificate that is not here, or not here yet."""
        issued_at = issued_at_ms(certificate_id.serial_number)
        recent = issued_at is not None and abs(now - issued_at / 1000) < _ON_THE_WAY_S
        if self._follower.complete and not recent:
            return MalformedRequest(
                "nothing is known about this certificate; is it of this server?",
                code="renewal_info.unknown",
            )
        return Unavailable(
            "renewal information is not complete here yet", code="renewal_info.unavailable"
        )


def renewal_info(entry: StoredEntry, *, now: float, longest_s: int, draw: float) -> RenewalInfo:
    """Return the answer about a certificate at ``now``, in Unix seconds.

    ``draw`` in [0, 1) spreads clients.
    """
    return RenewalInfo(
        start=_moment(entry.start),
        end=_moment(entry.end),
        rotation_id=str(UUID(bytes=entry.rotation)) if entry.rotation else None,
        reason=entry.reason or "lifetime",
        explanation_url=entry.url,
        managed=entry.managed,
        retry_after_s=retry_after_s(entry, now=now, longest_s=longest_s, draw=draw),
    )


def retry_after_s(entry: StoredEntry, *, now: float, longest_s: int, draw: float) -> int:
    """Return after how many seconds a client is to ask again.

    At most ``longest_s``, and up to a quarter less by ``draw``, so that clients that asked together
    do not return together. Before the window at most half of the time to it, then at most an
    eighth of what is left of the certificate: one that lives two minutes is asked about every few
    seconds.
    """
    wait = (entry.start - now) / _APPROACH if now < entry.start else (entry.not_after - now) / _LEFT
    wait = min(wait, longest_s) * (1 - _SPREAD * draw)
    return max(int(wait), SHORTEST_S)


def _moment(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
