"""The body of a request: media type, size and time limits, Expect: 100-continue."""

from __future__ import annotations

import asyncio

from aiohttp import HttpVersion11, web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from aiohttp.web_protocol import RequestPayloadError

from est_frontend.headers import header
from est_frontend.web.server import NOT_HTTP, UnreadableRequest
from estcore.errors import MalformedRequest


def check_type(request: web.BaseRequest, expected: str) -> None:
    """Check the media type; parameters and case do not count.

    Raises:
        MalformedRequest: another one, or none.
    """
    media_type = (header(request, "Content-Type") or "").partition(";")[0].strip().lower()
    if media_type != expected:
        raise MalformedRequest(f"send Content-Type: {expected}", code="request.media_type")


async def read_body(request: web.BaseRequest, limit: int, *, timeout_s: float) -> bytes:
    """Return the body of a request.

    Raises:
        MalformedRequest: too large, not here in time, or not encoded as HTTP/1.1.
    """
    too_large = MalformedRequest(f"the body has more than {limit} bytes", code="body.too_large")
    if (request.content_length or 0) > limit:
        raise too_large
    _send_100_continue(request)
    try:
        if request.content.is_eof():
            return await request.read()  # it came with the head: there is nothing to wait for
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except TimeoutError:
        raise MalformedRequest("the body did not come in time", code="request.timeout") from None
    except HTTPRequestEntityTooLarge:
        raise too_large from None
    except UnreadableRequest as exc:
        raise exc.error from None
    except RequestPayloadError:
        raise MalformedRequest(NOT_HTTP) from None


def _send_100_continue(request: web.BaseRequest) -> None:
    """Send 100 Continue to a client that waits for it (RFC 9110 section 10.1.1)."""
    wish = header(request, "Expect")
    if wish is None or request.version < HttpVersion11:
        return
    if wish.lower() != "100-continue":
        raise MalformedRequest("only 100-continue can be expected", code="request.expect")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
