"""PodCertificateRequests (certificates.k8s.io/v1beta1): what is asked for, and the answers (pure).

- No approver decides; a request is open until it has the condition Issued, Denied or Failed, of
  which it gets one, once. Nothing else may be in its status.
- The kubelet sends an empty PKCS #10 request: the names are the EST server's word. One that names
  anything is refused, since these names were not checked.
- The API server takes a certificate of at least an hour and at most ``maxExpirationSeconds``, whose
  notBefore is within five minutes of now, and a ``beginRefreshAt`` ten minutes from both ends.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from cryptography import x509

from est_issuer import conditions
from est_issuer.answers import Issued, Refused, UnfitCertificate
from est_issuer.conditions import conditions_of, rfc3339
from est_issuer.durations import shown
from est_issuer.errors import InvalidRequest
from est_issuer.requests import Request, Step, parse_csr

ANNOTATIONS_CODE = "issuer.annotations"
_FORBIDDEN = 403
_KEY_CODES = frozenset({"profile.key_algorithm", "key.type", "key.curve", "key.size"})
"""Codes of this suite that a key of a different kind would not get."""
_SHORTEST = dt.timedelta(hours=1)
_DEFAULT_LONGEST_S = 86400
_NEAR = dt.timedelta(minutes=5)
_NUMERATOR, _DENOMINATOR = 2, 3
"""Renewal is due when two thirds of the lifetime are over, as everywhere in the suite."""


def next_pod_step(found: dict[str, Any]) -> Step:
    """Return what is to be done with a PodCertificateRequest of ours."""
    if found["metadata"].get("deletionTimestamp") or conditions_of(found):
        return "ignore"
    return "issue"


def read_pod_request(found: dict[str, Any]) -> Request:
    """Return what a PodCertificateRequest asks for.

    Raises:
        InvalidRequest: it has annotations, no PKCS #10 request, or one that is not empty.
    """
    spec = found["spec"]
    if unknown := sorted(spec.get("unverifiedUserAnnotations") or {}):
        raise InvalidRequest(
            f"userAnnotations: {', '.join(unknown)[:200]}: no key is known here; remove them",
            code=ANNOTATIONS_CODE,
        )
    text = spec.get("stubPKCS10Request")
    if not text:
        raise InvalidRequest(
            "there is no stubPKCS10Request, which EST needs: use a kubelet of Kubernetes 1.36"
        )
    csr = parse_csr(text, "spec.stubPKCS10Request")
    if list(csr.subject) or len(csr.attributes):
        raise InvalidRequest("spec.stubPKCS10Request is not empty: the EST server decides names")
    return Request(csr, (), _longest(spec))


def require_fit(found: dict[str, Any], certificate: x509.Certificate, *, now: dt.datetime) -> None:
    """Check what the API server demands of the validity of a certificate.

    Raises:
        UnfitCertificate: it would refuse the certificate.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    lifetime, longest = end - begin, _longest(found["spec"])
    if not _SHORTEST <= lifetime <= longest:
        raise UnfitCertificate(
            f"the EST server issued for {shown(lifetime)}; the pod takes 1h to {shown(longest)}: "
            "use an issuer whose profile is as short, or raise maxExpirationSeconds of the volume"
        )
    if abs(begin - now) >= _NEAR:
        raise UnfitCertificate(
            f"the certificate begins at {rfc3339(begin)}, and Kubernetes takes none that begins "
            "more than five minutes from now: set backdate: none in its profile"
        )


def begin_refresh_at(certificate: x509.Certificate) -> dt.datetime:
    """Return when the kubelet is to ask for the next certificate: at two thirds of the lifetime."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    due = begin + (end - begin) * _NUMERATOR / _DENOMINATOR
    return due.replace(microsecond=0)


def answered(outcome: Issued | Refused, *, now: dt.datetime) -> dict[str, Any]:
    """Return the status with the outcome.

    Refused with 403, or for the kind of its key: Denied, since the same request is never granted.
    Everything else that is final is Failed.
    """
    if isinstance(outcome, Issued):
        certificate = outcome.certificate
        return {
            **_status("Issued", "Issued", outcome.message, now),
            "certificateChain": outcome.chain.decode("ascii"),
            "notBefore": rfc3339(certificate.not_valid_before_utc),
            "beginRefreshAt": rfc3339(begin_refresh_at(certificate)),
            "notAfter": rfc3339(certificate.not_valid_after_utc),
        }
    if outcome.server_code in _KEY_CODES:
        return _status(conditions.DENIED, "UnsupportedKeyType", outcome.message, now)
    if outcome.status == _FORBIDDEN:
        return _status(conditions.DENIED, "RefusedByServer", outcome.message, now)
    reason = "UnfitCertificate" if outcome.status is None else "RefusedByServer"
    return _status(conditions.FAILED, reason, outcome.message, now)


def denied(error: InvalidRequest, *, now: dt.datetime) -> dict[str, Any]:
    """Return the status of a request that can never be granted."""
    unknown = error.code == ANNOTATIONS_CODE
    reason = "InvalidUnverifiedUserAnnotations" if unknown else conditions.INVALID
    return _status(conditions.DENIED, reason, error.reason, now)


def _status(kind: str, reason: str, message: str, now: dt.datetime) -> dict[str, Any]:
    new = conditions.condition(kind, True, reason, message)
    return {"conditions": conditions.with_condition([], new, now=now)}


def _longest(spec: dict[str, Any]) -> dt.timedelta:
    return dt.timedelta(seconds=int(spec.get("maxExpirationSeconds") or _DEFAULT_LONGEST_S))
