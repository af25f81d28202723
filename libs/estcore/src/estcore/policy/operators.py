"""Who may give commands to the services, by certificate, and which; who confirms campaigns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from estcore.pki.names import canonical_name, parse_name
from estcore.pki.profile import StrictModel, Token

Role = Literal[
    "approver", "revoker", "renewer", "auditor", "reader", "ca", "secrets", "retention", "siem"
]


class Operator(StrictModel):
    """One person or tool that signs commands with a certificate of profile ``operator``."""

    name: Token = Field(description="in records; the certificate's owner is operators/<name>")
    certificate_issuer: Token = Field(description="issuer id of the operator's certificate")
    certificate_subject: str = Field(description="its subject, as CN=…,O=…; no * is possible")
    roles: tuple[Role, ...] = Field(
        min_length=1,
        description="approver: requests that wait; revoker: revoke and hold; renewer: campaigns; "
        "auditor: look at everything, the audit log too; reader: look up certificates; "
        "ca: roll over issuers; secrets: make and revoke enrollment secrets; "
        "retention: propose and confirm purges of the audit log; "
        "siem: test sinks of the audit log, deliver records again",
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


class CampaignPolicy(StrictModel):
    """Which campaigns need two operators."""

    two_operators: Literal["revoking", "always"] = Field(
        default="revoking",
        description="whether another operator than the proposer confirms every campaign, or only "
        "those that revoke the replaced certificates",
    )

    def needs_two(self, *, revokes: bool) -> bool:
        """Return whether a campaign is confirmed by another operator than its proposer."""
        return revokes or self.two_operators == "always"
