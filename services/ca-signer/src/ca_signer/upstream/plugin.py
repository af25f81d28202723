"""Interface of a plug-in for an upstream CA; docs/upstreams.md describes how to write one.

A plug-in reports the outcome by returning or by one of four errors. The outcome decides whether
the same request may ever be sent again, so every doubt is ``Unknown``.

    Submitted    the certificate, as received
    Refused      the upstream CA refused for good; nothing was issued
    Retryable    nothing was issued, and the same request may be sent again later
    Pending      the upstream CA has the request and answers the same request later
    Unknown      a certificate may exist: the request was sent, no trustworthy response arrived
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from cryptography import x509

from estcore.errors import ESTSuiteError

GROUP = "estsuite.upstreams"
"""The group of entry points that plug-ins are found in; the name is what settings say."""


@dataclass(frozen=True)
class Wanted:
    """One certificate to be had: the client's own CSR, and what the certificate must be.

    ``pattern`` is the certificate that a local issuer would have signed: subject, SAN, usages.
    Its signature and serial number mean nothing. ``lifetime`` is the longest allowed from now.
    ``sending`` counts from 1; more is the same request again.
    """

    submission_id: str
    csr: bytes
    pattern: x509.Certificate
    lifetime: dt.timedelta
    sending: int


@dataclass(frozen=True)
class Submitted:
    """The certificate (DER) as received, not checked yet; ``reference`` is for people."""

    certificate: bytes
    reference: str | None = None


class Refused(ESTSuiteError):
    """The upstream CA refuses this request for good."""

    default_code = "upstream.refused"


class Retryable(ESTSuiteError):
    """Nothing was issued; later it may be."""

    default_code = "upstream.unavailable"

    def __init__(self, reason: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(reason, code=code)
        self.retry_after_s = retry_after_s


class Pending(ESTSuiteError):
    """The upstream CA takes its time; the same request again, after a while, gets the answer."""

    default_code = "upstream.pending"

    def __init__(self, reason: str, *, retry_after_s: int) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unknown(ESTSuiteError):
    """The request was sent; whether a certificate exists is unknown."""

    default_code = "upstream.unknown"


class Upstream(Protocol):
    """An upstream CA. One instance serves a process; calls may run at the same time."""

    @property
    def repeatable_s(self) -> float:
        """For so long after the first sending the same CSR gets the same certificate; 0: never."""
        ...

    @property
    def can_revoke(self) -> bool:
        """Whether ``revoke`` does anything."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """Files that may change while the process runs."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def reload(self) -> None:
        """Read the files again.

        Raises:
            ConfigurationError: they are not good; what was read before stays.
        """
        ...

    async def submit(self, request: Wanted) -> Submitted:
        """Ask for a certificate, or ask again.

        Raises:
            Refused, Retryable, Pending, Unknown: see the module.
        """
        ...

    async def revoke(self, certificate: bytes, reason: str) -> None:
        """Revoke a certificate there; doing it twice is harmless.

        ``reason`` is a name of RFC 5280 section 5.3.1.

        Raises:
            Refused, Retryable, Unknown: it is not, not yet, or perhaps revoked.
        """
        ...

    async def authorities(self) -> Sequence[x509.Certificate]:
        """Return the CA certificates the upstream CA shows, in any order.

        Raises:
            Retryable, Unknown: not now.
        """
        ...


class Factory(Protocol):
    """What an entry point names: makes a plug-in from its part of the settings."""

    def __call__(self, options: dict[str, Any], *, timeout_s: float) -> Upstream:
        """Read options and files; no connection yet.

        Raises:
            ConfigurationError: an option is unknown or not good, a file cannot be used.
        """
        ...
