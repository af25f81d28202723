"""Renewal timer of one agent: asks the server for renewal information, and knows what is due."""

from __future__ import annotations

import logging

from estclient.agent.bundle import Bundle
from estclient.agent.connection import Connection
from estclient.agent.renewal_schedule import Due, due, hold_s, poll_pause_s
from estclient.agent.server_clock import ServerClock
from estclient.agent.settings import AgentSettings
from estclient.errors import ESTClientError, RenewalInfoUnknown, ServerRefused
from estcore.clock import monotonic_s
from estcore.errors import ESTSuiteError, MalformedRequest
from estcore.est.renewal_info import RenewalInfo
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

AVAILABLE = "available"
"""What a certificate is due by where the server has renewed it by itself."""


class RenewalTimer:
    """What the server suggests for the current certificate, and the agent's own time."""

    def __init__(
        self,
        settings: AgentSettings,
        connection: Connection,
        clock: ServerClock,
    ) -> None:
        self._renew_at, self._asks = settings.renew_at, settings.renewal_info
        self._managed = settings.managed
        self._connection, self._clock = connection, clock
        self._info: RenewalInfo | None = None
        self._of = ""
        self._poll_at = 0.0
        self._hold_until = 0.0

    @property
    def poll_left_s(self) -> float:
        """Seconds until the server is asked again; never, where it is not asked."""
        return max(self._poll_at - monotonic_s(), 0) if self._asks else float("inf")

    @property
    def rotation_id(self) -> str | None:
        """The rotation of the certificate asked about, where the server names it."""
        return self._info.rotation_id if self._info is not None else None

    def due(self, bundle: Bundle) -> Due:
        """Return when the certificate is due by the earlier of both times."""
        info = self._info if bundle.fingerprint == self._of else None
        if self._managed and info is not None and info.managed is not None:
            # The server renews; the agent does only where that did not happen in time.
            if info.managed == "available":
                return Due(bundle.certificate.not_valid_before_utc, AVAILABLE)
            info = None
        return due(bundle.certificate, renew_at=self._renew_at, info=info)

    def seconds_left(self, bundle: Bundle) -> float:
        """Return the seconds until the certificate is renewed unasked; 0 or less: now."""
        left = (self.due(bundle).moment - self._clock.now()).total_seconds()
        return max(left, self._hold_until - monotonic_s())

    def stored(self, bundle: Bundle) -> None:
        """Note that a certificate was stored: it is not renewed at once by itself."""
        self._hold_until = monotonic_s() + hold_s(bundle.certificate)

    def ask_now(self) -> None:
        """Ask the server at the next look, whatever it said of when to ask again."""
        self._poll_at = 0.0

    async def refresh(self, bundle: Bundle) -> None:
        """Ask the server, where it is time; without an answer the agent's own time stands.

        Where the machine's clock was not compared with the server's since it was set, any answer
        is enough to compare it before the agent decides.
        """
        if bundle.fingerprint != self._of:
            self._info, self._of, self._poll_at = None, bundle.fingerprint, 0.0
        try:
            if self._asks and self.poll_left_s <= 0:
                await self._ask(bundle)
            is_due = self.seconds_left(bundle) <= 0
            if not self._clock.is_compared and (is_due or not self._asks):
                await self._connection.anonymous().cacerts()
        except (ESTSuiteError, OSError) as exc:
            log.debug("server time not known", extra=fields(error=str(exc)))

    async def _ask(self, bundle: Bundle) -> None:
        left = (bundle.certificate.not_valid_after_utc - self._clock.now()).total_seconds()
        retry_after_s = None
        try:
            info = await self._connection.anonymous().renewal_info(bundle.certificate)
        except RenewalInfoUnknown:
            self._info = None
        except (ServerRefused, MalformedRequest) as exc:
            log.info("no renewal information", extra=fields(error=exc.reason))
        except ESTClientError as exc:
            log.warning("renewal information not received", extra=fields(error=exc.reason))
            retry_after_s = 0.0
        else:
            self._take(info, bundle)
            retry_after_s = info.retry_after_s
        self._poll_at = monotonic_s() + poll_pause_s(retry_after_s, max(left, 0))

    def _take(self, info: RenewalInfo, bundle: Bundle) -> None:
        if info == self._info:
            return
        if info.managed is not None and self._managed:
            log.info(
                "the server renews the certificate",
                extra=fields(serial=bundle.serial, managed=info.managed),
            )
        if self._info is None or (info.start, info.end) != (self._info.start, self._info.end):
            log.info(
                "renewal window received",
                extra=fields(
                    serial=bundle.serial,
                    start=info.start.isoformat(),
                    end=info.end.isoformat(),
                    reason=info.reason,
                    explanation=info.explanation_url,
                ),
            )
        self._info = info
