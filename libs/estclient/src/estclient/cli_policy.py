"""``estctl policy explain``: which rule decides for an identity and a CSR, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estcore.errors import ConfigurationError
from estcore.pki.csr import parse_csr
from estcore.pki.profile import load_profiles
from estcore.policy.document import load_policy
from estcore.policy.explain import Question
from estcore.policy.explain import explain as explain_decision
from estcore.policy.groups import check_labels_exist, load_groups
from estcore.runtime.command_line import PATH, Group
from estcore.runtime.terminal import write_line

policy = Group("policy")


@policy.command("explain", one_of=("secret", "user", "certificate", "claims"))
@click.option("--policy", "policy_file", type=PATH, required=True, help="Policy file.")
@click.option("--profiles", type=PATH, help="Profiles file, to check the CSR against its profile.")
@click.option(
    "--signer-config", type=PATH, help="Settings of ca-signer, to check its groups of front ends."
)
@click.option("--group", default="default", help="Group of the front end.")
@click.option("--label", help="Label; none is the default label.")
@click.option("--operation", default="simpleenroll", help="EST operation.")
@click.option("--csr", type=PATH, help="Certificate request, PEM or DER.")
@click.option("--secret", metavar="ID", help="Identity: id of an enrollment secret.")
@click.option("--user", help="Identity: user with a password.")
@click.option("--certificate", type=PATH, help="Identity: certificate, PEM; with --issuer.")
@click.option("--claims", type=PATH, help="Identity: payload of a token, JSON; with --issuer.")
@click.option("--issuer", help="Id of the issuer, truststore or token issuer.")
def explain(
    policy_file: Path,
    profiles: Path | None,
    signer_config: Path | None,
    group: str,
    label: str | None,
    operation: str,
    csr: Path | None,
    **identity: Any,
) -> int:
    """Print which rule decides for an identity, and why.

    With --profiles and --signer-config it says what the services would say.

    Exit code 0: the request is allowed; 1: it is not.
    """
    document = load_policy(policy_file)
    profile_set = load_profiles(profiles) if profiles else None
    request = None if csr is None else parse_csr(_csr(csr))
    groups = None
    if signer_config is not None:
        groups = load_groups(signer_config)
        # Neither service starts, or takes a change over, when these do not fit.
        check_labels_exist(groups, document.labels)
    question = _question(identity, label=label, operation=operation, csr=request, group=group)
    decision = explain_decision(document, question, profile_set, groups)
    for step in decision.steps:
        write_line(step)
    return 0 if decision.allowed else 1


def _question(identity: dict[str, Any], **shared: Any) -> Question:
    if identity["secret"] is not None:
        return Question(method="secret", name=identity["secret"], **shared)
    if identity["user"] is not None:
        return Question(method="password", name=identity["user"], **shared)
    if identity["issuer"] is None:
        raise ConfigurationError("--issuer says whose certificate or token it is")
    name = f"{identity['issuer']}/"
    if identity["certificate"] is not None:
        subject = _certificate(identity["certificate"]).subject
        return Question(method="certificate", name=name, subject=subject, **shared)
    claims = _claims(identity["claims"])
    return Question(method="token", name=name, claims=claims, **shared)


def _claims(path: Path) -> dict[str, str | tuple[str, ...]]:
    """Return every claim that is a text or texts, by its dotted path."""
    try:
        payload = json.loads(_read(path))
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON") from exc
    claims: dict[str, str | tuple[str, ...]] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}.{key}" if place else key)
        elif isinstance(value, bool):
            claims[place] = "true" if value else "false"
        elif isinstance(value, str):
            claims[place] = value
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            claims[place] = tuple(value)

    walk(payload, "")
    return claims


def _csr(path: Path) -> bytes:
    octets = _read(path)
    if not octets.lstrip().startswith(b"-----BEGIN"):
        return octets
    try:
        return x509.load_pem_x509_csr(octets).public_bytes(Encoding.DER)
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not a CSR") from exc


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(_read(path))[0]
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not a certificate in PEM") from exc


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
