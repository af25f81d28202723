"""Keys that ca-signer makes for clients: sealed in memory, never stored or sent readable.

A generated key is in the memory of this process from its generation to its sealing, in one call.
What leaves is EnvelopedData (RFC 5652) for the recipient, inside it SignedData by this process: its
certificate has the usage id-kp-cmKGA (RFC 9480 section 2.2), and its own key is in memory only, so
another process has another certificate.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_signer.issuance.idempotency import RequestResolver
from ca_signer.model import IssuanceIntent
from ca_signer.signing.cycle import IssuanceCycle
from ca_signer.signing.internal_issuance import (
    InternalRole,
    internal_candidate,
    issue_internally,
)
from ca_signer.signing.issuers import SigningContext, SigningIssuer
from estcore.errors import IssuerUnavailable, ProfileViolation, RequestRejected
from estcore.est.cms import algorithms
from estcore.est.cms.envelope import PackageSigner, seal
from estcore.est.serverkeygen import (
    Capability,
    KeyProtection,
    certification_request,
    generated_kind,
    new_key,
    read_capabilities,
    read_keygen_request,
)
from estcore.pki.parsers import load_certificate
from estcore.pki.profile import Profile, RenewalRules
from estcore.pki.usages import KEY_GENERATION
from estcore.policy.internal_profiles import KEY_GENERATOR_PROFILE

LIFETIME = dt.timedelta(days=90)
"""Of a certificate that signs key packages: clients verify them while they fetch."""
_DEFAULT_CAPABILITIES = (
    Capability(algorithms.AES256_CBC),
    Capability(algorithms.AES256_WRAP),
    Capability(algorithms.RSAES_OAEP),
)
"""For a client that did not say what it can decrypt: AES-256, ECDH by its curve, OAEP."""


@dataclass(frozen=True)
class Recipient:
    """The certificate whose holder can open the key (DER), and its SMIMECapabilities (DER)."""

    certificate: bytes
    capabilities: bytes | None = None


@dataclass(frozen=True, repr=False)
class SealedKey:
    """EnvelopedData with a new private key, and a CSR (DER) by that key."""

    sealed: bytes
    csr: bytes


class KeyGenerator:
    """Makes and seals keys; has a certificate for each issuer, made when it is first needed."""

    def __init__(
        self,
        decision_context: SigningContext,
        resolver: RequestResolver[IssuanceIntent],
        cycle: IssuanceCycle,
    ) -> None:
        self._decision_context = decision_context
        self._resolver, self._cycle = resolver, cycle
        self._signers: dict[str, PackageSigner] = {}
        self._enrolling = asyncio.Lock()

    async def make(
        self, stored_csr: bytes, profile: Profile, recipient: Recipient, family: str
    ) -> SealedKey:
        """Return a new key of the kind of the stored CSR, for the names in it.

        Raises:
            RequestRejected: the recipient cannot open a key that is sealed as it must be.
            Unavailable: there is no certificate to sign packages with now.
        """
        signer = await self._signer(family)
        # RSA keys take up to seconds: not in the event loop.
        return await asyncio.to_thread(_make, stored_csr, profile, recipient, signer)

    async def _signer(self, family: str) -> PackageSigner:
        async with self._enrolling:
            issuer = self._decision_context.signing(family)
            signer = self._signers.get(issuer.issuer_id)
            if signer is None or self._is_old(signer):
                signer = self._signers[issuer.issuer_id] = await self._enroll(issuer.issuer_id)
            return signer

    def _is_old(self, signer: PackageSigner) -> bool:
        certificate, now = signer.certificate, self._decision_context.clock.now()
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return now - certificate.not_valid_before_utc > lifetime / 3

    async def _enroll(self, issuer_id: str) -> PackageSigner:
        issuer: SigningIssuer = self._decision_context.issuers[issuer_id]
        key = ec.generate_private_key(ec.SECP256R1())
        role = InternalRole("key-generator", f"Key generator {issuer_id}", generator_profile())
        made = internal_candidate(key, issuer, self._decision_context, role)
        try:
            octets = await issue_internally(made, self._resolver, self._cycle)
        except RequestRejected as exc:
            raise IssuerUnavailable(
                "no certificate to sign key packages with", code="keygen.signer"
            ) from exc
        return PackageSigner(x509.load_der_x509_certificate(octets), key)


def generator_profile() -> Profile:
    """Return the profile of certificates that sign key packages, which no profiles file holds."""
    profile = Profile(
        name=KEY_GENERATOR_PROFILE,
        lifetime=LIFETIME,
        key_algorithms=("ec-p256",),
        subject_attributes=("CN",),
        san_kinds=(),
        same_key="deny",
        # Its key is in memory only: it ends with the process, and another one has another.
        renewal=RenewalRules(
            reaction_time=LIFETIME / 4, overlap=LIFETIME / 4, mode="poll", expiry="expected"
        ),
    )
    return profile.model_copy(update={"extended_key_usage": (KEY_GENERATION,)})


def check_decrypts(certificate: x509.Certificate) -> None:
    """Check that a key can be sealed for the key of a certificate (RFC 5280 section 4.2.1.3).

    Raises:
        ProfileViolation: neither RSA with keyEncipherment nor EC with keyAgreement.
    """
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    key = certificate.public_key()
    transport = isinstance(key, rsa.RSAPublicKey) and usage and usage.key_encipherment
    agreement = isinstance(key, ec.EllipticCurvePublicKey) and usage and usage.key_agreement
    if not transport and not agreement:
        raise ProfileViolation(
            "a key cannot be sealed for the certificate: it is neither RSA with keyEncipherment "
            "nor EC with keyAgreement",
            code="managed.recipient",
        )


def _make(
    stored_csr: bytes, profile: Profile, recipient: Recipient, signer: PackageSigner
) -> SealedKey:
    request = read_keygen_request(stored_csr)
    certificate = load_certificate(recipient.certificate)
    protecting = certificate.public_key()
    if not isinstance(protecting, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise RequestRejected("the key named cannot encrypt", code="keygen.key_unusable")
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound as exc:
        raise RequestRejected(
            "the certificate to seal for has no key identifier", code="keygen.key_unusable"
        ) from exc
    capabilities: Sequence[Capability] = _DEFAULT_CAPABILITIES
    if recipient.capabilities is not None:
        capabilities = read_capabilities(recipient.capabilities)
    protection = KeyProtection(
        symmetric=False, key_identifier=identifier.value.digest, capabilities=tuple(capabilities)
    )
    key = new_key(generated_kind(request, profile))
    sealed = seal(key, protection=protection, protecting_key=protecting, signer=signer)
    return SealedKey(sealed, certification_request(request, key))
