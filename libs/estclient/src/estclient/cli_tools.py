"""Verbs of ``estctl`` that need no running suite: passwords, policy, the first trust."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estclient.est.bootstrap import Found, fetch, pin
from estcore.errors import ConfigurationError
from estcore.est.http_digest import DIGESTS, verifier
from estcore.pki.csr import parse_csr
from estcore.pki.names import display_name
from estcore.pki.profile import load_profiles
from estcore.policy.document import load_policy
from estcore.policy.explain import Question, explain
from estcore.runtime.service import executable
from estcore.runtime.settings import read_secret

_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_SHORTEST = 12
Verbs = Any
"""What ``add_subparsers`` returns; argparse keeps its class to itself."""


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs to the parser."""
    password = verbs.add_parser("password", help="verifiers of a password, for users_file")
    password.add_argument("--user", required=True)
    password.add_argument("--password-file", type=Path, help="default: ask, or read a pipe")
    password.add_argument("--digest", action="store_true", help="for HTTP Digest as well")
    password.add_argument("--realm", default="est", help="digest.realm of the front ends")
    policy = verbs.add_parser("policy", help="what a policy file decides")
    kinds = policy.add_subparsers(dest="check", required=True)
    asked = kinds.add_parser("explain", help="which rule decides for an identity, and why")
    asked.add_argument("--policy", type=Path, required=True)
    asked.add_argument("--profiles", type=Path, help="check the CSR against its profile too")
    asked.add_argument("--label", help="default: the default label")
    asked.add_argument("--operation", default="simpleenroll")
    asked.add_argument("--csr", type=Path, help="PEM or DER")
    who = asked.add_mutually_exclusive_group(required=True)
    who.add_argument("--secret", metavar="ID")
    who.add_argument("--user")
    who.add_argument("--certificate", type=Path, help="PEM; with --issuer")
    who.add_argument("--claims", type=Path, help="payload of a token, JSON; with --issuer")
    asked.add_argument("--issuer", help="id of the issuer, truststore or token issuer")
    secret = verbs.add_parser(
        "secret", help="enrollment secrets, beside the ledger: ca-signer secret", add_help=False
    )
    secret.add_argument("rest", nargs=argparse.REMAINDER)
    first = verbs.add_parser("bootstrap", help="fetch and pin a root nobody knows here yet")
    first.add_argument("--url", required=True, help="https://host[:port]")
    first.add_argument("--label")
    first.add_argument("--out", type=Path, required=True, help="where the root is pinned, PEM")
    first.add_argument("--fingerprint", help="SHA-256 of the root, by another way than this one")


def run_secret(arguments: argparse.Namespace) -> None:
    """Become ``ca-signer secret``: a secret never travels, so it is made where the ledger is.

    Raises:
        ConfigurationError: ca-signer is not installed here.
    """
    command = executable("ca-signer")
    os.execv(command, [command, "secret", *arguments.rest])  # noqa: S606 - no shell


def run_password(arguments: argparse.Namespace) -> None:
    """Print the user's entry for ``users_file``.

    Raises:
        ConfigurationError: no password, or a short one.
    """
    password = _password(arguments.password_file)
    if len(password) < _SHORTEST:
        raise ConfigurationError(f"a password has {_SHORTEST} characters or more")
    entry: dict[str, Any] = {"argon2id": _HASHER.hash(password)}
    if arguments.digest:
        entry["digest"] = {
            name: verifier(arguments.user, arguments.realm, password, name) for name in DIGESTS
        }
    sys.stdout.write(yaml.safe_dump({"users": {arguments.user: entry}}))


def _password(file: Path | None) -> str:
    if file is not None:
        return read_secret(file, "the password")
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigurationError("the two differ")
    return first


def run_explain(arguments: argparse.Namespace) -> int:
    """Print how the policy decides; 0 when it allows."""
    policy = load_policy(arguments.policy)
    profiles = load_profiles(arguments.profiles) if arguments.profiles else None
    found = explain(policy, _question(arguments), profiles)
    for step in found.steps:
        sys.stdout.write(step + "\n")
    return 0 if found.allowed else 1


def _question(arguments: argparse.Namespace) -> Question:
    shared = {
        "label": arguments.label,
        "operation": arguments.operation,
        "csr": None if arguments.csr is None else parse_csr(_csr(arguments.csr)),
    }
    if arguments.secret is not None:
        return Question(method="secret", name=arguments.secret, **shared)
    if arguments.user is not None:
        return Question(method="password", name=arguments.user, **shared)
    if arguments.issuer is None:
        raise ConfigurationError("--issuer says whose certificate or token it is")
    name = f"{arguments.issuer}/"
    if arguments.certificate is not None:
        subject = _certificate(arguments.certificate).subject
        return Question(method="certificate", name=name, subject=subject, **shared)
    claims = _claims(arguments.claims)
    return Question(method="token", name=name, claims=claims, **shared)


def _claims(path: Path) -> dict[str, str | tuple[str, ...]]:
    """Return every claim that is a text or texts, by its dotted path."""
    try:
        payload = json.loads(_read(path))
    except ValueError as exc:
        raise ConfigurationError(f"{path} is not JSON") from exc
    found: dict[str, str | tuple[str, ...]] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}.{key}" if place else key)
        elif isinstance(value, bool):
            found[place] = "true" if value else "false"
        elif isinstance(value, str):
            found[place] = value
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            found[place] = tuple(value)

    walk(payload, "")
    return found


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


async def run_bootstrap(arguments: argparse.Namespace) -> None:
    """Fetch the root, have it compared, pin it.

    Raises:
        ConfigurationError: not the fingerprint given, or a person said no.
    """
    wanted = None if arguments.fingerprint is None else _plain(arguments.fingerprint)
    found = await fetch(arguments.url, arguments.label, wanted)
    _show(found)
    if wanted is None:
        _ask()
    elif wanted != found.root_fingerprint:
        raise ConfigurationError(
            "the root is not the one with this fingerprint", code="bootstrap.fingerprint"
        )
    await pin(found, arguments.url, arguments.label, arguments.out)
    sys.stdout.write(f"pinned in {arguments.out}\n")


def _show(found: Found) -> None:
    sys.stdout.write(f"server certificate  {display_name(found.server.subject)}\n")
    sys.stdout.write(f"  SHA-256  {_grouped(found.server_fingerprint)}\n")
    sys.stdout.write(f"root certificate    {display_name(found.root.subject)}\n")
    sys.stdout.write(f"  SHA-256  {_grouped(found.root_fingerprint)}\n")
    sys.stdout.flush()


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "nobody can compare here: give --fingerprint", code="bootstrap.fingerprint"
        )
    sys.stdout.write("Compare with what you were told by phone or on paper. Type yes to trust: ")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != "yes":
        raise ConfigurationError("not trusted, nothing was pinned", code="bootstrap.fingerprint")


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c in "0123456789abcdef")


def _grouped(fingerprint: str) -> str:
    return ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2)).upper()
