"""The boundary for text of a request: nothing reads a header or the target another way.

aiohttp decodes octets that are not UTF-8 to lone surrogates, which no message and no log can
hold. What is returned here is printable and bounded (``estcore.messages.text``).
"""

from __future__ import annotations

from aiohttp import web

from estcore.messages.text import plain_text

MAX_CREDENTIAL = 16_384
"""Characters of a header field; every credential longer than its own, lower limit is refused."""


def header(request: web.BaseRequest, name: str, limit: int = MAX_CREDENTIAL) -> str | None:
    """Return the plain text of a header field; None where it is absent."""
    value = request.headers.get(name)
    return None if value is None else plain_text(value, limit)


def target_path(request: web.BaseRequest) -> str:
    """Return the path of the request target as plain text, still percent-encoded."""
    return plain_text(request.raw_path.partition("?")[0], MAX_CREDENTIAL)
