"""Bodies of an EST server's answers: bounded, base64 or DER, certificates that can be read."""

from __future__ import annotations

import binascii

import aiohttp
from cryptography import x509

from estclient.errors import AnswerInvalid
from estclient.est.trust_anchors import UNREADABLE, check_readable
from estcore.errors import MalformedRequest
from estcore.est.certs_only import read_certs_only


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the whole body, however it is cut into pieces.

    Raises:
        AnswerInvalid: more than ``limit`` bytes.
    """
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise AnswerInvalid(f"the answer has more than {limit} bytes")
    return b"".join(parts)


def decoded(body: bytes) -> bytes:
    """Read base64 or plain DER; the content type is not insisted on."""
    try:
        return binascii.a2b_base64(body) if body[:1] != b"\x30" else body
    except binascii.Error as exc:
        raise AnswerInvalid("the answer is not base64") from exc


def certificates_in(body: bytes) -> list[x509.Certificate]:
    """Return the certificates of a certs-only answer, each readable.

    Raises:
        AnswerInvalid: it is none, or a certificate in it cannot be read.
    """
    try:
        certificates = [x509.load_der_x509_certificate(c) for c in read_certs_only(decoded(body))]
        for certificate in certificates:
            check_readable(certificate)
    except MalformedRequest as exc:
        raise AnswerInvalid("the answer holds no certificates") from exc
    except UNREADABLE as exc:
        raise AnswerInvalid(f"the answer holds a certificate that cannot be read: {exc}") from exc
    return certificates
