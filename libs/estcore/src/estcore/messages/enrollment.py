"""est-frontend to ca-signer and back: the enrollment request and its answer."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from estcore.messages.envelope import DER, Message, Part, Token
from estcore.messages.text import plain_text
from estcore.pki.profile import Priority

Operation = Literal["simpleenroll", "simplereenroll", "serverkeygen"]
Method = Literal["certificate", "secret", "password", "digest", "token", "srp"]


class Principal(Part):
    """Who was authenticated, and how.

    ``name`` is the secret's id for ``secret``, the user for ``password``, ``digest`` and ``srp``,
    token issuer and subject for ``token``, the presented certificate's issuer and subject for
    ``certificate``. ``certificate`` is the presented certificate where it was part of the
    authentication, ``certificate_issuer`` the issuer or truststore it chains to, ``claims``
    what the policy looks at in a token; never the token.
    """

    method: Method
    name: str = Field(max_length=1024)
    certificate: DER | None = None
    certificate_issuer: Token | None = None
    claims: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The principal as one string, for identifiers and records."""
        return f"{self.method}:{self.name}"


def _agent(value: str) -> str:
    return plain_text(value, MAX_AGENT)


def _client_id(value: str) -> str:
    return plain_text(value, MAX_CLIENT_ID)


MAX_AGENT = 200
"""Characters of a User-Agent that are kept."""
MAX_CLIENT_ID = 128
"""Characters of a client's own X-Correlation-ID that are kept."""


class Source(Part):
    """Where the request came from."""

    peer: str | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    user_agent: Annotated[str, AfterValidator(_agent)] | None = None
    client_correlation_id: Annotated[str, AfterValidator(_client_id)] | None = None


class Claim(Part):
    """A single-use thing this request spends: an id or a hash, never the thing itself."""

    kind: Literal["secret", "dpop", "digest"]
    id: str = Field(max_length=128)


READS_JOINED = 2
"""Schema version of requests from which on a front end reads joined answers."""


class EnrollmentRequested(Message):
    """One enrollment over HTTP. ``id`` is the request_id: one per HTTP request.

    Requests of one topic travel together, one a line; so do answers.
    """

    schema_version: int = READS_JOINED

    operation: Operation
    label: str = Field(max_length=64)
    group: Token
    instance: Token
    issuer: Token
    priority: Priority
    principal: Principal
    csr: DER
    claims: tuple[Claim, ...] = ()
    linked: Literal["tls-unique", "tls-exporter"] | None = Field(
        default=None, description="the CSR was bound to the TLS session this way (RFC 7030 3.5)"
    )
    key_capabilities: DER | None = Field(
        default=None,
        description="serverkeygen: the generated key is sealed for the presented certificate, "
        "whose holder can decrypt these SMIMECapabilities (RFC 7030 4.4.1.2)",
    )
    origin: Source = Source()
    expires_at: dt.datetime | None = Field(
        default=None, description="the requester waits until then; do not sign later"
    )


class ReplyAddress(Part):
    """Where the answer to an EnrollmentRequested goes, read where the rest cannot be."""

    id: Token
    group: Token
    instance: Token


class EnrollmentAnswered(Part):
    """ca-signer's answer, sent to the reply topic of the front end that asked.

    ``issued`` carries the certificate as stored; ``rejected`` the kind, code and reason;
    ``pending`` a number of seconds after which to ask again; ``unavailable`` the same.
    """

    request_id: str
    outcome: Literal["issued", "rejected", "pending", "unavailable"]
    certificate: DER | None = None
    kind: str | None = None
    code: str | None = None
    reason: str | None = None
    retry_after_s: int | None = None
