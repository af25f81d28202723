"""The settings a container would start with: its files, its environment, its own model.

Called by: deploy/check.py
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from estcore.errors import ConfigurationError
from estcore.pki.profile import load_profiles
from estcore.policy.document import load_policy
from estcore.runtime.settings import load_settings
from estdeploy.manifests import Document, Pod, of_kind, pods
from estdeploy.services import ADMIN_PORT, ISSUER, SERVICES, WITNESS, AnySettings, Service, flat
from estsetup.kubernetes import HELD

EXTERNAL_CONFIG = "estsuite-trust"
"""The one ConfigMap that comes from outside: trust anchors of NATS, PostgreSQL and the SIEM, and
the public keys with which services verify each other's messages."""
SECRETS: Mapping[str, frozenset[str]] = {
    **{name: frozenset(files) for name, files in HELD.items()},
    "est-frontend-tls": frozenset({"tls.crt", "tls.key"}),
    "ca-signer-issuing": frozenset({"issuing.pem", "chain.pem"}),
    "estctl": frozenset({"nats.seed", "operator.key", "operator.pem"}),
    "est-witness": frozenset({"witness.key"}),
    "est-witness-tls": frozenset({"tls.crt", "tls.key"}),
}
"""Secrets that come from outside, with their keys (deploy/README.md lists them)."""
OTHERS = frozenset({"nats-server", "postgres", "estctl"})
"""Images whose settings are no settings of a service."""
_CHECK_STORE_IMAGE = "ca-signer-check-store"
"""ca-signer's package with the extra ``lint``, for the verb ``check-store``."""
_NOT_READ: Mapping[str, tuple[str, ...]] = {
    "check-store": ("issuers.key_file", "issuers.passphrase_file"),
    "migrate": (
        "bus.nkey_seed_file",
        "checkpoint.key_file",
        "database.password_file",
        "issuers.certificate_file",
        "issuers.chain_file",
        "issuers.key_file",
        "issuers.passphrase_file",
        "sinks.ca_file",
        "sinks.certificate_file",
        "sinks.key_file",
    ),
}
"""Settings that a verb does not read: from a Secret they must not be mounted."""
_WITH_OPTIONS = ("check-store",)
"""Verbs whose options may follow."""
_REFERENCE = re.compile(r"\$\(([A-Z_][A-Z0-9_]*)\)")


def settings_can_be_loaded(documents: list[Document]) -> list[str]:
    """Each container's files and environment give valid settings, and each path has a mount."""
    findings = []
    for pod in pods(documents):
        for where, container in pod.containers():
            try:
                findings += [f"{where}: {t}" for t in _container(pod, container, documents)]
            except ConfigurationError as exc:
                findings.append(f"{where}: {exc.reason}")
    return findings


def _container(pod: Pod, container: Document, documents: list[Document]) -> Iterator[str]:
    image = re.split("[:@]", container["image"].rpartition("/")[2])[0]
    if image in OTHERS:
        return
    known_services = {**SERVICES, ISSUER.name: ISSUER, WITNESS.name: WITNESS}
    service = known_services.get("ca-signer" if image == _CHECK_STORE_IMAGE else image)
    if service is None:
        yield f"image {container['image']} is none of the suite's"
        return
    files = dict(_files(pod, container, documents))
    settings = load(service, container, files, environment(container, documents))
    secret = set(_secret_paths(pod, container))
    known = set(files) | secret
    folders = [
        m["mountPath"]
        for m in container.get("volumeMounts", [])
        if "emptyDir" in pod.volume(m["name"]) or m["name"] in pod.claims
    ]
    verb = container.get("args", [""])[0]
    for key, path in _paths(settings):
        if key in _NOT_READ.get(verb, ()):
            if path in secret:
                yield f"{key} is mounted, and {verb} does not read it"
            continue
        inside = any(PurePosixPath(path).is_relative_to(folder) for folder in folders)
        if path not in known and not inside:
            yield f"{key} is {path}, which nothing mounts"
    yield from _keys_apart(settings)
    if settings.admin.host != "0.0.0.0" or settings.admin.port != ADMIN_PORT:  # noqa: S104 - pods
        yield f"the admin port is not on 0.0.0.0:{ADMIN_PORT}, where probes can reach it"
    yield from _agreement(service, settings, files)


def _keys_apart(settings: AnySettings) -> Iterator[str]:
    """Say of an encrypted key that its passphrase lies beside it, in the same Secret."""
    for issuer in getattr(settings, "issuers", ()):
        key, passphrase = (getattr(issuer, f"{n}_file", None) for n in ("key", "passphrase"))
        if key is not None and passphrase is not None and key.parent == passphrase.parent:
            yield f"issuer {issuer.issuer_id}: key and passphrase are in one Secret"


def load(
    service: Service,
    container: Document,
    files: Mapping[str, str],
    variables: Mapping[str, str],
) -> AnySettings:
    """Return the settings, as the command reads them.

    Raises:
        ConfigurationError: as the command would.
    """
    arguments = container.get("args", [])
    plain = len(arguments) == 3  # noqa: PLR2004 - verb, option, file
    if arguments[1:2] != ["--config"] or not (plain or arguments[0] in _WITH_OPTIONS):
        raise ConfigurationError(f"args are {arguments}, not a verb, --config and a file")
    text = files.get(arguments[2])
    if text is None:
        raise ConfigurationError(f"nothing mounts {arguments[2]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PurePosixPath(arguments[2]).name
        path.write_text(text, encoding="utf-8")
        return load_settings(service.settings, service.prefix, path, variables)


def environment(container: Document, documents: list[Document]) -> dict[str, str]:
    """Return the container's variables, with ConfigMaps and ``$(NAME)`` resolved.

    Raises:
        ConfigurationError: a ConfigMap or key that is not rendered.
    """
    found: dict[str, str] = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            data = _config_map(reference["name"], documents)
            if reference["key"] not in data:
                raise ConfigurationError(f"no {reference['key']} in {reference['name']}")
            found[variable["name"]] = data[reference["key"]]
        elif "fieldRef" in source:
            found[variable["name"]] = "est-frontend-5d4f9c7b8d-x2x7q"
        else:
            text = variable.get("value", "")
            found[variable["name"]] = _REFERENCE.sub(lambda m: found.get(m[1], m[0]), text)
    return found


def _config_map(name: str, documents: list[Document]) -> dict[str, str]:
    for document in of_kind(documents, "ConfigMap"):
        if document["metadata"]["name"] == name:
            data: dict[str, str] = document.get("data", {})
            return data
    raise ConfigurationError(f"no ConfigMap {name}")


def _files(pod: Pod, container: Document, documents: list[Document]) -> Iterator[tuple[str, str]]:
    for mount in container.get("volumeMounts", []):
        source = pod.volume(mount["name"]).get("configMap", {}).get("name")
        if source == EXTERNAL_CONFIG:
            for key in ("nats-ca.pem", "postgres-ca.pem", "siem-ca.pem", "senders.json"):
                yield f"{mount['mountPath']}/{key}", ""
        elif source is not None:
            for key, text in _config_map(source, documents).items():
                yield f"{mount['mountPath']}/{key}", text


def _secret_paths(pod: Pod, container: Document) -> Iterator[str]:
    for mount in container.get("volumeMounts", []):
        secret = pod.volume(mount["name"]).get("secret", {})
        name = secret.get("secretName")
        if name is None:
            continue
        if name not in SECRETS:
            raise ConfigurationError(f"Secret {name} is not in the list of Secrets")
        items = {item["key"] for item in secret["items"]} if "items" in secret else SECRETS[name]
        if unknown := items - SECRETS[name]:
            raise ConfigurationError(f"Secret {name} has no {', '.join(sorted(unknown))}")
        for key in items:
            yield f"{mount['mountPath']}/{key}"


def _paths(settings: AnySettings) -> Iterator[tuple[str, str]]:
    raw: dict[str, Any] = settings.model_dump(mode="json")
    for key, value in flat(raw).items():
        if key.endswith(("_file", "_folder")) and value is not None:
            yield key, value


def _agreement(service: Service, settings: AnySettings, files: Mapping[str, str]) -> Iterator[str]:
    """Policy and profiles can be read, and name the same labels, profiles and issuers."""
    policy_file = getattr(settings, "policy_file", None)
    if policy_file is None or str(policy_file) not in files:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(files[str(policy_file)], encoding="utf-8")
        policy = load_policy(path)
        if service.name != "ca-signer":
            return
        path = Path(folder) / "profiles.yaml"
        path.write_text(files.get(str(getattr(settings, "profiles_file", "")), ""), "utf-8")
        profiles = load_profiles(path)
    issuers = {issuer.issuer_id for issuer in getattr(settings, "issuers", ())}
    issuers |= set(getattr(settings, "remote_issuers", ()))
    for name, label in policy.labels.items():
        for issuer in set(label.issuers) - issuers:
            yield f"label {name} names the unknown issuer {issuer}"
        for profile in set(label.profiles) - profiles.profiles.keys():
            yield f"label {name} names the unknown profile {profile}"
    for name, group in getattr(settings, "groups", {}).items():
        for unknown in set(group.labels) - policy.labels.keys():
            yield f"group {name} names the unknown label {unknown}"
        for unknown in set(group.profiles) - profiles.profiles.keys():
            yield f"group {name} names the unknown profile {unknown}"
