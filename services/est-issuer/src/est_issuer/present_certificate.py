"""The present certificate of a Certificate of cert-manager, for renewal by re-enrollment.

RFC 7030 section 4.2.2: the client authenticates by the certificate it renews, and subject and
subject alternative names stay the same. The key of that certificate is in the Secret that the
Certificate names; the request itself may have the same key or a new one. Where the present
certificate does not fit, the request is a first enrollment.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from cryptography import x509

from est_issuer.api import KubernetesAPI
from est_issuer.credentials import Certificate, References, checked_certificate
from est_issuer.errors import APIRefused, IssuerUnusable, ObjectMissing
from est_issuer.kinds import CERTIFICATES, Key
from est_issuer.requests import Request, san_of
from estclient.est.trust_anchors import is_valid
from estcore.pki.parsers import READING_ERRORS

_FORBIDDEN = 403
ROLE = "est-issuer-reenroll"
"""The ClusterRole that lets the controller read Certificates and Secrets where it is bound."""


class PresentCertificates:
    """Reads present certificates with their keys."""

    def __init__(self, api: KubernetesAPI) -> None:
        self._api = api

    async def of(
        self, found: dict[str, Any], request: Request, *, now: dt.datetime
    ) -> Certificate | None:
        """Return the certificate that a CertificateRequest renews; None for a first enrollment.

        Raises:
            IssuerUnusable: the Certificate or its Secret may not be read.
            APIRefused, APIUnavailable: the Kubernetes API.
        """
        if request.certificate_name is None:
            return None
        namespace = found["metadata"]["namespace"]
        try:
            owner = await self._api.get(CERTIFICATES, Key(namespace, request.certificate_name))
        except ObjectMissing:
            return None
        except APIRefused as exc:
            raise _forbidden(exc, namespace, "Certificates") from exc
        # The annotation is the requester's word: the Certificate must ask the same issuer.
        if (owner.get("spec") or {}).get("issuerRef") != found["spec"].get("issuerRef"):
            return None
        try:
            chain, key = await References(self._api, namespace).secret(
                owner["spec"]["secretName"], "tls.crt", "tls.key"
            )
        except IssuerUnusable as exc:
            if exc.condition == "Forbidden":
                raise _forbidden(exc, namespace, "Secrets") from exc
            return None
        present = Certificate(chain, key)
        return present if fits(present, request, now=now) else None


def fits(present: Certificate, request: Request, *, now: dt.datetime) -> bool:
    """Return whether a certificate may renew itself by a request: its names, time and key fit."""
    try:
        checked_certificate(present, "of the Certificate")
        certificate = x509.load_pem_x509_certificates(present.chain)[0]
        return (
            is_valid(certificate, now)
            and certificate.subject == request.csr.subject
            and san_of(certificate) == san_of(request.csr)
        )
    except READING_ERRORS:
        return False


def _forbidden(exc: Exception, namespace: str, what: str) -> Exception:
    if isinstance(exc, APIRefused) and exc.status != _FORBIDDEN:
        return exc
    return IssuerUnusable(
        "Forbidden",
        f"renewal: Reenroll needs {what} in namespace {namespace}: bind the ClusterRole {ROLE} to "
        "est-issuer there, or set renewal: Enroll",
    )
