"""Builder of a decision: a good request and a good context in memory, one thing changed by a test."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_signer.issuance.decision import decide
from ca_signer.issuance.decision_context import Candidate, DecisionContext
from ca_signer.issuers.generations import Generations
from ca_signer.issuers.issuer import CACertificate
from ca_signer.model import KnownCertificate
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentRequested, Principal
from estcore.pki.certificate import IssuerCertificate
from estcore.pki.keys import spki_der
from estcore.pki.names import parse_name
from estcore.pki.profile import ProfileSet, load_profiles
from estcore.policy.document import PolicyDocument
from estcore.policy.groups import GroupSettings
from estcore.testing.clock import FakeClock
from estsetup import service_settings as suite_settings

PROFILES = Path(suite_settings.__file__).parent / "examples" / "profiles.yaml"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
NOW = FakeClock().now()

POLICY: dict[str, Any] = {
    "default_label": "services",
    "labels": {
        "services": {
            "issuer": "issuing",
            "profiles": ["service-mtls", "workload"],
            "authentication": ["certificate", "secret", "token"],
        }
    },
    "rules": [
        {
            "name": "web",
            "principal": {"secret": "web"},
            "owner": {"tenant": "clinic", "service": "web"},
            "labels": ["services"],
            "profiles": ["service-mtls"],
            "names": {"common_names": ["web-*"], "dns": ["web.clinic.example"]},
        }
    ],
}


def self_issued(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    san: Sequence[str] = (),
    constraints: x509.NameConstraints | None = None,
) -> x509.Certificate:
    """Return a certificate of the key that the clock of the tests is in."""
    name = parse_name(subject)
    start, end = NOW - dt.timedelta(days=1), NOW + dt.timedelta(days=3650)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 77, start, end)
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(ski, critical=False)
    if san:
        names = x509.SubjectAlternativeName([x509.DNSName(n) for n in san])
        builder = builder.add_extension(names, critical=False)
    if constraints:
        builder = builder.add_extension(constraints, critical=True)
    return builder.sign(key, SHA256())


def csr(
    common_name: str | None = "web-1",
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    san: Sequence[str] = (),
    attributes: Sequence[tuple[x509.ObjectIdentifier, str]] = (),
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """Return the DER of a request."""
    names = [] if common_name is None else [(NameOID.COMMON_NAME, common_name)]
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in [*names, *attributes]])
    builder = x509.CertificateSigningRequestBuilder(subject)
    if san:
        entries = x509.SubjectAlternativeName([x509.DNSName(n) for n in san])
        builder = builder.add_extension(entries, critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def known(
    subject: str = "CN=web-1",
    *,
    san: Sequence[str] = (),
    key: ec.EllipticCurvePrivateKey = OTHER_KEY,
    **changes: Any,
) -> KnownCertificate:
    """Return what the ledger has on a live certificate of the owner."""
    certificate = self_issued(subject, key, san=san)
    der = certificate.public_bytes(Encoding.DER)
    values: dict[str, Any] = {
        "issuance_id": "i-1",
        "fingerprint": sha256(der).digest(),
        "issuer_id": "issuing",
        "serial_number": 77,
        "tenant": "clinic",
        "service": "web",
        "profile": "service-mtls",
        "slot_id": "slot-1",
        "spki_sha256": sha256(spki_der(key.public_key())).digest(),
        "not_after": NOW + dt.timedelta(days=9),
        "certificate": der,
    }
    return KnownCertificate(**(values | changes))


@cache
def _profiles() -> ProfileSet:
    return load_profiles(PROFILES)


@dataclass
class DecisionCase:
    """A first enrollment that is granted; tests change one field.

    ``label``, ``rule``, ``profile`` and ``group`` replace fields of what the signer has configured.
    """

    request: bytes = field(default_factory=csr)
    message: dict[str, Any] = field(default_factory=dict)
    principal: dict[str, Any] = field(default_factory=dict)
    topic: str | None = None
    known: KnownCertificate | None = None
    latest: Sequence[KnownCertificate] | None = None
    label: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    group: dict[str, Any] = field(default_factory=dict)
    generations: Generations = field(default_factory=Generations)
    constraints: x509.NameConstraints | None = None
    issuer_id: str = "issuing"
    without_profile: bool = False
    after: dt.timedelta = dt.timedelta(0)

    def context(self) -> DecisionContext:
        """Return the signer's own inputs."""
        label = POLICY["labels"]["services"] | self.label
        rule = POLICY["rules"][0] | self.rule
        policy = POLICY | {"labels": {"services": label, "spare": label}, "rules": [rule]}
        profiles = _profiles()
        changed = {
            name: p.model_copy(update=self.profile) if name == "service-mtls" else p
            for name, p in profiles.profiles.items()
            if name != "service-mtls" or not self.without_profile
        }
        certificate = self_issued("CN=Issuing", ISSUER_KEY, constraints=self.constraints)
        issuer = CACertificate(IssuerCertificate(self.issuer_id, certificate), [certificate])
        clock = FakeClock()
        clock.forward(seconds=self.after.total_seconds())
        group = {"labels": ["services"], "profiles": ["service-mtls", "workload"]} | self.group
        return DecisionContext(
            policy=PolicyDocument.model_validate(policy),
            profiles=ProfileSet(profiles=changed, version="test"),
            issuers={self.issuer_id: issuer},
            groups={"default": GroupSettings.model_validate(group)},
            clock=clock,
            sign_within=dt.timedelta(minutes=5),
            generations=self.generations,
        )

    def sent(self) -> EnrollmentRequested:
        """Return the request as a front end sends it."""
        principal = {"method": "secret", "name": "web"} | self.principal
        values: dict[str, Any] = {
            "id": "r-1",
            "source": "est-frontend/test",
            "time": NOW,
            "correlation_id": "c-1",
            "operation": "simpleenroll",
            "label": "services",
            "group": "default",
            "instance": "front",
            "issuer": "issuing",
            "priority": "normal",
            "principal": Principal.model_validate(principal),
            "csr": self.request,
        }
        return EnrollmentRequested.model_validate(values | self.message)

    def decide(self) -> Candidate:
        """Return the candidate of the cycle."""
        sent = self.sent()
        topic = self.topic or topics.request_topic(sent.group, sent.issuer, sent.priority)
        return decide(sent, topic, self.context(), self.known, self.latest)


def renewal(predecessor: KnownCertificate | None, **changes: Any) -> DecisionCase:
    """Return a re-enrollment of the certificate by the certificate; tests change one field."""
    der = (predecessor or known()).certificate
    case = DecisionCase(
        message={"operation": "simplereenroll"},
        principal={
            "method": "certificate",
            "name": "issuing/CN=web-1",
            "certificate": der,
            "certificate_issuer": "issuing",
        },
        known=predecessor,
    )
    for name, value in changes.items():
        before = getattr(case, name)
        merged = before | value if isinstance(before, dict) else value
        setattr(case, name, merged)
    return case
