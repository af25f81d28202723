"""Base64 bodies of EST in both directions (RFC 7030 section 3.2.4, RFC 8951 section 3)."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from estcore.errors import MalformedRequest
from estcore.pki.pem import pem_blocks

WrittenForm = Literal["single-line", "wrapped"]
"""How base64 is written: without line breaks, or in lines of 64 columns."""
Base64Form = Literal["auto", WrittenForm]
"""What a label is configured to write; ``auto`` chooses by client."""
_WRAPPED_FOR = "libest"
_PIECE = 1024
_WIDTH = 64
_SPACE = b" \t\r\n"
_PEM_BEGIN = b"-----BEGIN"
_CSR_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_SEQUENCE = b"\x30"


def decode_request(body: bytes, *, max_der_bytes: int, lenient: bool = False) -> bytes:
    """Return the DER inside an EST request body.

    Tolerates white space anywhere in the base64 and any Content-Transfer-Encoding
    (RFC 8951 section 3.1). ``lenient`` takes PEM and raw DER too, which clients in the field
    send; in PEM the one CSR, whatever stands around it (RFC 7468 section 2). Does not look inside
    the DER.

    Raises:
        MalformedRequest: empty, PEM, not base64, or larger than ``max_der_bytes``.
    """
    if lenient and body[:1] == _SEQUENCE:
        return _bounded(body, max_der_bytes)
    if _PEM_BEGIN in body:
        if not lenient:
            raise MalformedRequest(
                "send base64 of DER, not PEM (the label has lenient_bodies: false)",
                code="body.pem",
            )
        return _bounded(_in_pem(body), max_der_bytes)
    compact = body.translate(None, _SPACE)
    if not compact:
        raise MalformedRequest("the body is empty", code="body.empty")
    try:
        der = binascii.a2b_base64(compact, strict_mode=True)
    except binascii.Error as exc:
        raise MalformedRequest("the body is not base64", code="body.not_base64") from exc
    return _bounded(der, max_der_bytes)


def _bounded(der: bytes, limit: int) -> bytes:
    if len(der) > limit:
        raise MalformedRequest(f"more than {limit} bytes of DER", code="body.too_large")
    return der


def _in_pem(body: bytes) -> bytes:
    """Return the DER of the one CSR in a PEM text."""
    try:
        requests = [b for b in pem_blocks(body) if b.label in _CSR_LABELS]
        if len(requests) == 1:
            return requests[0].der
    except MalformedRequest as exc:
        code = "body.not_base64" if exc.code == "pem.not_base64" else "body.pem"
        raise MalformedRequest(exc.reason, code=code) from exc
    found = "two or more certification requests" if requests else "no certification request"
    raise MalformedRequest(f"the PEM text holds {found}; send one", code="body.pem")


def written_form(configured: Base64Form, user_agent: str | None) -> WrittenForm:
    """Return how to write base64 for a client, by its User-Agent where ``auto`` is configured.

    libest cannot read a single line of more than 1,000 characters. strongSwan to 5.9.10 and
    clients with a strict decoder cannot read line breaks. All other clients read both.
    """
    if configured != "auto":
        return configured
    agent = (user_agent or "").lstrip().lower()
    return "wrapped" if agent.startswith(_WRAPPED_FOR) else "single-line"


def encode_response(der: bytes, form: WrittenForm = "single-line") -> bytes:
    """Return a response body: base64 in the form, with one final line feed.

    A single line of a multiple of 1,024 characters gets none: BouncyCastle to 1.82 reads such
    pieces, does not look for what follows the last one, and fails for the line feed that is left.
    """
    text = base64.b64encode(der)
    if form == "single-line":
        return text if len(text) % _PIECE == 0 else text + b"\n"
    return b"\n".join(text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH)) + b"\n"
