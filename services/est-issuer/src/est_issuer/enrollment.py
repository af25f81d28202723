"""One attempt to get a certificate for a request from the EST server of an issuer.

By ``/simplereenroll`` with the present certificate where there is one and the issuer says so, else
by ``/simpleenroll`` with the credential of the issuer. The CA certificates are fetched again where
the certificate leads to none that is known: the server may have changed its issuing CA.
"""

from __future__ import annotations

from dataclasses import replace

from cryptography import x509

from est_issuer.answers import Issued, issued
from est_issuer.credentials import Certificate
from est_issuer.issuers import UsableIssuer
from est_issuer.metrics import ENROLLMENT_S
from est_issuer.requests import Request
from estclient.errors import BundleInvalid
from estclient.est.client import ESTClient
from estcore.clock import Clock

ENROLL, REENROLL = "simpleenroll", "simplereenroll"


async def enroll(
    issuer: UsableIssuer,
    request: Request,
    present: Certificate | None,
    *,
    timeout_s: float,
    clock: Clock,
) -> Issued:
    """Send a request once and check the certificate.

    Raises:
        ESTClientError: see ``est_issuer.answers``.
        IssuerUnusable: the credential cannot be used for TLS.
    """
    connection = issuer.connection
    if present is not None:
        connection = replace(connection, basic=None, token=None, certificate=present)
    client = connection.client(timeout_s)
    with ENROLLMENT_S.labels(REENROLL if present is not None else ENROLL).time():
        if present is not None:
            enrolled = await client.simplereenroll(request.der)
        else:
            enrolled = await client.simpleenroll(request.der)
    certificate, now = enrolled.certificate, clock.now()
    try:
        return issued(request, certificate, issuer.authorities, now=now)
    except BundleInvalid:
        authorities = await _fetched(client, issuer)
        return issued(request, certificate, authorities, now=now)


async def _fetched(client: ESTClient, issuer: UsableIssuer) -> list[x509.Certificate]:
    anchors = x509.load_pem_x509_certificates(issuer.connection.trust)
    return [*await client.cacerts(), *anchors]
