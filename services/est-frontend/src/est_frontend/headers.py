"""The boundary for text of a request: nothing reads a header or the target another way.

aiohttp decodes octets that are not UTF-8 to lone surrogates, which no message and no log can
hold. What is returned here is printable and bounded (``estcore.messages.text``).
"""

from __future__ import annotations

from aiohttp import web

from estcore.est.paths import Target, parse_target
from estcore.messages.text import plain_text

MAX_CREDENTIAL = 16_384
"""Characters of a header field; every credential longer than its own, lower limit is refused."""


def header(request: web.BaseRequest, name: str, limit: int = MAX_CREDENTIAL) -> str | None:
    """Return the plain text of a header field; None where it is absent."""
    value = request.headers.get(name)
    return None if value is None else plain_text(value, limit)


def request_target(request: web.BaseRequest) -> Target:
    """Return the request target as plain text, still percent-encoded."""
    return parse_target(plain_text(request.raw_path, MAX_CREDENTIAL))


def authority(request: web.BaseRequest) -> str:
    """Return whom the request is for: of a target in absolute form, else the Host field.

    RFC 9112 section 3.2.2: with a target in absolute form the Host field is ignored.
    """
    target = request_target(request)
    return header(request, "Host") or "" if target.authority is None else target.authority
