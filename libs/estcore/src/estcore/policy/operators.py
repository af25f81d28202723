"""Who may give commands to the services, by certificate, and which."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from estcore.pki.names import canonical_name, parse_name
from estcore.pki.profile import StrictModel, Token

Role = Literal["approver", "revoker", "auditor", "ca", "secrets"]


class Operator(StrictModel):
    """One person or tool that signs commands with a certificate of profile ``operator``."""

    name: Token = Field(description="in records; the certificate's owner is operators/<name>")
    certificate_issuer: Token = Field(description="issuer id of the operator's certificate")
    certificate_subject: str = Field(description="its subject, as CN=…,O=…; no * is possible")
    roles: tuple[Role, ...] = Field(
        min_length=1,
        description="approver: requests that wait; revoker: revoke and hold; auditor: look; "
        "ca: roll over issuers; secrets: make and revoke enrollment secrets",
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if "*" in self.certificate_subject:
            raise ValueError("an operator's certificate_subject has no *")
        canonical_name(parse_name(self.certificate_subject))
        return self

    @property
    def key(self) -> tuple[str, str]:
        """Issuer and canonical subject, which identify the operator."""
        return self.certificate_issuer, canonical_name(parse_name(self.certificate_subject))
