"""The Secrets and ConfigMaps that ``deploy/k8s`` expects, as documents for ``kubectl apply``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estcore.errors import ConfigurationError
from estsetup import nats
from estsetup.material import ROLES, Material
from estsetup.server_certificates import make_certificate

Document = dict[str, Any]
ORIGIN = "example.org/est"
"""``checkpoint.origin`` in the settings of ``deploy/k8s``."""
_SEED, _PASSWORD = "nats.seed", "database.password"
HELD: dict[str, dict[str, str]] = {
    "est-frontend": {_SEED: "nats-est-frontend.seed"},
    "ca-signer": {_SEED: "nats-ca-signer.seed", _PASSWORD: "ca_signer.password"},
    "ca-signer-key": {"issuing.key": "issuing.key"},
    "ca-signer-passphrase": {"passphrase": "ca.passphrase"},
    "ca-signer-migrate": {_SEED: "nats-migrate.seed", _PASSWORD: "ca_signer_owner.password"},
    "check-store": {_SEED: "nats-check-store.seed", _PASSWORD: "ca_signer_reader.password"},
    "renewal": {_SEED: "nats-renewal.seed", _PASSWORD: "renewal.password"},
    "renewal-migrate": {_SEED: "nats-migrate.seed", _PASSWORD: "renewal_owner.password"},
    "audit": {
        _SEED: "nats-audit.seed",
        _PASSWORD: "audit.password",
        "checkpoint.pem": "audit-checkpoint.pem",
    },
    "audit-migrate": {_SEED: "nats-migrate.seed", _PASSWORD: "audit_owner.password"},
}
"""Secret to key to the file in ``keys``."""


@dataclass(frozen=True)
class Installation:
    """Names of an installation, and the anchors that it trusts for NATS and PostgreSQL."""

    namespace: str = "estsuite"
    hosts: tuple[str, ...] = ()
    """Further names of the EST server."""
    origin: str = ORIGIN
    nats_ca: Path | None = None
    postgres_ca: Path | None = None
    siem_ca: Path | None = None


def documents(folder: Path, installation: Installation) -> list[Document]:
    """Make the missing keys in ``folder``; return namespace, Secrets and ConfigMaps.

    Without ``nats_ca`` and ``postgres_ca`` certificates for servers in the same namespace are
    made, and what these servers mount is among the documents (``overlays/all-in-one``).

    Raises:
        ConfigurationError: a ceremony failed, a file cannot be read, only one CA is given.
    """
    if (installation.nats_ca is None) != (installation.postgres_ca is None):
        raise ConfigurationError("give --nats-ca and --postgres-ca, or neither")
    material = Material(folder)
    own = f"est-frontend.{installation.namespace}.svc"
    hosts = (own, "est-frontend", f"{own}.cluster.local", "localhost", "127.0.0.1")
    material.make(
        ca_name="Clinic EST", hosts=(*hosts, *installation.hosts), origin=installation.origin
    )
    if installation.nats_ca is None:
        _make_servers(material.keys, installation.namespace)
    found = [
        _namespace(installation.namespace),
        *_secrets(material),
        _trust(material, installation),
    ]
    if installation.nats_ca is None:
        found += _for_servers(material)
    for document in found[1:]:
        document["metadata"] |= {
            "namespace": installation.namespace,
            "labels": {"app.kubernetes.io/part-of": "estsuite"},
        }
    return found


def _namespace(name: str) -> Document:
    labels = {}
    for mode in ("enforce", "audit", "warn"):
        labels[f"pod-security.kubernetes.io/{mode}"] = "restricted"
        labels[f"pod-security.kubernetes.io/{mode}-version"] = "latest"
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _make_servers(keys: Path, namespace: str) -> None:
    for name in ("nats", "postgres"):
        inside = (f"{name}.{namespace}.svc", name, f"{name}.{namespace}.svc.cluster.local")
        # Loopback is for an operator behind kubectl port-forward.
        make_certificate(keys, name, (*inside, "localhost", "127.0.0.1"))


def _secrets(material: Material) -> list[Document]:
    keys, ca = material.keys, material.ca
    found = [
        _secret(name, {key: _read(keys / file) for key, file in files.items()})
        for name, files in HELD.items()
    ]
    issuing = {name: _read(ca / name) for name in ("issuing.pem", "chain.pem")}
    server = (ca / "server" / "server.pem", keys / "server.key")
    found += [_secret("ca-signer-issuing", issuing), _tls("est-frontend-tls", *server)]
    certificate = material.folder / "operator.pem"
    if certificate.exists():
        operator = {
            _SEED: _read(keys / "nats-operator.seed"),
            "operator.key": _read(keys / "operator.key"),
            "operator.pem": _read(certificate),
        }
        found.append(_secret("estctl", operator))
    return found


def _trust(material: Material, installation: Installation) -> Document:
    own = material.keys / "servers-ca.pem"
    data = {
        "nats-ca.pem": _read(installation.nats_ca or own).decode(),
        "postgres-ca.pem": _read(installation.postgres_ca or own).decode(),
        "senders.json": material.senders(),
    }
    if installation.siem_ca is not None:
        data["siem-ca.pem"] = _read(installation.siem_ca).decode()
    return _config_map("estsuite-trust", data)


def _for_servers(material: Material) -> list[Document]:
    keys = material.keys
    server = nats.server(material.accounts(), store="/data")
    server |= {
        "http": "0.0.0.0:8222",
        "tls": {"cert_file": "/etc/nats-tls/tls.crt", "key_file": "/etc/nats-tls/tls.key"},
    }
    names = ("postgres-superuser", *ROLES)
    passwords = {f"{name}.password": _read(keys / f"{name}.password") for name in names}
    return [
        _config_map("nats-config", {"nats.conf": json.dumps(server, indent=1) + "\n"}),
        _tls("nats-tls", keys / "nats.crt", keys / "nats.key"),
        _secret("postgres-passwords", passwords),
        _tls("postgres-tls", keys / "postgres.crt", keys / "postgres.key"),
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc


def _tls(name: str, certificate: Path, key: Path) -> Document:
    # The keys of the type kubernetes.io/tls.
    data = {f"tls.{end}": _read(path) for end, path in (("crt", certificate), ("key", key))}
    return _secret(name, data) | {"type": "kubernetes.io/tls"}


def _secret(name: str, data: Mapping[str, bytes]) -> Document:
    encoded = {key: base64.b64encode(octets).decode() for key, octets in data.items()}
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}


def _config_map(name: str, data: Mapping[str, str]) -> Document:
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}
