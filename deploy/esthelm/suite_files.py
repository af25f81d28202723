"""Values that name existing Secrets and ConfigMaps, and those with settings and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esthelm.sources import Document, Documents, Sources
from esthelm.values import NAME, POD_OF, TEXT, Place, Value, at, found

SECRETS = {
    "audit": "NKey, database password and checkpoint key of audit",
    "audit-migrate": "NKey and password of the owner of audit's schema",
    "ca-signer": "NKey and database password of ca-signer",
    "ca-signer-issuing": "certificate and chain of the issuing CA",
    "ca-signer-key": "the encrypted key of the issuing CA",
    "ca-signer-migrate": "NKey and password of the owner of ca-signer's schema",
    "ca-signer-passphrase": "the passphrase of that key",
    "check-store": "NKey and database password of check-store",
    "est-frontend": "NKey of est-frontend",
    "est-frontend-tls": "server certificate and key of est-frontend",
    "estctl": "NKey, certificate and key of the operator in the pod estctl-0",
    "nats-tls": "server certificate and key of the NATS of this chart",
    "postgres-passwords": "passwords of the roles in the PostgreSQL of this chart",
    "postgres-tls": "server certificate and key of the PostgreSQL of this chart",
    "renewal": "NKey and database password of renewal",
    "renewal-migrate": "NKey and password of the owner of renewal's schema",
}
FILES = {
    "est-frontend": "est-frontend.yaml",
    "ca-signer": "ca-signer.yaml",
    "renewal": "renewal.yaml",
    "audit": "audit.yaml",
    "estctl": "operator.yaml",
    "policy": "policy.yaml",
    "profiles": "profiles.yaml",
}
"""Value below ``files`` to the file that it replaces."""


def camel(name: str) -> str:
    """Return ``ca-signer`` as ``caSigner``."""
    first, *rest = name.split("-")
    return first + "".join(part.capitalize() for part in rest)


def everything(sources: Sources) -> Documents:
    """Return all documents of the chart."""
    documents: Documents = {}
    for name, part in sources.parts.items():
        documents |= {k: d for k, d in part.items() if name == "base" or k not in documents}
    return documents


def names(sources: Sources) -> Iterator[Value]:
    """Yield the names of what comes from outside the chart."""
    documents = everything(sources)
    places: dict[str, list[tuple[str, str, Place]]] = {}
    trust: list[tuple[str, str, Place]] = []
    config: list[tuple[str, str, Place]] = []
    for (kind, name), document in documents.items():
        for place, volume in _volumes(kind, document):
            if "secret" in volume:
                steps = (*place, "secret", "secretName")
                places.setdefault(volume["secret"]["secretName"], []).append((kind, name, steps))
            elif volume.get("configMap", {}).get("name") == "estsuite-trust":
                trust.append((kind, name, (*place, "configMap", "name")))
            elif volume.get("configMap", {}).get("name") == "nats-config":
                config.append((kind, name, (*place, "configMap", "name")))
    for secret in sorted(places):
        yield at(
            f"secrets.{camel(secret)}",
            f"Name of the existing Secret with {SECRETS[secret]}.",
            NAME,
            *places[secret],
        )
    yield at("configMaps.trust", "Name of the existing ConfigMap with trust anchors.", NAME, *trust)
    yield at(
        "configMaps.nats",
        "Name of the existing ConfigMap with nats.conf of the NATS of this chart.",
        NAME,
        *config,
    )


def _volumes(kind: str, document: Document) -> Iterator[tuple[Place, Document]]:
    if kind in POD_OF:
        pod = found({(kind, ""): document}, kind, "", POD_OF[kind])
        for number, volume in enumerate(pod.get("volumes", [])):
            yield (*POD_OF[kind], "volumes", number), volume


def files(sources: Sources) -> Iterator[Value]:
    """Yield settings that are merged, and whole files."""
    for name in FILES:
        if name not in ("policy", "profiles"):
            what = "estctl in the pod" if name == "estctl" else name
            yield Value(
                f"settings.{camel(name)}",
                f"Settings that are merged into the settings file of {what}; lists replace.",
                {"settings": name},
                default={},
            )
    for name, file in FILES.items():
        config_map = f"{name}-config" if name not in ("policy", "profiles") else "ca-signer-config"
        where = ("ConfigMap", config_map, ("data", file))
        ours = found(everything(sources), *where)

        def read(
            documents: Documents, where: tuple[str, str, Place] = where, ours: str = ours
        ) -> Any:
            text = found(documents, *where)
            return "" if text == ours else text

        yield Value(
            f"files.{camel(name)}",
            f"Text of {file} in place of the chart's: --set-file files.{camel(name)}={file}",
            TEXT,
            read,
            default="",
        )
