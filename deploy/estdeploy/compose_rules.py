"""Rules for docker-compose.yml and the Dockerfile, and the tool's own word where it is there.

Called by: deploy/check.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from estdeploy.services import EST_PORT, IMAGES, USER_ID, Image
from estsetup.compose import HELD

SKIPPED = "docker-compose config: skipped, the tool is not here"
_LOCAL = "./deploy/compose/local/"
_INSTALL_S = 120
_SECRETS = re.compile(rf"{re.escape(_LOCAL)}secrets/([a-z-]+)(/|:|$)")
_OPEN = tuple(f"{_LOCAL}{name}" for name in ("config", "data/", "operator"))
"""Folders without secrets."""
CA_KEYS = frozenset({"issuing.key", "ca.passphrase"})
"""Secrets with the CA key, and with its passphrase."""
_SIGNING = {"ca-signer": ["run"], "operator": ["operator", "enroll"]}
"""What signs with the CA key, and the verb with which it does."""
_PUBLISHED = {
    "est-frontend": [f"127.0.0.1:{EST_PORT}:{EST_PORT}"],
    "proxy": [f"127.0.0.1:{EST_PORT}:{EST_PORT}"],
    "prometheus": ["127.0.0.1:9090:9090"],
}
_BESIDE = {"rsyslog": {"context": "./deploy/siem", "dockerfile": "rsyslog.Dockerfile"}}
"""Images that are built of something else than the suite."""
_WRITABLE = {"keycloak"}
"""What writes in its own image: Keycloak compiles its configuration when it starts."""
_CONFIGURATION = re.compile(r"\./deploy/compose/[\w-]+\.(yml|yaml|cfg):[^:]+:ro")
_SECRETS_AT = {
    "rsyslog": (":/etc/estsuite/siem:ro",),
    "keycloak": (":/run/secrets:ro", ":/opt/keycloak/data/import:ro"),
}
"""Where a server's own configuration expects its secrets."""
_COPY = re.compile(r"-[0-9]$")
_REALM = "./deploy/keycloak:/keycloak:ro"
"""A folder without secrets, which setup reads when Keycloak is used."""
_SETUP = {
    "user": "0:0",
    "cap_add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
    "network_mode": "none",
    "volumes": ["./deploy/compose:/compose"],
}
"""The one container that is root makes the others' files, and reaches nothing else."""


def findings(
    compose: dict[str, Any], more: Mapping[str, Mapping[str, str]] | None = None
) -> list[str]:
    """Return what is wrong with a compose file; ``more`` are secrets that a further file adds."""
    further = {name: tuple(names.values()) for name, names in (more or {}).items()}
    held = {name: (*HELD.get(name, ()), *further.get(name, ())) for name in HELD | further}
    return [
        *compose_is_closed(compose),
        *compose_waits_in_order(compose),
        *compose_secrets_are_their_own(compose, further),
        *compose_keys_are_for_signing(compose, held),
        *compose_builds_known_images(compose),
    ]


def compose_is_closed(compose: dict[str, Any]) -> list[str]:
    """Each container is confined, and only what people use is published, on loopback."""
    findings = []
    for name, service in compose["services"].items():
        if name == "setup":
            mounted = [v for v in service["volumes"] if v != _REALM]
            service = service | {"volumes": mounted}
            findings += [f"setup: {k}" for k, v in _SETUP.items() if service.get(k) != v]
            service = {k: v for k, v in service.items() if k not in _SETUP} | {
                "user": "ESTSUITE_UID"
            }
        wrong = {
            "user": "ESTSUITE_UID" not in str(service.get("user")),
            "read_only": service.get("read_only") is not True and name not in _WRITABLE,
            "cap_drop": service.get("cap_drop") != ["ALL"],
            "cap_add": bool(service.get("cap_add")),
            "no-new-privileges": "no-new-privileges:true" not in service.get("security_opt", []),
            "privileged": bool(service.get("privileged")),
            "network_mode": "network_mode" in service,
            "image": re.search(
                r":(?!latest$)[\w.-]+(@sha256:[0-9a-f]{64})?$", service.get("image", "")
            )
            is None,
            "healthcheck": "healthcheck" not in service,
        }
        findings += [f"{name}: {what}" for what, found in wrong.items() if found]
        published = service.get("ports", [])
        if published not in ([], _PUBLISHED.get(name, [])):
            findings.append(f"{name}: publishes {published}")
        for variable in service.get("environment", {}):
            if re.search(r"PASSWORD|SEED|TOKEN|PASSPHRASE", variable) and not variable.endswith(
                "_FILE"
            ):
                findings.append(f"{name}: {variable} looks like a secret")
    return findings


def compose_waits_in_order(compose: dict[str, Any]) -> list[str]:
    """Servers, the ledger's migration, the others' migrations, services; to stop, the other way."""
    services = compose["services"]
    findings = []
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            once = other in _ONCE or other.startswith("migrate-")
            wanted = "service_completed_successfully" if once else "service_healthy"
            if other not in services or how.get("condition") != wanted:
                findings.append(f"{name}: waits for {other} by {how.get('condition')}")
    for name, earlier in _order().items():
        if not earlier <= services[name].get("depends_on", {}).keys():
            findings.append(f"{name}: does not wait for {', '.join(sorted(earlier))}")
    return findings


_ONCE = ("setup", "operator")


def _order() -> dict[str, set[str]]:
    return {
        "postgres": {"setup"},
        "nats": {"setup"},
        "migrate-ca-signer": {"postgres", "nats"},
        "migrate-renewal": {"migrate-ca-signer"},
        "migrate-audit": {"migrate-ca-signer"},
        "ca-signer": {"migrate-ca-signer", "postgres", "nats"},
        "renewal": {"migrate-renewal", "postgres", "nats"},
        "audit": {"migrate-audit", "postgres", "nats"},
        "est-frontend": {"nats", "ca-signer"},
        "operator": {"ca-signer"},
        "estctl": {"operator"},
    }


def compose_secrets_are_their_own(
    compose: dict[str, Any], more: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Each container mounts the folder of its own secrets, and no other folder that has any.

    ``more`` are the secrets that a further file adds.
    """
    findings = []
    held = {*HELD, *(more or {})}
    for name, service in compose["services"].items():
        own = "ca-signer" if name == "operator" else _kind(name)
        if service.get("secrets"):
            findings.append(f"{name}: secrets come from a folder of its own")
        for volume in service.get("volumes", []) if name != "setup" else []:
            folder = _SECRETS.match(volume)
            if folder is not None:
                if folder[1] != own or folder[1] not in held:
                    findings.append(f"{name}: mounts the secrets of {folder[1]}")
                if not volume.endswith(_SECRETS_AT.get(name, (":/run/secrets:ro",))):
                    findings.append(f"{name}: {volume} is not /run/secrets, read-only")
            elif _CONFIGURATION.fullmatch(volume):
                continue
            elif volume.startswith("./deploy/compose") and not volume.startswith(_OPEN):
                findings.append(f"{name}: mounts {volume}, where keys are")
    return findings + [
        f"secrets of {name}, which is no container"
        for name in sorted(held - compose["services"].keys())
    ]


def _kind(name: str) -> str:
    """Return the service that a second or third container is of."""
    return _COPY.sub("", name)


def compose_keys_are_for_signing(
    compose: dict[str, Any], held: Mapping[str, Sequence[str]] = HELD
) -> list[str]:
    """Only what signs sees the CA key and its passphrase; migrations see their own only."""
    findings = []
    for name, service in compose["services"].items():
        folders = [f[1] for v in service.get("volumes", []) if (f := _SECRETS.match(v))]
        seen = {secret for folder in folders for secret in held.get(folder, ())}
        verb = service.get("command", [])
        signing = _SIGNING.get(_kind(name))
        signs = signing is not None and verb[: len(signing)] == signing
        if not signs:
            findings += [f"{name}: sees {secret}" for secret in sorted(seen & CA_KEYS)]
        if verb[:1] == ["migrate"]:
            findings += [
                f"{name}: sees {secret}, which a migration does not read"
                for secret in sorted(seen - CA_KEYS)
                if secret != "nats-migrate.seed" and not secret.endswith("_owner.password")  # noqa: S105
            ]
        elif name != "postgres":
            findings += [
                f"{name}: sees {secret}"
                for secret in sorted(seen)
                if "owner" in secret or "migrate" in secret
            ]
    return findings


def compose_builds_known_images(compose: dict[str, Any]) -> list[str]:
    """Every image of the suite is built once, from the Dockerfile's arguments in ``IMAGES``."""
    built: dict[str, Any] = {}
    used: set[str] = set()
    for service in compose["services"].values():
        name = service["image"].removeprefix("estsuite/").partition(":")[0]
        if service["image"].startswith("estsuite/"):
            used.add(name)
            if "build" in service:
                built[name] = service["build"]
    return [
        f"image {name} is built by {built.get(name)}"
        for name in sorted(used)
        if built.get(name) != (_build(IMAGES[name]) if name in IMAGES else _BESIDE.get(name, {}))
    ]


def _build(image: Image) -> dict[str, Any]:
    target = {"target": image.target} if image.target != "service" else {}
    return {"context": ".", **target, "args": image.arguments}


def dockerfile_findings(text: str) -> list[str]:
    """Return what is wrong with the Dockerfile."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    wanted = {
        "FROM ${BASE} AS build": "a build stage from a base that can be pinned",
        f"USER {USER_ID}:{USER_ID}": "a numeric user",
        'ENTRYPOINT ["/opt/estsuite/bin/entrypoint"]': "its command without a shell",
        "COPY --from=build /opt/estsuite /opt/estsuite": "the installation alone",
    }
    findings = [f"no {what}" for line, what in wanted.items() if line not in lines]
    tools = next((line for line in lines if "pip install" in line), "")
    for option in ("--require-hashes", "--only-binary :all:", "-r deploy/requirements-uv.txt"):
        if option not in " ".join(tools.split()):
            findings.append(f"the installation of uv has no {option}")
    if not any(line.startswith("LABEL estsuite.sbom=/opt/estsuite/") for line in lines):
        findings.append("no label names the bill of materials")
    install = next((line for line in lines if "uv sync" in line), "")
    if "deploy/estsupply/sbom.py" not in install:
        findings.append("no bill of materials is made")
    if "deploy/estsupply/strip_symbols.py" not in install:
        findings.append("libraries keep their debug information")
    for option in ("--frozen", "--no-dev", "--no-editable", '--package "$PACKAGE"'):
        if option not in install:
            findings.append(f"the installation has no {option}")
    if any("--mount" in line or "<<" in line for line in lines):
        findings.append("Docker 20.10's legacy builder knows no --mount and no here-document")
    job, service = (text.partition("AS service")[index] for index in (0, 2))
    if "HEALTHCHECK" in job or "/healthz" not in service:
        findings.append("services, and only they, have a health check of /healthz")
    return findings


def load(path: Path) -> dict[str, Any]:
    """Return docker-compose.yml as data, anchors and merges resolved."""
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def tool(*, install: bool) -> list[str] | None:
    """Return the compose command; None when there is none and none can be installed."""
    found = _find()
    if found is None and install:
        _install()
        found = _find()
    return found


def tool_findings(command: list[str], file: Path) -> list[str]:
    """Return what ``config`` says against the file."""
    done = subprocess.run(
        [*command, "-f", file, "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
        cwd=file.parent,
    )
    if done.returncode == 0:
        return []
    return done.stderr.strip().splitlines() or [f"{' '.join(command)}: exit {done.returncode}"]


def _find() -> list[str] | None:
    docker = shutil.which("docker")
    if docker is not None:
        done = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if done.returncode == 0:
            return [docker, "compose"]
    alone = shutil.which("docker-compose")
    return [alone] if alone is not None else None


def _install() -> None:
    """Try Debian's package; that it cannot be had is no finding."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", "docker-compose"],
    ):
        try:
            subprocess.run(
                [apt, *arguments], capture_output=True, check=False, env=quiet, timeout=_INSTALL_S
            )
        except subprocess.TimeoutExpired:
            return
