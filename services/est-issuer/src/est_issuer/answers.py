"""What an EST server's answer means for a request (pure): a certificate, later, or refused.

- Temporary: no server answers, 408, 425, 429 and 5xx, and 202 with its Retry-After (RFC 7030
  section 4.2.3). The request stays pending and is sent again.
- Final: every other refusal, and an answer that cannot be used. After 200 a request is not sent
  again, since a server that does not recognise repetitions would issue once more each time.
"""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from est_issuer.conditions import rfc3339
from est_issuer.durations import shown
from est_issuer.requests import Request, names_text, san_of
from est_issuer.usages import missing
from estclient.agent.bundle import sent_chain, verify_chain
from estclient.errors import ESTClientError, ServerAway, ServerRefused, StillPending
from estcore.errors import ESTSuiteError
from estcore.pki.parsers import PARSER_ERRORS

_CODE = re.compile(r"\[[a-z_]+\.[a-z0-9_]+\]\s*$")
"""The code with which a reason of the suite ends; one of a server's text counts more than ours."""
_TEMPORARY = frozenset({408, 425})
_LONGEST_WAIT_S = 7 * 86400.0
_FIRST_PAUSE_S = 2.0
_DEFAULT_PENDING_S = 60.0
_NEARLY = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class Issued:
    """A certificate: PEM of the chain without the root, and of the root; a sentence about it."""

    certificate: x509.Certificate
    chain: bytes
    authority: bytes
    message: str


@dataclass(frozen=True)
class Later:
    """The request is sent again after ``after_s``."""

    message: str
    after_s: float
    code: str


@dataclass(frozen=True)
class Refused:
    """The request is not sent again.

    ``status`` and ``server_code`` are those of the EST server's answer, where it refused.
    """

    message: str
    code: str
    status: int | None = None
    server_code: str | None = None


Outcome = Issued | Later | Refused


class UnfitCertificate(ESTClientError):
    """The certificate is not what was asked for."""

    default_code = "issuer.certificate"


def outcome_of_error(
    error: ESTSuiteError,
    attempt: int,
    *,
    longest_s: float,
    spread: Callable[[float, float], float] = random.uniform,
) -> Later | Refused:
    """Return what an error of an enrollment means; ``attempt`` counts the failed ones, from 0."""
    message = error.reason if _CODE.search(error.reason) else f"{error.reason} [{error.code}]"
    if isinstance(error, StillPending):
        wished = error.retry_after_s
        wait = _DEFAULT_PENDING_S if wished is None else wished
        text = "the EST server accepted the request and has not decided yet (202)"
        return Later(text, min(max(wait, 1.0), _LONGEST_WAIT_S), error.code)
    temporary = isinstance(error, ServerAway) or (
        isinstance(error, ServerRefused) and error.status in _TEMPORARY
    )
    if not temporary:
        if isinstance(error, ServerRefused):
            return Refused(message, error.code, error.status, error.server_code)
        return Refused(message, error.code)
    # Half to whole of a doubling pause: requests that failed together do not return together.
    pause = min(_FIRST_PAUSE_S * 2 ** min(attempt, 30), longest_s) * spread(0.5, 1)
    wished = error.retry_after_s if isinstance(error, ServerAway) else None
    return Later(message, min(pause + (wished or 0), _LONGEST_WAIT_S), error.code)


def issued(
    request: Request,
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    *,
    now: dt.datetime,
) -> Issued:
    """Return the answer for a certificate that fits the request.

    Checks signatures and validity up to a root of ``/cacerts``, that no name that was asked for is
    missing, and the extended usages. The subject is the server's decision. That the certificate is
    for the key of the request was checked when it was received.

    Raises:
        UnfitCertificate: names or usages are missing, or it cannot be read.
        BundleInvalid: it leads to no root of ``/cacerts``, or is not valid now.
    """
    try:
        lacking = san_of(request.csr) - san_of(certificate)
        usages = missing(request.usages, certificate)
    except PARSER_ERRORS as exc:
        raise UnfitCertificate("the certificate of the EST server cannot be read") from exc
    if lacking:
        raise UnfitCertificate(f"the EST server issued without the names {names_text(lacking)}")
    if usages:
        raise UnfitCertificate(
            f"the EST server issued without the usages {', '.join(usages)}: ask for those of its "
            "profile, or use an issuer with the label of a different profile"
        )
    links = verify_chain(certificate, authorities, now=now)
    return Issued(
        certificate,
        _pem(sent_chain(links, authorities)),
        _pem(links[-1:]),
        f"the EST server issued the certificate{_duration_note(request, certificate, now)}",
    )


def _duration_note(request: Request, certificate: x509.Certificate, now: dt.datetime) -> str:
    """Return a clause where the server's lifetime is not the one that was asked for."""
    if request.duration is None:
        return ""
    end = certificate.not_valid_after_utc
    if abs(end - now - request.duration) <= _NEARLY:
        return ""
    wanted = shown(request.duration)
    return f"; it ends {rfc3339(end)}, which the server decides, and not after {wanted}"


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)
