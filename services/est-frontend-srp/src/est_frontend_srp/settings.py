"""Settings of est-frontend-srp: those of a front end and the SRP part."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from est_frontend.settings import FrontendSettings
from estcore.pki.profile import StrictModel


class SRPSettings(StrictModel):
    """Users of TLS-SRP and how many may be served."""

    verifiers_file: Path = Field(
        description="verifiers of SRP users, YAML; est-frontend-srp user writes it"
    )
    max_connections: int = Field(
        default=100, ge=1, le=10_000, description="handshakes and connections at once"
    )


class SRPFrontendSettings(FrontendSettings):
    """All settings of est-frontend-srp."""

    srp: SRPSettings
