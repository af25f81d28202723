"""Settings of ``estctl`` for operators (environment prefix ``ESTCTL``)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from estcore.pki.profile import StrictModel
from estcore.runtime.settings import BusSettings


class OperatorSettings(StrictModel):
    """Who signs commands, and how they reach the services."""

    bus: BusSettings
    certificate_file: Path = Field(description="the operator's certificate, PEM")
    key_file: Path = Field(description="its private key, PEM, unencrypted, for the owner's eyes")
    timeout_s: float = Field(default=10, ge=1, le=120, description="how long to wait for an answer")
