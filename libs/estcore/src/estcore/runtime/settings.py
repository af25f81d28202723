"""Settings: one frozen model per service, from a YAML file and the environment.

``--config FILE`` or ``<PREFIX>_CONFIG`` names the file; ``<PREFIX>__DATABASE__URL`` overrides
one value of it. Secrets are always paths of files. An unknown key in the file or an unknown
variable with the prefix stops the start.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, PrivateAttr, model_validator

from estcore.errors import ConfigurationError
from estcore.ids import is_token
from estcore.pki.profile import StrictModel, Token, parse_model, read_yaml
from estcore.runtime.plaintext import plaintext_nats, refuse_plaintext, remote_postgres
from estcore.runtime.secret_files import check_settings, read_secret

__all__ = [
    "AdminSettings",
    "BusSettings",
    "DatabaseSettings",
    "Port",
    "ServiceSettings",
    "TelemetrySettings",
    "default_instance",
    "load_settings",
    "read_secret",
]

S = TypeVar("S", bound=StrictModel)
Port = Annotated[int, Field(ge=0, le=65_535)]


def default_instance() -> str:
    """Return the host name as a topic token: the pod name on Kubernetes."""
    name = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname().lower())
    return name[:63] if is_token(name[:63]) else "local"


class BusSettings(StrictModel):
    """How to reach NATS."""

    url: str = Field(
        pattern=r"^(nats|tls)://[^,\s]+(,(nats|tls)://[^,\s]+)*$",
        description="nats:// or tls://, several separated by commas",
    )
    nkey_seed_file: Path = Field(
        description="file with this service's NKey seed; it signs messages as well"
    )
    senders_file: Path | None = Field(
        default=None, description="JWK set with the public keys of every service that signs"
    )
    migration_nkey_seed_file: Path | None = Field(
        default=None, description="NKey seed that may declare streams; used by migrate only"
    )
    ca_file: Path | None = Field(default=None, description="trust anchors for tls://")
    certificate_file: Path | None = Field(default=None, description="client certificate chain")
    key_file: Path | None = Field(default=None, description="client key")
    replicas: int = Field(
        default=1, ge=1, le=5, description="stream replicas; used by migrate only"
    )
    allow_plaintext: bool = Field(
        default=False,
        description="accept nats:// to other machines; only for a network within one machine, as "
        "that of a compose file",
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.allow_plaintext:
            refuse_plaintext("bus", plaintext_nats(self.url), "use tls://")
        return self

    @property
    def plaintext(self) -> list[str]:
        """Servers on other machines that are reached without TLS."""
        return plaintext_nats(self.url)


class DatabaseSettings(StrictModel):
    """How to reach PostgreSQL. The URL names user, host and database, never a password."""

    url: str = Field(pattern=r"^postgresql://[^:@/]+@", description="postgresql://user@host/db")
    password_file: Path | None = Field(default=None, description="file with that user's password")
    migration_url: str | None = Field(
        default=None,
        pattern=r"^postgresql://[^:@/]+@",
        description="URL of the schema's owner; used by migrate only",
    )
    migration_password_file: Path | None = None
    ca_file: Path | None = Field(default=None, description="require TLS and verify by these")
    pool_size: int = Field(default=6, ge=2, le=100, description="connections per process")
    statement_timeout_s: int = Field(default=10, ge=1, le=600)
    lock_timeout_s: int = Field(default=5, ge=1, le=600)
    allow_plaintext: bool = Field(
        default=False,
        description="accept hosts on other machines without ca_file; only for a network within "
        "one machine, as that of a compose file",
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.allow_plaintext:
            refuse_plaintext("database", self.plaintext, "set database.ca_file")
        return self

    @property
    def plaintext(self) -> list[str]:
        """Hosts on other machines that are reached without TLS."""
        if self.ca_file is not None:
            return []
        urls = [url for url in (self.url, self.migration_url) if url is not None]
        return list(dict.fromkeys(h for url in urls for h in remote_postgres(url, os.environ)))


class AdminSettings(StrictModel):
    """Health and metrics: /healthz, /readyz, /metrics over plain HTTP."""

    host: str = "127.0.0.1"
    port: Port = 0


class TelemetrySettings(StrictModel):
    """Logs and traces."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    otlp_endpoint: str | None = Field(
        default=None,
        description="OTLP/HTTP traces URL, for example http://collector:4318/v1/traces",
    )
    trace_ratio: float = Field(default=0.05, ge=0, le=1, description="share of requests traced")


class ServiceSettings(StrictModel):
    """What every service has."""

    instance: Token = Field(default_factory=default_instance)
    bus: BusSettings
    admin: AdminSettings = AdminSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    stop_timeout_s: int = Field(default=30, ge=1, le=600, description="time to finish at SIGTERM")
    reload_every_s: float = Field(
        default=2,
        ge=0.1,
        le=3600,
        description="seconds between checks of the files that may change while it runs",
    )
    state_folder: Path | None = Field(
        default=None,
        description="numbers of audit records outlive the process here, so that verification finds "
        "what a killed process had not published; of one process only",
    )
    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that the settings were read from; None if all came from the environment."""
        return self._file

    def with_file(self, file: Path | None) -> Self:
        """Return settings that know the file they were read from."""
        known = self.model_copy()
        known._file = file  # noqa: SLF001 - of the same class
        return known


def load_settings(
    model: type[S], prefix: str, config: Path | None, environ: Mapping[str, str] | None = None
) -> S:
    """Return the settings of a service.

    Raises:
        ConfigurationError: one line naming the place, file or variable; ``secret.exposed`` where
            others may read or change a file with a secret.
    """
    variables = os.environ if environ is None else environ
    path = config or (
        Path(variables[f"{prefix}_CONFIG"]) if f"{prefix}_CONFIG" in variables else None
    )
    raw: Any = read_yaml(path) if path else {}
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: the file must be a mapping")
    for name, text in variables.items():
        if name.startswith(f"{prefix}__"):
            _overlay(raw, name.removeprefix(f"{prefix}__").lower().split("__"), text, name)
        elif name.startswith(f"{prefix}_") and name != f"{prefix}_CONFIG":
            raise ConfigurationError(f"{name} is not a setting; settings start with {prefix}__")
    loaded = parse_model(model, raw, path or Path("the environment"))
    check_settings(loaded)
    return loaded.with_file(path) if isinstance(loaded, ServiceSettings) else loaded


def _overlay(raw: dict[str, Any], keys: list[str], text: str, name: str) -> None:
    place = raw
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigurationError(f"{name} does not fit the file")
    try:
        place[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigurationError(f"{name} cannot be read") from exc
