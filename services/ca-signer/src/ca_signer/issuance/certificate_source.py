"""Where certificates come from: the port between request handling and what issues.

The signing cycle (``ca_signer.signing``) signs with a key that is here; an upstream CA
(``ca_signer.upstream``) is sent the request. Both take a recorded intent through steps 6 to 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ca_signer.issuance.decision_context import Candidate
from ca_signer.model import IssuanceIntent, IssuedCertificate
from estcore.errors import RequestRejected

IntentT = TypeVar("IntentT", bound=IssuanceIntent, contravariant=True)


@dataclass(frozen=True)
class RetryLater:
    """No certificate yet: the client asks again after so many seconds."""

    retry_after_s: int


@dataclass(frozen=True)
class LeaseLost:
    """Another process holds the intent; its row has what came of it."""


Outcome = IssuedCertificate | RequestRejected | RetryLater | LeaseLost


class CertificateSource(Protocol[IntentT]):
    """Issues certificates for recorded intents."""

    name: str
    """The prefix of its fault points and records, ``signer`` or ``upstream``."""

    def check(self, candidate: Candidate) -> None:
        """Refuse what the source cannot issue, before anything is recorded.

        Raises:
            RequestRejected: for example a CSR that an upstream CA would not follow.
        """
        ...

    async def issue(self, intent: IntentT) -> Outcome:
        """Take a recorded intent through steps 6 to 9 and answer its request.

        Raises:
            Unavailable: nothing was issued, or the row shows how far it came; retry.
            InvariantBroken: nothing was issued and it makes no sense to retry.
        """
        ...

    async def publish(self, issued: Sequence[IssuedCertificate]) -> None:
        """Step 10: publish events and records of stored certificates.

        Raises:
            BusUnavailable: not confirmed; the sweeper publishes again.
        """
        ...

    async def abandon(self, intent: IntentT, why: RequestRejected) -> None:
        """Abandon an intent and answer its request."""
        ...

    async def supersede(self, issued: IssuedCertificate) -> None:
        """Revoke a certificate whose generated key never reached its client."""
        ...
