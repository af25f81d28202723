"""Base64 bodies of EST in both directions (RFC 7030 section 3.2.4, RFC 8951 section 3)."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from estcore.errors import MalformedRequest

Base64Form = Literal["auto", "single-line", "wrapped"]
SINGLE_LINE_LIMIT = 1000
"""strongSwan to 5.9.10 cannot read line breaks; libest cannot read a long single line."""
_WIDTH = 64
_SPACE = b" \t\r\n"
_PEM_BEGIN = b"-----BEGIN"


def decode_request(body: bytes, *, max_der_bytes: int) -> bytes:
    """Return the DER inside an EST request body.

    Tolerates white space anywhere in the base64 and whatever Content-Transfer-Encoding said
    (RFC 8951 section 3.1). Does not look inside the DER.

    Raises:
        MalformedRequest: empty, PEM, not base64, or larger than ``max_der_bytes``.
    """
    compact = body.translate(None, _SPACE)
    if not compact:
        raise MalformedRequest("the body is empty", code="body.empty")
    if compact.startswith(_PEM_BEGIN[:10]):
        raise MalformedRequest("send base64 of DER, not PEM", code="body.pem")
    try:
        der = binascii.a2b_base64(compact, strict_mode=True)
    except binascii.Error as exc:
        raise MalformedRequest("the body is not base64", code="body.not_base64") from exc
    if len(der) > max_der_bytes:
        raise MalformedRequest(f"more than {max_der_bytes} bytes of DER", code="body.too_large")
    return der


def encode_response(der: bytes, form: Base64Form = "auto") -> bytes:
    """Return a response body: base64, one line up to 1,000 characters, else 64 columns; one LF."""
    text = base64.b64encode(der)
    if form == "single-line" or (form == "auto" and len(text) <= SINGLE_LINE_LIMIT):
        return text + b"\n"
    return b"\n".join(text[i : i + _WIDTH] for i in range(0, len(text), _WIDTH)) + b"\n"
