"""Settings of an agent that owns a host: many definitions in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from estclient.agent.settings import AgentSettings
from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import AdminSettings, TelemetrySettings

ADMIN_PORT = 9471


class HostSettings(StrictModel):
    """All that the definitions of a host have in common."""

    name: Token = Field(default="host", description="name of this agent in logs")
    definitions: Path = Field(
        description="folder of definitions, one `<name>.yaml` for each certificate"
    )
    state_folder: Path = Field(
        description="folder of the status and of the stores that a definition does not name"
    )
    defaults: dict[str, Any] = Field(
        default={},
        description="settings of every definition that does not say otherwise; mappings are merged",
    )
    admin: AdminSettings | None = Field(
        default=AdminSettings(port=ADMIN_PORT),
        description="/healthz, /readyz and /metrics; `null`: none",
    )
    telemetry: TelemetrySettings = TelemetrySettings()
    reload_every_s: float = Field(
        default=5, ge=0.1, le=3600, description="seconds between looks at the definitions"
    )
    ready_timeout_s: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="the service manager is notified after this although a credential is missing",
    )
    stop_timeout_s: float = Field(
        default=10, ge=0, le=600, description="time to finish a step at SIGTERM or a change"
    )


def host_of(settings: AgentSettings) -> HostSettings:
    """Return the host of a single definition: its state lies in its store, without a port."""
    return HostSettings(
        name=settings.name,
        definitions=settings.store,
        state_folder=settings.store,
        admin=None,
        telemetry=settings.telemetry,
    )
