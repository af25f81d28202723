"""Trust anchors and credentials of an issuer, read from Secrets and ConfigMaps at each use.

A replaced Secret counts from the next request on. Nothing of it is kept, logged, or part of a
message: messages name the Secret and its key.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from est_issuer.api import KubernetesAPI
from est_issuer.errors import APIRefused, IssuerUnusable, ObjectMissing
from est_issuer.issuer_spec import Credentials, IssuerSpec, KeyReference
from est_issuer.kinds import CONFIG_MAPS, SECRETS, Key, Resource
from estclient.est.client import ESTClient, Limits
from estcore.errors import ConfigurationError
from estcore.pki.parsers import PARSER_ERRORS

_BUNDLE_LIMIT = 256 * 1024
_LONGEST = 8192
_FORBIDDEN = 403
ROLE = "est-issuer-secrets"
"""The ClusterRole that lets the controller read Secrets where it is bound."""


@dataclass(frozen=True)
class Certificate:
    """A client certificate with its key: PEM, as in a Secret of type kubernetes.io/tls."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Connection:
    """How to reach an EST server: its anchors (PEM), and one credential or none."""

    url: str
    label: str | None
    trust: bytes
    basic: tuple[str, str] | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    certificate: Certificate | None = None

    def client(self, timeout_s: float) -> ESTClient:
        """Return a client that tries once and does not wait: the caller asks again.

        Raises:
            IssuerUnusable: the trust anchors, or certificate and key, cannot be used.
        """
        limits = Limits(timeout_s=timeout_s, attempts=1, pending_limit_s=0)
        # The TLS library reads a key from a file only; it is gone when the client is made.
        with tempfile.TemporaryDirectory(prefix="est-issuer-") as folder:
            files = _written(Path(folder), self.certificate) if self.certificate else None
            try:
                return ESTClient(
                    self.url,
                    trust=self.trust,
                    label=self.label,
                    credential=files,
                    secret=self.basic,
                    token=self.token,
                    limits=limits,
                )
            except (ConfigurationError, UnicodeError) as exc:
                what = "certificate and key do not fit together" if files else "trust anchors"
                raise IssuerUnusable("InvalidCredentials", f"cannot be used: {what}") from exc


def _written(folder: Path, certificate: Certificate) -> tuple[Path, Path]:
    chain, key = folder / "tls.crt", folder / "tls.key"
    for path, octets in ((chain, certificate.chain), (key, certificate.key)):
        path.touch(mode=0o600)
        path.write_bytes(octets)
    return chain, key


class References:
    """Reads what the spec of an issuer refers to, in one namespace."""

    def __init__(self, api: KubernetesAPI, namespace: str) -> None:
        self._api, self._namespace = api, namespace

    async def connection(self, spec: IssuerSpec) -> Connection:
        """Return how to reach the server of an issuer.

        Raises:
            IssuerUnusable: an object or a key of it is missing, may not be read, or is wrong.
            APIUnavailable: the Kubernetes API does not answer.
        """
        trust = await self._trust(spec)
        plain = Connection(spec.url.rstrip("/"), spec.label, trust)
        return await self._with_credential(plain, spec.credentials)

    async def secret(self, name: str, *keys: str) -> list[bytes]:
        """Return values of a Secret.

        Raises:
            IssuerUnusable: the Secret or a key is missing, or may not be read.
            APIUnavailable: the Kubernetes API does not answer.
        """
        return await self._read(SECRETS, name, keys)

    async def _trust(self, spec: IssuerSpec) -> bytes:
        trust = spec.trust
        if trust.ca_bundle is not None:
            return checked_anchors(_decoded(trust.ca_bundle, "spec.trust.caBundle"))
        reference, resource = _chosen(spec)
        (pem,) = await self._read(resource, reference.name, (reference.key,))
        return checked_anchors(pem, f"{resource.kind} {reference.name}, key {reference.key}")

    async def _with_credential(self, plain: Connection, wanted: Credentials) -> Connection:
        if wanted.basic is not None:
            name = wanted.basic.secret_ref.name
            user, secret = await self.secret(name, "username", "password")
            pair = _text(user, name, "username"), _text(secret, name, "password")
            if ":" in pair[0]:
                raise IssuerUnusable(
                    "InvalidCredentials", f"Secret {name}: username has a colon (RFC 7617)"
                )
            return Connection(plain.url, plain.label, plain.trust, basic=pair)
        if wanted.token is not None:
            reference = wanted.token.secret_ref
            (token,) = await self.secret(reference.name, reference.key)
            text = _text(token, reference.name, reference.key)
            return Connection(plain.url, plain.label, plain.trust, token=text)
        if wanted.pod_token is not None:
            return plain  # each request brings its own: est_issuer.pods
        if wanted.client_certificate is None:
            raise IssuerUnusable("InvalidSpec", "spec.credentials is empty")
        name = wanted.client_certificate.secret_ref.name
        chain, key = await self.secret(name, "tls.crt", "tls.key")
        certificate = checked_certificate(Certificate(chain, key), name)
        return Connection(plain.url, plain.label, plain.trust, certificate=certificate)

    async def _read(self, resource: Resource, name: str, keys: tuple[str, ...]) -> list[bytes]:
        where = f"{resource.kind} {self._namespace}/{name}"
        try:
            found = await self._api.get(resource, Key(self._namespace, name))
        except ObjectMissing as exc:
            raise IssuerUnusable(f"{resource.kind}NotFound", f"there is no {where}") from exc
        except APIRefused as exc:
            if exc.status != _FORBIDDEN:
                raise
            remedy = f"bind the ClusterRole {ROLE} to it in namespace {self._namespace}"
            raise IssuerUnusable("Forbidden", f"est-issuer may not read {where}: {remedy}") from exc
        data: Mapping[str, str] = found.get("data") or {}
        if missing := [key for key in keys if not data.get(key)]:
            raise IssuerUnusable("KeyNotFound", f"{where} has no key {', '.join(missing)}")
        if resource == SECRETS:
            return [_decoded(data[key], f"{where}, key {key}") for key in keys]
        return [data[key].encode() for key in keys]


def _chosen(spec: IssuerSpec) -> tuple[KeyReference, Resource]:
    if spec.trust.config_map_ref is not None:
        return spec.trust.config_map_ref, CONFIG_MAPS
    if spec.trust.secret_ref is not None:
        return spec.trust.secret_ref, SECRETS
    raise IssuerUnusable("InvalidSpec", "spec.trust is empty")


def checked_anchors(pem: bytes, place: str = "spec.trust.caBundle") -> bytes:
    """Return trust anchors as PEM that has certificates and nothing beside them.

    Raises:
        IssuerUnusable: not PEM certificates, or more than 256 KiB.
    """
    if len(pem) > _BUNDLE_LIMIT:
        raise IssuerUnusable("InvalidTrust", f"{place}: more than {_BUNDLE_LIMIT} bytes")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)
    except PARSER_ERRORS as exc:
        raise IssuerUnusable("InvalidTrust", f"{place}: no certificates in PEM") from exc


def checked_certificate(certificate: Certificate, name: str) -> Certificate:
    """Return a client certificate that can be read, with a key that is not encrypted.

    An encrypted key is refused here: the TLS library would ask a terminal for its password.

    Raises:
        IssuerUnusable: certificate or key cannot be read, or they do not fit together.
    """
    try:
        first = x509.load_pem_x509_certificates(certificate.chain)[0]
        key = load_pem_private_key(certificate.key, password=None)
        same = _spki(first.public_key()) == _spki(key.public_key())
    except PARSER_ERRORS as exc:
        raise IssuerUnusable(
            "InvalidCredentials",
            f"Secret {name}: no certificate in PEM in tls.crt, or no unencrypted key in tls.key",
        ) from exc
    if not same:
        raise IssuerUnusable("InvalidCredentials", f"Secret {name}: tls.key is not of tls.crt")
    return certificate


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise IssuerUnusable("InvalidTrust", f"{place}: not base64") from exc


def _text(octets: bytes, name: str, key: str) -> str:
    """Return a value that fits into a header field."""
    text = octets.decode("utf-8", "replace").strip("\r\n")
    if not 0 < len(text) <= _LONGEST or not text.isprintable() or "\ufffd" in text:
        raise IssuerUnusable(
            "InvalidCredentials", f"Secret {name}, key {key}: not one line of text"
        )
    return text
