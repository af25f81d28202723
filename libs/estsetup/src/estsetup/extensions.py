"""What each file of ``deploy/compose`` adds: settings of services, certificates, secrets, folders.

    siem         audit delivers its records to rsyslog, by syslog over mutual TLS
    keycloak     est-frontend and the policy accept tokens of a Keycloak
    monitoring   services send traces to a collector, and Prometheus reaches their metrics
    ha           three NATS servers with streams of three replicas, two of each service

Host names are those of the containers in the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estsetup.keep import keep_password, keep_secret
from estsetup.server_certificates import AUTHORITY, make_certificate
from estsetup.service_settings import ADMIN_PORT, Places

NATS_SERVERS = ("nats", "nats-2", "nats-3")
SECOND = "-2"
"""The suffix of the second container of a service."""
SERVICES = ("ca-signer", "renewal", "audit", "est-frontend")
_SYSLOG_PORT = 6514
_ROUTE_PORT = 6222
_REALM_URL = "https://keycloak:8443/realms/est"
_CLIENT = "clinic-web"
_REALM = "estsuite-realm.json"
_IMPORTED = "est-realm.json"
"""Keycloak imports a realm from a file of this name only."""
_LABEL = """\
  tokens:
    issuer: issuing
    profiles: [service-mtls, server-only]
    authentication: [token]
"""
_RULE = """\
  - name: clients-of-keycloak
    principal:
      token:
        issuer: keycloak
        claims: {azp: "clinic-*"}
    owner: {tenant: demo, service: "{azp}"}
    labels: [tokens]
    profiles: [service-mtls, server-only]
    names:
      common_names: ["{azp}.clinic.example"]
      dns: ["{azp}.clinic.example"]
"""
_TRACES_URL = "http://otel-collector:4318/v1/traces"


@dataclass(frozen=True)
class Extensions:
    """The files of ``deploy/compose`` that are in use."""

    siem: bool = False
    monitoring: bool = False
    ha: bool = False
    keycloak: bool = False
    realm: Path = Path("/keycloak") / _REALM
    """The realm of ``deploy/keycloak``, as the file of Compose mounts it."""

    def make_secrets(self, keys: Path) -> None:
        """Make the secrets that are missing, and certificates by an authority outside the suite."""
        if self.siem:
            make_certificate(keys, "rsyslog", ("rsyslog",))
            make_certificate(keys, "siem-client", ("audit",), client=True)
        if self.ha:
            # A server of a cluster is a client of the others.
            make_certificate(keys, "nats-route", NATS_SERVERS, client=True)
        if self.keycloak:
            make_certificate(keys, "keycloak", ("keycloak", "localhost"))
            keep_password(keys / f"{_CLIENT}.secret")
            keep_secret(keys / _REALM, self._realm_with_secret(keys / f"{_CLIENT}.secret"))

    def held(self) -> dict[str, dict[str, str]]:
        """Return the further secrets of containers: its name there, its name in ``keys``."""
        found: dict[str, dict[str, str]] = {}
        if self.siem:
            found["rsyslog"] = {
                "ca.pem": AUTHORITY,
                "server.pem": "rsyslog.crt",
                "server.key": "rsyslog.key",
            }
            found["audit"] = _same(AUTHORITY, "siem-client.crt", "siem-client.key")
        if self.ha:
            found["nats"] = _same(AUTHORITY, "nats-route.crt", "nats-route.key")
        if self.keycloak:
            found["keycloak"] = _same("keycloak.crt", "keycloak.key") | {_IMPORTED: _REALM}
            found["keycloak-enroll"] = _same(AUTHORITY, f"{_CLIENT}.secret")
            found["est-frontend"] = _same(AUTHORITY)
        return found

    def data_folders(self) -> tuple[str, ...]:
        """Return the containers that write files of their own."""
        found: list[str] = []
        if self.siem:
            found.append("rsyslog")
        if self.monitoring:
            found += ["prometheus", "otel-collector"]
        if self.keycloak:
            found += ["keycloak", "keycloak-enroll"]
        if self.ha:
            found += [*NATS_SERVERS[1:], *(f"{name}{SECOND}" for name in SERVICES)]
        return tuple(found)

    def change(self, name: str, settings: dict[str, Any], places: Places) -> dict[str, Any]:
        """Return the settings of a service, or of ``estctl``, with what the files need."""
        changed = {key: dict(value) if isinstance(value, dict) else value
                   for key, value in settings.items()}  # fmt: skip
        if self.siem and name == "audit":
            changed["sinks"] = [*changed["sinks"], _rsyslog(places)]
        if self.keycloak and name == "est-frontend":
            changed["token_issuers"] = [_token_issuer(places)]
        if self.monitoring and name in SERVICES:
            changed["telemetry"] = {"otlp_endpoint": _TRACES_URL}
            if name == "est-frontend":
                # On one machine a person looks for the trace of the request just made.
                changed["telemetry"]["trace_ratio"] = 1.0
        if name in SERVICES and (self.monitoring or (self.ha and name == "est-frontend")):
            # Prometheus, and the proxy's check of /readyz; no admin port is published.
            changed["admin"]["host"] = "0.0.0.0"  # noqa: S104
        if self.ha:
            changed["bus"]["url"] = ",".join(f"nats://{host}:4222" for host in NATS_SERVERS)
            if name in SERVICES:
                changed["bus"]["replicas"] = len(NATS_SERVERS)
        return changed

    def policy(self, example: str) -> str:
        """Return the example policy with what the files need."""
        if not self.keycloak:
            return example
        labels, rules = example.split("rules:\n", 1)
        return f"{labels}{_LABEL}rules:\n{_RULE}{rules}"

    def _realm_with_secret(self, secret: Path) -> str:
        """Return the realm; the secret of its client is known before Keycloak starts."""
        realm = json.loads(self.realm.read_text(encoding="utf-8"))
        for client in realm["clients"]:
            if client["clientId"] == _CLIENT:
                client["secret"] = secret.read_text(encoding="utf-8")
        return json.dumps(realm, indent=1) + "\n"

    def nats_configurations(
        self, server: Mapping[str, object], places: Places
    ) -> dict[str, dict[str, object]]:
        """Return the configuration of each NATS server by its file name."""
        if not self.ha:
            return {"nats.conf": dict(server)}
        secrets = places.secrets
        cluster = {
            "name": "estsuite",
            "listen": f"0.0.0.0:{_ROUTE_PORT}",
            "routes": [f"nats://{host}:{_ROUTE_PORT}" for host in NATS_SERVERS],
            # Clients are in accounts; what may be a server of the cluster, its certificate says.
            "tls": {
                "cert_file": str(secrets / "nats-route.crt"),
                "key_file": str(secrets / "nats-route.key"),
                "ca_file": str(secrets / AUTHORITY),
                "verify": True,
            },
        }
        return {
            f"{host}.conf": {**server, "server_name": host, "cluster": cluster}
            for host in NATS_SERVERS
        }

    def scrape_targets(self) -> list[dict[str, list[str]]]:
        """Return what Prometheus scrapes, as a file for its file discovery."""
        suffixes = ("", SECOND) if self.ha else ("",)
        targets = [f"{name}{suffix}:{ADMIN_PORT}" for name in SERVICES for suffix in suffixes]
        return [{"targets": targets}]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _rsyslog(places: Places) -> dict[str, Any]:
    return {
        "name": "rsyslog",
        "kind": "syslog",
        "host": "rsyslog",
        "port": _SYSLOG_PORT,
        "ca_file": str(places.secrets / AUTHORITY),
        "certificate_file": str(places.secrets / "siem-client.crt"),
        "key_file": str(places.secrets / "siem-client.key"),
    }


def _token_issuer(places: Places) -> dict[str, str]:
    return {
        "id": "keycloak",
        "issuer": _REALM_URL,
        "jwks_url": f"{_REALM_URL}/protocol/openid-connect/certs",
        "audience": "est",
        "ca_file": str(places.secrets / AUTHORITY),
    }
