"""What a request asks for, read from a CertificateRequest or a CertificateSigningRequest (pure).

Only requests to an issuer of our kinds that an approver approved, and that have no outcome yet, are
processed. One that can never be granted is refused here, before any EST server is asked.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from est_issuer import usages as usage_names
from est_issuer.conditions import (
    APPROVED,
    DENIED,
    FAILED,
    ISSUED,
    READY,
    conditions_of,
    find,
    is_true,
)
from est_issuer.durations import parse_duration
from est_issuer.errors import InvalidRequest
from est_issuer.kinds import (
    CLUSTER_ISSUERS,
    GROUP,
    ISSUER_KINDS,
    ISSUERS,
    Key,
    Resource,
)
from estcore.pki.parsers import PARSER_ERRORS

Step = Literal["ignore", "deny", "issue"]
CERTIFICATE_NAME = "cert-manager.io/certificate-name"
_CSR_LIMIT = 64 * 1024
_FINAL = {FAILED, ISSUED, DENIED}


@dataclass(frozen=True)
class IssuerReference:
    """Which issuer is asked: its kind, and where it is."""

    resource: Resource
    key: Key


@dataclass(frozen=True)
class Request:
    """A certificate request that may be sent to an EST server.

    ``certificate_name``: the Certificate of cert-manager it belongs to, if any.
    """

    csr: x509.CertificateSigningRequest
    usages: tuple[str, ...]
    duration: dt.timedelta | None
    certificate_name: str | None = None

    @property
    def der(self) -> bytes:
        """The certification request (PKCS #10) as DER."""
        return self.csr.public_bytes(Encoding.DER)


def issuer_of_request(found: dict[str, Any]) -> IssuerReference | None:
    """Return the issuer of a CertificateRequest; None where it is not of our group and kinds."""
    reference = found["spec"].get("issuerRef") or {}
    resource = ISSUER_KINDS.get(reference.get("kind", ""))
    if reference.get("group") != GROUP or resource is None:
        return None
    namespace = found["metadata"]["namespace"] if resource.namespaced else ""
    return IssuerReference(resource, Key(namespace, reference.get("name", "")))


def issuer_of_signer(signer: str) -> IssuerReference | None:
    """Return the issuer that a ``signerName`` names; None where it is not one of ours.

    As cert-manager writes it: ``estissuers.<group>/<namespace>.<name>`` and
    ``estclusterissuers.<group>/<name>``.
    """
    kind, _, name = signer.partition("/")
    if kind == f"{CLUSTER_ISSUERS.plural}.{GROUP}" and name:
        return IssuerReference(CLUSTER_ISSUERS, Key("", name))
    namespace, _, name = name.partition(".")
    if kind == f"{ISSUERS.plural}.{GROUP}" and namespace and name:
        return IssuerReference(ISSUERS, Key(namespace, name))
    return None


def next_step(found: dict[str, Any]) -> Step:
    """Return what is to be done with a CertificateRequest of ours."""
    status, conditions = found.get("status") or {}, conditions_of(found)
    if found["metadata"].get("deletionTimestamp") or status.get("certificate"):
        return "ignore"
    if find(conditions, READY).get("reason") in _FINAL:
        return "ignore"
    # Denied first: the API refuses both together, and if it ever did not, nothing is issued.
    if find(conditions, DENIED):
        return "deny"
    return "issue" if is_true(conditions, APPROVED) else "ignore"


def next_signing_step(found: dict[str, Any]) -> Step:
    """Return what is to be done with a CertificateSigningRequest of ours."""
    status, conditions = found.get("status") or {}, conditions_of(found)
    final = find(conditions, DENIED) or find(conditions, FAILED)
    if final or status.get("certificate") or found["metadata"].get("deletionTimestamp"):
        return "ignore"
    return "issue" if is_true(conditions, APPROVED) else "ignore"


def read_request(found: dict[str, Any]) -> Request:
    """Return what a CertificateRequest asks for.

    Raises:
        InvalidRequest: a CA certificate is asked for, or the request cannot be read.
    """
    spec, annotations = found["spec"], found["metadata"].get("annotations") or {}
    if spec.get("isCA"):
        raise InvalidRequest("isCA: an EST server issues no CA certificates; remove isCA")
    name = annotations.get(CERTIFICATE_NAME)
    duration = parse_duration(spec.get("duration"))
    return _checked(spec, duration, str(name) if name else None)


def read_signing_request(found: dict[str, Any]) -> Request:
    """Return what a CertificateSigningRequest asks for.

    Raises:
        InvalidRequest: a CA certificate is asked for, or the request cannot be read.
    """
    seconds = found["spec"].get("expirationSeconds")
    duration = dt.timedelta(seconds=seconds) if isinstance(seconds, int) else None
    return _checked(found["spec"], duration, None)


def _checked(spec: dict[str, Any], duration: dt.timedelta | None, name: str | None) -> Request:
    usages = tuple(str(u) for u in spec.get("usages") or ())
    if refused := usage_names.of_a_ca(usages):
        raise InvalidRequest(
            f"usages {', '.join(refused)}: an EST server issues no CA certificates"
        )
    csr = parse_csr(spec.get("request"))
    if _is_ca(csr):
        raise InvalidRequest("spec.request asks for a CA certificate (basicConstraints CA:TRUE)")
    return Request(csr, usages, duration, name)


def parse_csr(text: object, place: str = "spec.request") -> x509.CertificateSigningRequest:
    """Return the CSR in a field of the API: base64 of PEM, or of DER.

    Raises:
        InvalidRequest: it is none, is larger than 64 KiB, or its signature is wrong.
    """
    if not isinstance(text, str) or not 0 < len(text) <= _CSR_LIMIT:
        raise InvalidRequest(f"{place} is empty or has more than {_CSR_LIMIT} characters")
    try:
        octets = base64.b64decode(text, validate=True)
        der = octets[:1] == b"\x30"
        csr = x509.load_der_x509_csr(octets) if der else x509.load_pem_x509_csr(octets)
        good = csr.is_signature_valid
    except PARSER_ERRORS as exc:
        raise InvalidRequest(f"{place} is no PKCS #10 certification request") from exc
    if not good:
        raise InvalidRequest(f"{place}: the signature is not by the key in it")
    return csr


def san_of(found: x509.CertificateSigningRequest | x509.Certificate) -> frozenset[x509.GeneralName]:
    """Return the subject alternative names, as a set.

    Raises:
        ValueError: the extension cannot be read.
    """
    try:
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    except PARSER_ERRORS as exc:
        raise ValueError("the subject alternative names cannot be read") from exc
    return frozenset(extension.value)


def names_text(names: Sequence[x509.GeneralName] | frozenset[x509.GeneralName]) -> str:
    """Return names for people, sorted."""
    return ", ".join(sorted(str(getattr(name, "value", name)) for name in names))


def _is_ca(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except PARSER_ERRORS as exc:
        raise InvalidRequest("an extension in spec.request cannot be read") from exc
