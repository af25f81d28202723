"""Decision inputs: policy, profiles, issuers, front-end groups; and facts of certificates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

from cryptography import x509

from ca_signer.issuers.generations import ACCEPTED, Generations
from ca_signer.issuers.issuer import CACertificate
from ca_signer.model import IssuanceIntent, KnownCertificate
from estcore.clock import Clock
from estcore.errors import IssuerUnavailable, NotAuthenticated, NotAuthorized
from estcore.messages.enrollment import EnrollmentRequested
from estcore.pki.certificate import CertificateTemplate
from estcore.pki.profile import Profile, ProfileSet
from estcore.policy.document import PolicyDocument
from estcore.policy.groups import Groups


@dataclass
class DecisionContext:
    """What the signer decides with: its own policy, profiles, issuers and group caps.

    Policy, profiles, groups and generations may be others at the next request; a decision is made
    in one go.
    """

    policy: PolicyDocument
    profiles: ProfileSet
    issuers: Mapping[str, CACertificate]
    groups: Groups
    clock: Clock
    sign_within: dt.timedelta
    generations: Generations = field(default_factory=Generations)
    templates: dict[tuple[str, str, dt.timedelta, tuple[str, ...]], CertificateTemplate] = field(
        default_factory=dict
    )

    def replace_rules(self, policy: PolicyDocument, profiles: ProfileSet, groups: Groups) -> None:
        """Decide by these from now on."""
        self.policy, self.profiles, self.groups = policy, profiles, groups
        self.templates.clear()

    @property
    def families(self) -> tuple[str, ...]:
        """What labels may name: issuers, each once for all its generations."""
        return tuple(dict.fromkeys(issuer.family for issuer in self.issuers.values()))

    def family(self, issuer_id: str) -> str:
        """Return the issuer that labels name, for one of its generations."""
        generation = self.generations.by_issuer_id.get(issuer_id)
        if generation is not None:
            return generation.family
        issuer = self.issuers.get(issuer_id)
        return issuer.family if issuer else issuer_id

    def accepts(self, issuer_id: str) -> bool:
        """Return whether certificates of this generation still identify their holders."""
        state = self.generations.state(issuer_id)
        return state in ACCEPTED if state else self.family(issuer_id) == issuer_id

    def signing(self, family: str) -> CACertificate:
        """Return the generation that signs for an issuer.

        Raises:
            IssuerUnavailable: it is not configured here, or its certificate is over.
        """
        issuer = self.issuers.get(self.generations.signing(family))
        if issuer is None or issuer.family != family:
            raise IssuerUnavailable(f"issuer {family} is not here", code="issuer.unknown")
        self.check_not_expired(issuer)
        return issuer

    @property
    def missing_issuers(self) -> list[str]:
        """Generations that ``/cacerts`` shows and that are not configured here."""
        families = {issuer.family for issuer in self.issuers.values()}
        issuer_ids = (i for family in families for i in self.generations.shown(family))
        return [issuer_id for issuer_id in issuer_ids if issuer_id not in self.issuers]

    def check_not_expired(self, issuer: CACertificate) -> None:
        """Check that the issuer's certificate is not over.

        Raises:
            IssuerUnavailable: it is.
        """
        if issuer.certificate.not_after <= self.clock.now():
            raise IssuerUnavailable(f"issuer {issuer.issuer_id} has expired", code="issuer.expired")

    def crl_urls(self) -> list[str]:
        """Return the CRL URLs of today's profiles, as written there."""
        urls = (profile.crl_url for profile in self.profiles.profiles.values())
        return [url for url in urls if url]

    def template(
        self, issuer: CACertificate, profile: Profile, cap: dt.timedelta | None = None
    ) -> CertificateTemplate:
        """Return what issuer and profile fix of a certificate; encoded at first use.

        ``cap`` is the longest lifetime a rule allows.
        """
        lifetime = profile.lifetime if cap is None else min(cap, profile.lifetime)
        usages = (*profile.key_usage, *profile.extended_key_usage)
        key = (issuer.issuer_id, profile.name, lifetime, usages)
        template = self.templates.get(key)
        if template is None:
            capped = profile if cap is None else _capped(profile, lifetime)
            template = self.templates[key] = CertificateTemplate(capped, issuer.certificate)
        return template


def _capped(profile: Profile, lifetime: dt.timedelta) -> Profile:
    reaction = min(profile.renewal.reaction_time, lifetime / 3)
    renewal = profile.renewal.model_copy(update={"reaction_time": reaction})
    return profile.model_copy(update={"lifetime": lifetime, "renewal": renewal})


@dataclass
class Candidate:
    """A request that passed the decision, with everything the cycle needs."""

    message: EnrollmentRequested
    intent: IssuanceIntent
    issuer: CACertificate
    window: dt.timedelta
    max_per_day: int | None = None
    max_active: int | None = None
    approval: bool = False
    sealed_key: bytes | None = None
    """EnvelopedData with the key that a managed renewal made, recorded with the intent."""

    @property
    def needs_own_transaction(self) -> bool:
        """It spends, counts or waits: looked at alone, in a transaction of its own."""
        counted = self.max_per_day is not None or self.max_active is not None
        return bool(self.message.claims) or counted or self.approval


def presented_fingerprint(message: EnrollmentRequested) -> bytes | None:
    """Return the SHA-256 of the certificate the client presented, if it did."""
    certificate = message.principal.certificate
    return None if certificate is None else _fingerprint(certificate)


@lru_cache(maxsize=4096)
def _fingerprint(certificate: bytes) -> bytes:
    return sha256(certificate).digest()


@lru_cache(maxsize=4096)
def parsed(certificate: bytes) -> x509.Certificate:
    """Return a certificate of the ledger, parsed once."""
    return x509.load_der_x509_certificate(certificate)


def live_certificate(
    certificate: KnownCertificate | None, decision_context: DecisionContext
) -> KnownCertificate:
    """Return the facts of a presented certificate that may act now.

    Raises:
        NotAuthorized: the ledger does not know it.
        NotAuthenticated: it has expired.
    """
    if certificate is None:
        raise NotAuthorized(
            "the presented certificate is not in the ledger", code="auth.certificate_unknown"
        )
    if certificate.not_after < decision_context.clock.now():
        raise NotAuthenticated(
            "the presented certificate has expired", code="auth.certificate_expired"
        )
    if not decision_context.accepts(certificate.issuer_id):
        raise NotAuthenticated(
            "the issuer of the presented certificate is retired", code="auth.certificate_retired"
        )
    return certificate
