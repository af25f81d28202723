"""Bootstrap of trust (RFC 7030 section 4.1.1): download a root, compare it, then pin it.

Nothing but ``/cacerts`` is requested over the unauthenticated connection. After the root was
compared out of band, it is requested once more over a connection that the root authenticates, and
must be the same: then the server we talk to is one of that root.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.errors import AnswerInvalid, ServerAway, ServerRefused
from estclient.est.client import ESTClient
from estclient.est.response_body import certificates_in, read_limited
from estclient.est.trust_anchors import is_root
from estcore.errors import ConfigurationError
from estcore.est.paths import PREFIX

_TIMEOUT_S = 15
_LIMIT = 1 << 20
_OK = 200


@dataclass(frozen=True)
class Found:
    """What an unknown server showed: its own certificate and the root it names."""

    server: x509.Certificate
    root: x509.Certificate

    @property
    def server_fingerprint(self) -> str:
        """SHA-256 in hexadecimal."""
        return _fingerprint(self.server)

    @property
    def root_fingerprint(self) -> str:
        """SHA-256 in hexadecimal."""
        return _fingerprint(self.root)


async def fetch(url: str, label: str | None, fingerprint: str | None = None) -> Found:
    """Return the certificates the server presents, not trusted yet.

    During a rollover it shows two roots: the one with this fingerprint is meant, or the first.

    Raises:
        ConfigurationError: not an https URL.
        ServerAway, ServerRefused, AnswerInvalid: no usable answer.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        raise ConfigurationError(f"{url} is not an https URL")
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    path = f"{PREFIX}/{label}/cacerts" if label else f"{PREFIX}/cacerts"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            server = await _server_certificate(parts.hostname, parts.port or 443, blind)
            body = await _body(url.rstrip("/") + path, blind)
    except (TimeoutError, OSError, aiohttp.ClientError) as exc:
        raise ServerAway(f"no answer from {url}") from exc
    roots = [c for c in certificates_in(body) if is_root(c)]
    if not roots:
        raise AnswerInvalid("/cacerts has no root")
    meant = [root for root in roots if _fingerprint(root) == fingerprint]
    return Found(server, (meant or roots)[0])


async def pin(presented: Found, url: str, label: str | None, out: Path) -> None:
    """Request the CA certificates again, authenticated by the root; then pin the root.

    Raises:
        ServerAway, ServerRefused, AnswerInvalid: the server is not one of that root.
        ConfigurationError: the file cannot be written, or is there with another root.
    """
    pem = presented.root.public_bytes(Encoding.PEM)
    again = await ESTClient(url, trust=pem, label=label).cacerts()
    if presented.root not in again:
        raise AnswerInvalid("the server names another root over verified TLS")
    if out.exists() and out.read_bytes() != pem:
        raise ConfigurationError(f"{out} holds another root; remove it first")
    try:
        temporary = out.with_name(f".{out.name}.new")
        temporary.write_bytes(pem)
        temporary.replace(out)
    except OSError as exc:
        raise ConfigurationError(f"cannot write {out}: {exc.strerror}") from exc


async def _server_certificate(host: str, port: int, context: ssl.SSLContext) -> x509.Certificate:
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(True)
        return x509.load_der_x509_certificate(der)
    finally:
        writer.close()


async def _body(url: str, context: ssl.SSLContext) -> bytes:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(url, ssl=context, allow_redirects=False) as answer,
    ):
        body = await read_limited(answer, _LIMIT)
        if answer.status != _OK:
            raise ServerRefused(answer.status, body.decode(errors="replace")[:200])
        return body


def _fingerprint(certificate: x509.Certificate) -> str:
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
