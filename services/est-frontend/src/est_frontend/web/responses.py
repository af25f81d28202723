"""Answers as bytes on the wire, within what real clients can read (conformance section P).

At most twelve header lines and 1,000 bytes of header, Content-Length always, one final LF,
errors as one line of text/plain (a challenge to a client without credentials: no body). One
place maps errors to HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from multidict import CIMultiDict

from estcore.errors import (
    Conflict,
    ESTSuiteError,
    IdentityMismatch,
    InvalidCSR,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    ProfileViolation,
    RequestRejected,
    Unavailable,
    WeakKey,
)
from estcore.est.keygen_response import CONTENT_TYPE as KEYGEN
from estcore.est.renewal_info import CONTENT_TYPE as RENEWAL_INFO
from estcore.est.renewal_info import RenewalInfo

CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
CACERTS = "application/pkcs7-mime"
CSRATTRS = "application/csrattrs"
_TEXT = "text/plain; charset=utf-8"
SERVER = "est"

STATUS: dict[type[ESTSuiteError], int] = {
    RequestRejected: 400,
    MalformedRequest: 400,
    InvalidCSR: 400,
    WeakKey: 400,
    ProfileViolation: 400,
    NotAuthenticated: 401,
    NotAuthorized: 403,
    IdentityMismatch: 403,
    Conflict: 409,
    Unavailable: 503,
}
"""HTTP status by error class; the nearest class in the tree counts, anything else is 500."""

SPECIAL = {
    "body.too_large": 413,
    "request.media_type": 415,
    "request.wrong_host": 421,
    "request.method": 405,
    "request.not_found": 404,
    "renewal_info.unknown": 404,
    "renewal_info.expired": 410,
    "request.not_implemented": 501,
    "request.expect": 417,
    "request.given_up": 500,
    "request.head_too_large": 431,
    "request.timeout": 408,
    "rate.limited": 429,
    "auth.backoff": 429,
}


def status_of(error: ESTSuiteError) -> int:
    """Return the HTTP status for an error."""
    special = SPECIAL.get(error.code)
    if special is not None:
        return special
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return 500


def pkcs7(body: bytes, content_type: str, correlation_id: str) -> web.Response:
    """Return a certs-only answer. CTE stays for BouncyCastle and libest (B11)."""
    return web.Response(
        body=body,
        headers={
            "Content-Type": content_type,
            "Content-Transfer-Encoding": "base64",
            "X-Correlation-ID": correlation_id,
            "Server": SERVER,
        },
    )


def csrattrs(body: bytes, correlation_id: str) -> web.Response:
    """Return the attributes a CSR must have (RFC 7030 section 4.5.2)."""
    return pkcs7(body, CSRATTRS, correlation_id)


def generated(body: bytes, correlation_id: str) -> web.Response:
    """Return a generated key and its certificate (RFC 7030 section 4.4.2)."""
    return web.Response(
        body=body,
        headers={
            "Content-Type": KEYGEN,
            "X-Correlation-ID": correlation_id,
            "Server": SERVER,
        },
    )


def pending(retry_after_s: int, correlation_id: str) -> web.Response:
    """Return 202: the enrollment goes on; ask again after that many seconds."""
    return web.Response(
        status=202,
        body=b"the request is being processed, repeat it later\n",
        headers={
            "Content-Type": _TEXT,
            "Retry-After": str(retry_after_s),
            "X-Correlation-ID": correlation_id,
            "Server": SERVER,
        },
    )


def renewal_info(info: RenewalInfo, correlation_id: str) -> web.Response:
    """Return when a certificate is best renewed (RFC 9773 section 4.2)."""
    return web.Response(
        body=info.encode(),
        headers={
            "Content-Type": RENEWAL_INFO,
            "Retry-After": f"{info.retry_after_s or 0:.0f}",
            "X-Correlation-ID": correlation_id,
            "Server": SERVER,
        },
    )


def empty(correlation_id: str) -> web.Response:
    """Return 204."""
    return web.Response(status=204, headers={"X-Correlation-ID": correlation_id, "Server": SERVER})


def failure(
    error: ESTSuiteError,
    correlation_id: str,
    *,
    retry_after_s: int | None = None,
    allow: str | None = None,
    challenges: Sequence[str] = (),
) -> web.Response:
    """Return an error: one line a person can act on, and its stable code, here and in a header.

    The first answer to a client that sent no credentials has no body: BouncyCastle to 1.82
    closes a challenge without reading it, and then takes the unread body for a failure.
    """
    status = status_of(error)
    text = "internal error" if status == 500 else error.reason  # noqa: PLR2004
    headers = CIMultiDict(
        {
            "Content-Type": _TEXT,
            "X-Correlation-ID": correlation_id,
            "X-Error-Code": error.code,
            "Server": SERVER,
        }
    )
    for challenge in challenges:
        headers.add("WWW-Authenticate", challenge)
    if retry_after_s is not None and status in {429, 503}:
        headers["Retry-After"] = str(retry_after_s)
    if allow is not None:
        headers["Allow"] = allow
    ends = status in {408, 413, 431} or error.code == "request.malformed"
    if ends:
        headers["Connection"] = "close"
    challenged = bool(challenges) and error.code == NotAuthenticated.default_code
    body = b"" if challenged else f"{text} [{error.code}]\n".encode()
    response = web.Response(status=status, body=body, headers=headers)
    if ends:
        response.force_close()
    return response
