"""An EST client (RFC 7030), with our rotation-ack and renewal-info (RFC 9773).

Every request is a TLS connection of its own, polls after 202 too: a server may then see the
client's present certificate and bind a request to its connection. Several base URLs are tried
in turn; repeating an enrollment is safe, since the server gives the same key the same
certificate.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import (
    AnswerInvalid,
    RenewalInfoExpired,
    RenewalInfoUnknown,
    ServerAway,
    ServerRefused,
    StillPending,
)
from estclient.est.curl_transport import TokenCredential, curl_request
from estclient.est.dpop import DPoPKey
from estclient.est.proof_of_use import CONTENT_TYPE as JOSE
from estclient.est.response_body import certificates_in, decoded, read_limited
from estcore.clock import Clock, SystemClock, monotonic_s
from estcore.errors import ConfigurationError, MalformedRequest, in_words
from estcore.est.csrattrs import CSRDemands, parse_csrattrs
from estcore.est.keygen_response import KeygenResponse, parse_keygen_response
from estcore.est.paths import PREFIX
from estcore.est.renewal_info import CONTENT_TYPE as JSON
from estcore.est.renewal_info import OPERATION as RENEWAL_INFO
from estcore.est.renewal_info import RenewalInfo, cert_id
from estcore.est.retry_after import retry_after_s
from estcore.pki.keys import spki_der

_PKCS10 = "application/pkcs10"
_NO_RENEWAL_INFO = {404: RenewalInfoUnknown, 410: RenewalInfoExpired}
_NOTHING_DEMANDED = frozenset({404, 501})
_LATER = frozenset({429, 500, 502, 503, 504})
_MAX_BODY = 1 << 20
_TEXT_LIMIT = 500
_DEFAULT_RETRY_S = 5.0
_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True)
class Limits:
    """How long a client waits and how often it tries."""

    timeout_s: float = 15
    attempts: int = 4
    pending_limit_s: float = 300
    longest_pause_s: float = 30

    def pause_s(
        self,
        attempt: int,
        wished_s: float,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> float | None:
        """Return the pause after an attempt, from 0, that failed; None where it was the last.

        What the server wished comes first; then half to whole of a doubling pause, so that clients
        refused together do not return together. ``spread`` returns a number between two.
        """
        if wished_s > self.longest_pause_s or attempt >= self.attempts - 1:
            return None
        doubled: float = min(_FIRST_PAUSE_S * 2**attempt, self.longest_pause_s)
        return wished_s + doubled * spread(0.5, 1)

    def poll_s(self, wished_s: float | None) -> float:
        """Return the pause after 202 (RFC 7030 section 4.2.3)."""
        return wished_s if wished_s is not None else _DEFAULT_RETRY_S


@dataclass(frozen=True)
class Enrolled:
    """A certificate the server issued, and the correlation id of the request that got it."""

    certificate: x509.Certificate
    correlation_id: str | None

    @property
    def der(self) -> bytes:
        """The certificate as DER."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, repr=False)
class Renewed:
    """What the server renewed by itself; ``sealed_key`` is EnvelopedData where it made the key."""

    certificate: x509.Certificate
    sealed_key: bytes | None
    correlation_id: str | None


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    retry_after_s: float | None
    correlation_id: str | None
    content_type: str
    error_code: str
    new_nonce: bool = False

    @property
    def reason(self) -> str:
        """What the server says of a refusal; a challenge has no text, but a code in a header."""
        text = _text(self.body)
        return text or (f"[{self.error_code}]" if self.error_code else "")


@dataclass(frozen=True)
class _Request:
    operation: str
    method: str = "GET"
    body: bytes | None = None
    content_type: str | None = None
    accept: str = "application/pkcs7-mime"


class ESTClient:
    """Speaks EST to one or more front ends of a suite.

    Authenticates by client certificate (``credential``: chain file and key file, or a chain file
    whose key is in a PKCS#11 token), by HTTP Basic
    over TLS (``secret``: user and secret) or by an access token (``token``), with proofs of
    ``dpop`` where the token is bound to that key. ``trust`` is a PEM
    file or PEM text with the trust anchors for the server; the system's are
    never used. ``on_date`` receives the Date of every answer, aware UTC.
    """

    def __init__(  # noqa: PLR0913 - one word per way to say who asks
        self,
        base_url: str | Sequence[str],
        *,
        trust: Path | bytes,
        label: str | None = None,
        credential: tuple[Path, Path] | TokenCredential | None = None,
        secret: tuple[str, str] | None = None,
        token: str | None = None,
        dpop: DPoPKey | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
        on_date: Callable[[dt.datetime], None] | None = None,
    ) -> None:
        self._urls = [base_url] if isinstance(base_url, str) else list(base_url)
        self._prefix = f"{PREFIX}/{label}" if label else PREFIX
        self._by_token = credential if isinstance(credential, TokenCredential) else None
        self._trust = trust
        files = None if isinstance(credential, TokenCredential) else credential
        self._context = tls_context(trust, files)
        self._authorization = _basic(*secret) if secret else None
        if token is not None:
            self._authorization = f"{'Bearer' if dpop is None else 'DPoP'} {token}"
        self._token, self._dpop, self._on_date = token, dpop, on_date
        self._limits = limits or Limits()
        self._timeout = aiohttp.ClientTimeout(total=self._limits.timeout_s)
        self._clock = clock or SystemClock()

    async def cacerts(self) -> list[x509.Certificate]:
        """Return the CA certificates of the label (RFC 7030 section 4.1).

        Raises:
            ServerRefused, ServerAway, AnswerInvalid: see ``estclient.errors``.
        """
        answer = await self._exchange(_Request("cacerts"))
        return certificates_in(answer.body)

    async def simpleenroll(self, csr: bytes | x509.CertificateSigningRequest) -> Enrolled:
        """Return a first certificate for the request (RFC 7030 section 4.2.1).

        Raises:
            ServerRefused, ServerAway, StillPending, AnswerInvalid: see ``estclient.errors``.
        """
        return await self._enroll("simpleenroll", csr)

    async def simplereenroll(self, csr: bytes | x509.CertificateSigningRequest) -> Enrolled:
        """Return a renewed certificate for the request (RFC 7030 section 4.2.2).

        Raises:
            ServerRefused, ServerAway, StillPending, AnswerInvalid: see ``estclient.errors``.
        """
        return await self._enroll("simplereenroll", csr)

    async def csrattrs(self) -> CSRDemands:
        """Return what a CSR must have here; nothing in particular where the server says nothing.

        RFC 7030 section 4.5 and RFC 9908; ``estcore.est.csr_demands.csr_builder`` makes the CSR.

        Raises:
            ServerRefused, ServerAway, AnswerInvalid: see ``estclient.errors``.
        """
        try:
            answer = await self._exchange(_Request("csrattrs", accept="application/csrattrs"))
        except ServerRefused as exc:
            if exc.status in _NOTHING_DEMANDED:
                return CSRDemands()
            raise
        if answer.status == 204:  # noqa: PLR2004 - RFC 7030 section 4.5.2
            return CSRDemands()
        try:
            return parse_csrattrs(decoded(answer.body))
        except MalformedRequest as exc:
            raise AnswerInvalid(exc.reason) from exc

    async def serverkeygen(self, csr: bytes | x509.CertificateSigningRequest) -> KeygenResponse:
        """Return a key made by the server, and its certificate (RFC 7030 section 4.4).

        Raises:
            ServerRefused, ServerAway, StillPending, AnswerInvalid: see ``estclient.errors``.
        """
        der = csr if isinstance(csr, bytes) else csr.public_bytes(Encoding.DER)
        body = base64.b64encode(der) + b"\n"
        request = _Request("serverkeygen", "POST", body, _PKCS10, "multipart/mixed")
        answer = await self._patiently(request)
        try:
            return parse_keygen_response(answer.content_type, answer.body)
        except MalformedRequest as exc:
            raise AnswerInvalid(exc.reason) from exc

    async def rotation_ack(self, jws: str) -> None:
        """Send the proof that the service uses its new certificate.

        Raises:
            ServerRefused: the proof was not accepted; 409 when it may be later.
            ServerAway: no server answered.
        """
        request = _Request("rotation-ack", "POST", jws.encode("ascii"), JOSE, "text/plain")
        await self._exchange(request)

    async def prove_use(self) -> None:
        """Prove the use of the new certificate by mutual TLS alone.

        The client's credential is the new certificate and its key: the handshake shows that both
        are in use, and the request has no body.

        Raises:
            ServerRefused: the proof was not accepted; 409 when it may be later.
            ServerAway: no server answered.
        """
        await self._exchange(_Request("rotation-ack", "POST", b"", None, "text/plain"))

    async def renewal_info(self, certificate: x509.Certificate) -> RenewalInfo:
        """Return when a certificate is best renewed (RFC 9773 section 4), and when to ask again.

        The server asks for no authentication, so any client of the suite may ask.

        Raises:
            RenewalInfoUnknown: the server has nothing about the certificate.
            RenewalInfoExpired: the certificate has expired.
            MalformedRequest: the certificate has no authority key identifier.
            ServerRefused, ServerAway, AnswerInvalid: see ``estclient.errors``.
        """
        operation = f"{RENEWAL_INFO}/{cert_id(certificate)}"
        try:
            answer = await self._exchange(_Request(operation, accept=JSON))
        except ServerRefused as exc:
            kind = _NO_RENEWAL_INFO.get(exc.status)
            if kind is None:
                raise
            raise kind(exc.status, exc.text, correlation_id=exc.correlation_id) from exc
        try:
            return RenewalInfo.decode(answer.body, retry_after_s=answer.retry_after_s)
        except MalformedRequest as exc:
            raise AnswerInvalid(exc.reason, code=exc.code) from exc

    async def renewed(self, certificate: x509.Certificate) -> Renewed | None:
        """Return what the server renewed by itself in place of a certificate; None: nothing yet.

        The client's credential is that certificate, or a newer one of the same identity. Names,
        key and chain of what comes back are not checked here.

        Raises:
            MalformedRequest: the certificate has no authority key identifier.
            ServerRefused, ServerAway, StillPending, AnswerInvalid: see ``estclient.errors``.
        """
        answer = await self._patiently(_Request(f"renewed/{cert_id(certificate)}"))
        if answer.status == 204:  # noqa: PLR2004
            return None
        sealed, body = None, answer.body
        if answer.content_type.lower().startswith("multipart/"):
            try:
                response = parse_keygen_response(answer.content_type, answer.body)
            except MalformedRequest as exc:
                raise AnswerInvalid(exc.reason) from exc
            if not response.sealed:
                raise AnswerInvalid("the key is not sealed", code="client.unsealed_key")
            sealed, body = response.key, response.certificate
        found = certificates_in(body)
        if len(found) != 1:
            raise AnswerInvalid("the answer has not one certificate")
        return Renewed(found[0], sealed, answer.correlation_id)

    async def _enroll(
        self, operation: str, csr: bytes | x509.CertificateSigningRequest
    ) -> Enrolled:
        der = csr if isinstance(csr, bytes) else csr.public_bytes(Encoding.DER)
        key = spki_der(x509.load_der_x509_csr(der).public_key())
        request = _Request(operation, "POST", base64.b64encode(der) + b"\n", _PKCS10)
        answer = await self._patiently(request)
        for certificate in certificates_in(answer.body):
            if spki_der(certificate.public_key()) == key:
                return Enrolled(certificate, answer.correlation_id)
        raise AnswerInvalid("no certificate for the requested key", code="client.another_key")

    async def _patiently(self, request: _Request) -> _Answer:
        """Repeat a request while the server says 202 (RFC 7030 section 4.2.3)."""
        until = monotonic_s() + self._limits.pending_limit_s
        while True:
            answer = await self._exchange(request)
            if answer.status != 202:  # noqa: PLR2004
                return answer
            pause = self._limits.poll_s(answer.retry_after_s)
            if monotonic_s() + pause > until:
                raise StillPending(
                    "the request still waits for approval", retry_after_s=answer.retry_after_s
                )
            await asyncio.sleep(max(pause, 0.1))

    async def _exchange(self, request: _Request) -> _Answer:
        """Return the first final answer, trying every URL in turn, several times."""
        problem = ServerAway("no server is configured")
        for attempt in range(self._limits.attempts):
            wished = 0.0
            for url in self._urls:
                try:
                    answer = await self._once(url, request)
                    if answer.status == 401 and answer.new_nonce:  # noqa: PLR2004 - RFC 9449 sec. 9
                        answer = await self._once(url, request)
                except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                    problem = ServerAway(f"{url}: {str(exc) or in_words(exc)}")
                    continue
                if answer.status not in _LATER:
                    return _final(answer)
                text = _text(answer.body)
                wished = max(wished, answer.retry_after_s or 0)
                problem = ServerAway(
                    f"{url} answers {answer.status}: {text}", retry_after_s=wished or None
                )
            pause_s = self._limits.pause_s(attempt, wished)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        raise problem

    async def _once(self, url: str, request: _Request) -> _Answer:
        headers = {"Accept": request.accept}
        if request.content_type:
            headers["Content-Type"] = request.content_type
        if request.content_type == _PKCS10:
            headers["Content-Transfer-Encoding"] = "base64"
        if self._authorization:
            headers["Authorization"] = self._authorization
        target = f"{url.rstrip('/')}{self._prefix}/{request.operation}"
        if self._dpop is not None:
            now = self._clock.now()
            headers["DPoP"] = self._dpop.proof(request.method, target, now=now, token=self._token)
        if self._by_token is not None:
            return await self._by_curl(self._by_token, target, request, headers)
        connector = aiohttp.TCPConnector(ssl=self._context, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session,
            session.request(
                request.method,
                target,
                data=request.body,
                headers=headers,
                allow_redirects=False,
            ) as response,
        ):
            body = await read_limited(response, _MAX_BODY)
            self._note_date(response.headers.get("Date"))
            nonce = response.headers.get("DPoP-Nonce")
            return _Answer(
                response.status,
                body,
                retry_after_s(response.headers.get("Retry-After"), now=self._clock.now()),
                response.headers.get("X-Correlation-ID"),
                response.headers.get("Content-Type", ""),
                _text(response.headers.get("X-Error-Code", "").encode("utf-8", "replace")),
                self._dpop is not None and self._dpop.keep_nonce(target, nonce),
            )

    async def _by_curl(
        self, credential: TokenCredential, url: str, request: _Request, headers: dict[str, str]
    ) -> _Answer:
        trust = self._trust if isinstance(self._trust, bytes) else self._trust.read_bytes()
        answer = await curl_request(
            credential,
            trust,
            method=request.method,
            url=url,
            headers=headers,
            body=request.body,
            timeout_s=self._limits.timeout_s,
            limit=_MAX_BODY,
        )
        self._note_date(answer.headers.get("Date"))
        return _Answer(
            answer.status,
            answer.body,
            retry_after_s(answer.headers.get("Retry-After"), now=self._clock.now()),
            answer.headers.get("X-Correlation-ID"),
            answer.headers.get("Content-Type", ""),
            _text(answer.headers.get("X-Error-Code", "").encode("utf-8", "replace")),
        )

    def _note_date(self, date: str | None) -> None:
        """Report when the server answered; a Date that cannot be read is none."""
        if self._on_date is None or date is None:
            return
        with contextlib.suppress(ValueError, OverflowError):
            moment = parsedate_to_datetime(date)
            self._on_date(moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC))


def tls_context(trust: Path | bytes, credential: tuple[Path, Path] | None) -> ssl.SSLContext:
    """Return the client side of TLS 1.2 and 1.3, trusting only ``trust``.

    Raises:
        ConfigurationError: a file cannot be read, or certificate and key do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if isinstance(trust, bytes):
            context.load_verify_locations(cadata=trust.decode("ascii"))
        else:
            context.load_verify_locations(cafile=trust)
        if credential is not None:
            context.load_cert_chain(*credential)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"TLS files cannot be used: {exc}") from exc
    return context


def _basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode("ascii")


def _final(answer: _Answer) -> _Answer:
    if answer.status in {200, 202, 204}:
        return answer
    raise ServerRefused(answer.status, answer.reason, correlation_id=answer.correlation_id)


def _text(body: bytes) -> str:
    return " ".join(body[:_TEXT_LIMIT].decode("utf-8", "replace").split())
