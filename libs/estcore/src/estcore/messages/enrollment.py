"""est-frontend to ca-signer and back: the enrollment request and its answer."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field

from estcore.messages.envelope import DER, Message, Part, Token
from estcore.pki.profile import Priority

Operation = Literal["simpleenroll", "simplereenroll"]


class Principal(Part):
    """Who was authenticated, and how.

    ``name`` is the secret's id for ``secret``; for ``certificate`` it is the presented
    certificate's issuer and subject. ``certificate`` is the presented certificate, if any,
    whatever the method was.
    """

    method: Literal["certificate", "secret"]
    name: str = Field(max_length=1024)
    certificate: DER | None = None

    @property
    def key(self) -> str:
        """The principal as one string, for identifiers and records."""
        return f"{self.method}:{self.name}"


class Source(Part):
    """Where the request came from."""

    peer: str | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    user_agent: str | None = None


class Claim(Part):
    """A single-use thing this request spends: an id or a hash, never the thing itself."""

    kind: Literal["secret"]
    id: str = Field(max_length=128)


class EnrollmentRequested(Message):
    """One enrollment over HTTP. ``id`` is the request_id: one per HTTP request."""

    operation: Operation
    label: str = Field(max_length=64)
    group: Token
    instance: Token
    issuer: Token
    priority: Priority
    principal: Principal
    csr: DER
    claims: tuple[Claim, ...] = ()
    origin: Source = Source()
    expires_at: dt.datetime | None = Field(
        default=None, description="after this nobody waits: do not sign any more"
    )


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
