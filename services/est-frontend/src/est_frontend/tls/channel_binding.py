"""Is this CSR made in this TLS session? Linking of identity and proof of possession.

RFC 7030 section 3.5: challengePassword holds the base64 of ``tls-unique``. That exists in TLS
1.2 only; in TLS 1.3 the same attribute, or estIdentityLinking of RFC 7894, holds the base64 of
``tls-exporter`` (RFC 9266). What is sent is always checked; a label may demand it.
"""

from __future__ import annotations

import base64
import hmac
from typing import Literal

from est_frontend.tls.connection import ClientConnection
from estcore.errors import NotAuthorized
from estcore.pki.attributes import Attributes, read_challenges
from estcore.policy.labels import Label

Linked = Literal["tls-unique", "tls-exporter"]
_SHORTEST_BINDING_BYTES = 12
"""Of tls-unique in TLS 1.2; tls-exporter has 32 (RFC 9266), other bindings up to 64."""


def check_linking(
    attributes: Attributes, connection: ClientConnection, label: Label
) -> Linked | None:
    """Return how the CSR is bound to the connection; None where it says nothing.

    Raises:
        NotAuthorized: bound to another session, or the label demands a binding.
        InvalidCSR: a challenge that is malformed.
    """
    if label.linking == "off":
        return None
    challenges = read_challenges(attributes)
    sent = [c for c in (challenges.challenge_password, challenges.est_identity_linking) if c]
    if not sent:
        if label.linking == "require":
            raise NotAuthorized(
                "this label needs challengePassword with the binding of the TLS session",
                code="linking.required",
            )
        return None
    bindings = [_binding(value, connection) for value in sent]
    return bindings[0]


def _binding(value: str, connection: ClientConnection) -> Linked:
    unique = connection.tls_unique()
    if unique is not None and _equal(value, unique):
        return "tls-unique"
    exporter = connection.tls_exporter()
    if exporter is not None and _equal(value, exporter):
        return "tls-exporter"
    if not _looks_like_binding(value):
        # RFC 7030 section 3.5 gives the attribute another meaning than PKCS#9 had.
        raise NotAuthorized(
            "challengePassword of the CSR is no binding of a TLS session; leave the challenge "
            "password out of the CSR",
            code="linking.failed",
        )
    if connection.version() == "TLSv1.3":
        raise NotAuthorized(
            "the CSR is not bound to this TLS session: TLS 1.3 has no tls-unique, "
            "use tls-exporter or TLS 1.2",
            code="linking.failed",
        )
    raise NotAuthorized("the CSR is not bound to this TLS session", code="linking.failed")


def _looks_like_binding(value: str) -> bool:
    """Return whether a value is base64 of as many octets as a binding has."""
    try:
        return len(base64.b64decode(value, validate=True)) >= _SHORTEST_BINDING_BYTES
    except ValueError:
        return False


def _equal(value: str, binding: bytes) -> bool:
    return hmac.compare_digest(value.encode(), base64.b64encode(binding))
