"""EnrollmentId: what makes two requests the same enrollment.

It is who asks for what with which key, not the bytes of the CSR: a channel-bound CSR changes
with every TLS session and still is the same enrollment (RFC 7030 section 4.2.3).
"""

from __future__ import annotations

from estcore.ids import digest
from estcore.pki.csr import CertificationRequest


def enrollment_id(
    request: CertificationRequest,
    *,
    operation: str,
    tenant: str,
    label: str,
    principal: str,
    predecessor: bytes = b"",
) -> bytes:
    """Return the 32 octets that name this enrollment.

    ``principal`` is the principal's key; ``predecessor`` the SHA-256 of the certificate being
    renewed, empty for a first enrollment. A key the server makes is no part of the enrollment.
    """
    return digest(
        (
            operation.encode(),
            tenant.encode(),
            label.encode(),
            principal.encode(),
            predecessor,
            b"" if operation == "serverkeygen" else request.spki,
            request.subject_canonical.encode(),
            "\n".join(request.san).encode(),
            request.requested,
        )
    )
