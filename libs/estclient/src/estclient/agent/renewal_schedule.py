"""Renewal schedule of one certificate: the earlier of the agent's own time and the server's.

- Own time: a share of the lifetime (``renew_at``).
- Renewal information (RFC 9773 section 4.2): a uniformly random moment of the suggested window.
  The draw follows from the certificate, so a restart does not draw again. A moment that has
  passed means now.
- The server is asked again after its Retry-After, between a minute and a day, and at least eight
  times in the life that is left. No answer leaves the agent's own time.
- A certificate that has just been stored is not renewed unasked for a twentieth of its lifetime,
  at most an hour: a wrong clock or a wrong answer cannot make a loop.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.est.renewal_info import RenewalInfo

_LEAST_S, _MOST_S = 60.0, 86_400.0
_DEFAULT_RETRY_S = 6 * 3600.0
_SHORTEST_S = 5.0
_LOOKS = 8
_LONGEST_HOLD_S = 3600.0


@dataclass(frozen=True)
class Due:
    """When a certificate is due, and by what."""

    moment: dt.datetime
    by: str


def lifetime(certificate: x509.Certificate) -> dt.timedelta:
    """Return how long the certificate is valid in all."""
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


def due(certificate: x509.Certificate, *, renew_at: float, info: RenewalInfo | None) -> Due:
    """Return the earlier of the own time and the one that the server suggests."""
    own = certificate.not_valid_before_utc + lifetime(certificate) * renew_at
    if info is None:
        return Due(own, "lifetime")
    suggested = chosen_moment(certificate, info)
    return Due(suggested, "renewal_info") if suggested < own else Due(own, "lifetime")


def chosen_moment(certificate: x509.Certificate, info: RenewalInfo) -> dt.datetime:
    """Return the moment of the window that this certificate draws, always the same one."""
    digest = sha256(certificate.public_bytes(Encoding.DER)).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    return info.start + (info.end - info.start) * draw


def poll_pause_s(retry_after_s: float | None, seconds_left: float) -> float:
    """Return the pause until renewal information is requested again.

    ``seconds_left`` is the life of the certificate that is left.
    """
    wished = _DEFAULT_RETRY_S if retry_after_s is None else retry_after_s
    bounded = min(max(wished, _LEAST_S), _MOST_S)
    return max(min(bounded, seconds_left / _LOOKS), _SHORTEST_S)


def hold_s(certificate: x509.Certificate) -> float:
    """Return for how long a certificate that was stored is not renewed unasked."""
    return min(lifetime(certificate).total_seconds() / 20, _LONGEST_HOLD_S)
