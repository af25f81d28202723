"""One HTTP exchange: what is known about it while it is answered, and as it is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from est_frontend.auth.authenticator import Authenticated
from est_frontend.auth.client_certificates import serial_of
from est_frontend.headers import header
from est_frontend.tls.channel_binding import Linked
from est_frontend.tls.connection import ClientConnection
from estcore.est.transfer import WrittenForm, written_form
from estcore.messages.enrollment import MAX_AGENT, MAX_CLIENT_ID, Source
from estcore.messages.envelope import without_none
from estcore.messages.text import plain_text
from estcore.pki.csr import CertificationRequest
from estcore.policy.labels import Label
from estcore.runtime.sockets import address_of
from estcore.runtime.tracing import trace_id

_SUBJECT_LIMIT = 2048


@dataclass
class Exchange:
    """What is known about one HTTP exchange while it is answered."""

    request: web.BaseRequest
    correlation_id: str
    connection: ClientConnection
    operation: str = "none"
    label_name: str = "none"
    label: Label | None = None
    who: Authenticated | None = None
    csr: CertificationRequest | None = None
    subject: str | None = None
    """Of a request for a generated key, before there is a CSR."""
    request_id: str | None = None
    traceparent: str | None = None
    linked: Linked | None = None
    retry_after_s: int | None = None
    key_capabilities: bytes | None = None
    """SMIMECapabilities of a request whose key is sealed for the presented certificate."""
    fetched_serial: str | None = None
    """Of the certificate that ca-signer had renewed by itself, lower-case hexadecimal."""
    issued: bool = False
    """ca-signer issued a certificate for this very request, and put that on record."""

    @property
    def peer(self) -> str:
        """Address of the client."""
        address = (
            self.request.transport.get_extra_info("peername") if self.request.transport else None
        )
        return address_of(address)

    @property
    def agent(self) -> str | None:
        """What the client calls itself, cut to what a record holds."""
        return header(self.request, "User-Agent", MAX_AGENT) or None

    @property
    def client_id(self) -> str | None:
        """The correlation id that the client chose, cut to what a record holds."""
        return header(self.request, "X-Correlation-ID", MAX_CLIENT_ID) or None

    def written_form(self, label: Label) -> WrittenForm:
        """How base64 is written for this client on the label."""
        return written_form(label.response_base64, self.agent)

    def source(self) -> Source:
        """Where the request comes from, for the signer."""
        cipher = self.connection.cipher()
        return Source(
            peer=self.peer,
            tls_version=self.connection.version(),
            tls_cipher=cipher[0] if cipher else None,
            user_agent=self.agent,
            client_correlation_id=self.client_id,
        )

    def parts(self) -> dict[str, object]:
        """The parts of an audit record that come from the exchange; only what is known."""
        who, csr = self.who, self.csr
        subject = csr.subject_text if csr else self.subject
        presented = self.connection.peer()
        return {
            "correlation_id": self.correlation_id,
            "trace_id": trace_id(self.traceparent),
            "actor": without_none(
                type="service",
                subject=who.principal.key if who else None,
                auth_method=who.principal.method if who else None,
                certificate_serial=serial_of(presented[0]) if presented else None,
            ),
            "origin": without_none(
                peer=self.peer,
                tls_version=self.connection.version(),
                user_agent=self.agent,
                client_correlation_id=self.client_id,
            ),
            "target": without_none(
                label=self.label_name,
                request_id=self.request_id,
                subject=plain_text(subject, _SUBJECT_LIMIT) if subject is not None else None,
                csr_sha256=csr.sha256.hex() if csr else None,
                spki_sha256=csr.spki_sha256.hex() if csr else None,
            ),
        }
