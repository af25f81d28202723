"""Selector of certificates, as operators give it for bulk revocations and campaigns."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from estcore.pki.profile import StrictModel, Token


class Selector(StrictModel):
    """Which good certificates: all conditions together, one at least."""

    issuer: Token | None = None
    profile: Token | None = None
    key_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    key_algorithm: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,32}$")
    tenant: Token | None = None
    service: Token | None = None
    team: Token | None = None
    cluster: Token | None = None
    name: str | None = Field(
        default=None, min_length=3, max_length=300, description="SAN entry or subject value"
    )
    issued_before: AwareDatetime | None = None
    issued_after: AwareDatetime | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(getattr(self, name) is not None for name in Selector.model_fields):
            raise ValueError("give one condition at least")
        return self
