"""OCSP over plain HTTP (RFC 6960 appendix A), relayed to ca-signer, which alone can answer.

Answers without nonce are kept until their nextUpdate. One that fits what is known of revoked
serial numbers is sent at once; any other is requested again. While no signer answers, what is kept
is sent, also to who sent a nonce: the client decides whether that is enough (RFC 9654 section
2.1). A good answer about a certificate known to be revoked is never sent.

Every relayed question costs ca-signer a row and a signature, and clients are not authenticated. So
there are bounds: a rate for all, a rate for each source, and a number that waits. Beyond them
the client gets what is kept, or tryLater (RFC 6960 section 2.3).
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections import OrderedDict
from email.utils import format_datetime
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from est_frontend import metrics
from est_frontend.rate_limits import Buckets, TooOften
from est_frontend.settings import CRLListenSettings
from est_frontend.signer_state.cache import SignerState
from estcore.clock import Clock
from estcore.errors import BusUnavailable, MalformedRequest
from estcore.messages.topics import ocsp_topic
from estcore.pki.ocsp import (
    MALFORMED,
    MOST_OCTETS,
    TRY_LATER,
    OCSPAnswer,
    OCSPQuery,
    read_answer,
    read_question,
)
from estcore.runtime.bus import Bus

_PREFIX = b"/ocsp/"
_PATH = re.compile(rb"/ocsp/([a-z0-9-]{1,63})(?:/(.*))?")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_TYPE = re.compile(rb"\r\ncontent-type:[ \t]*application/ocsp-request[ \t;\r]", re.IGNORECASE)
_NOT_STORED = {"Cache-Control": "no-store"}
_ANSWER_WITHIN_S = 3
_KEPT = 20_000

Key = tuple[str, tuple[str, bytes, bytes, int]]


class OCSPRelay:
    """Answers of one process."""

    def __init__(
        self,
        bus: Bus,
        state: SignerState,
        clock: Clock,
        settings: CRLListenSettings,
        *,
        capacity: int = _KEPT,
    ) -> None:
        self._bus = bus
        self._state = state
        self._clock = clock
        self._capacity = capacity
        self._most_waiting = settings.max_ocsp_waiting
        self._waiting = 0
        all_s, source_s = settings.ocsp_per_s, settings.ocsp_source_per_s
        self._rate = Buckets("OCSP relay", rate=all_s, burst=max(1, 2 * all_s))
        self._source_rate = Buckets("address", rate=source_s, burst=max(1, 2 * source_s))
        self._answers: OrderedDict[Key, OCSPAnswer] = OrderedDict()

    @staticmethod
    def is_for(head: bytes) -> bool:
        """Return whether the head of a request asks for something here."""
        return head.partition(b" ")[2].startswith(_PREFIX)

    async def answer(
        self, head: bytes, reader: asyncio.StreamReader, source: str = "unknown"
    ) -> bytes:
        """Return the HTTP response; the body of a POST is read from ``reader``.

        ``source`` is where the client is, for the rate of one source.
        """
        method, _, rest = head.partition(b" ")
        match = _PATH.fullmatch(rest.partition(b" ")[0])
        issuer_id = match[1].decode() if match else ""
        if match is None or not self._state.has({issuer_id}):
            return response("404 Not Found", {})
        if method == b"GET":
            request = _in_path(match[2] or b"")
            return _sent(*await self._ask(issuer_id, request, source), self._clock)
        if method != b"POST":
            return response("405 Method Not Allowed", {"Allow": "GET, POST"})
        length = _LENGTH.search(head)
        refused = _refused_body(head, length)
        if length is None or refused is not None:
            return response(refused or "411 Length Required", {})
        octets, _ = await self._ask(issuer_id, await reader.readexactly(int(length[1])), source)
        return _sent(octets, None, self._clock)

    async def _ask(
        self, issuer_id: str, request: bytes, source: str
    ) -> tuple[bytes, OCSPAnswer | None]:
        """Return the response, and the same read where HTTP caches may keep it."""
        try:
            question = read_question(request)
        except MalformedRequest:
            return _counted("malformed", MALFORMED), None
        key = (issuer_id, question.certificate_id)
        stored = self._fresh(key)
        agreed = stored is not None and stored.revoked == self._is_revoked(issuer_id, question)
        if stored is not None and agreed and question.nonce is None:
            return _counted("kept", stored.octets), stored
        octets = await self._relay(issuer_id, request) if self._admits(source) else TRY_LATER
        if octets == TRY_LATER and stored is not None and (agreed or stored.revoked):
            return _counted("outlived", stored.octets), None if question.nonce else stored
        answer = read_answer(octets)
        if answer is None or answer.nonce or answer.unknown:
            # Responses about unknown certificates must not displace those about issued ones.
            return _counted("try_later" if octets == TRY_LATER else "asked", octets), None
        self._keep(key, answer)
        return _counted("asked", octets), answer

    def _admits(self, source: str) -> bool:
        """Return whether one more question may be relayed now."""
        try:
            if self._waiting >= self._most_waiting:
                raise TooOften("too many questions wait", 1)
            self._source_rate.take(source)
            self._rate.take("all")
        except TooOften:
            metrics.OCSP_LIMITED.inc()
            return False
        return True

    async def _relay(self, issuer_id: str, request: bytes) -> bytes:
        if not self._bus.connected:
            return TRY_LATER
        self._waiting += 1
        try:
            return await self._bus.request(
                ocsp_topic(issuer_id),
                request,
                answered_by=("ca-signer",),
                timeout_s=_ANSWER_WITHIN_S,
            )
        except BusUnavailable:
            return TRY_LATER
        finally:
            self._waiting -= 1

    def _is_revoked(self, issuer_id: str, question: OCSPQuery) -> bool:
        return self._state.is_revoked(issuer_id, question.serial_number)

    def _fresh(self, key: Key) -> OCSPAnswer | None:
        answer = self._answers.get(key)
        if answer is None:
            return None
        if answer.next_update <= self._clock.now():
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer

    def _keep(self, key: Key, answer: OCSPAnswer) -> None:
        self._answers[key] = answer
        self._answers.move_to_end(key)
        while len(self._answers) > self._capacity:
            self._answers.popitem(last=False)


def _refused_body(head: bytes, length: re.Match[bytes] | None) -> str | None:
    if _TYPE.search(head) is None:
        return "415 Unsupported Media Type"
    too_long = length is not None and int(length[1]) > MOST_OCTETS
    return "413 Content Too Large" if too_long else None


def _in_path(text: bytes) -> bytes:
    try:
        return b64decode(unquote_to_bytes(text), validate=True)
    except (Base64Error, ValueError):
        return b""  # no request, which is malformed


def _counted(source: str, octets: bytes) -> bytes:
    metrics.OCSP.labels(source).inc()
    return octets


def _sent(octets: bytes, cacheable: OCSPAnswer | None, clock: Clock) -> bytes:
    headers = {"Content-Type": "application/ocsp-response"}
    if cacheable is None:
        return response("200 OK", headers | _NOT_STORED, octets)
    remaining_s = int((cacheable.next_update - clock.now()).total_seconds())
    headers |= {
        # RFC 5019 section 6.2.
        "Cache-Control": f"max-age={max(0, remaining_s)}, public, no-transform, must-revalidate",
        "Last-Modified": format_datetime(cacheable.this_update, usegmt=True),
        "Expires": format_datetime(cacheable.next_update, usegmt=True),
        "ETag": f'"{sha256(octets).hexdigest()}"',
    }
    return response("200 OK", headers, octets)


def response(
    status: str, headers: dict[str, str], body: bytes = b"", *, head: bool = False
) -> bytes:
    """Return a whole HTTP response after which the connection ends."""
    head_fields = {**headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head_fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + (b"" if head else body)
