"""Certificates: TBS filled into a template, linted as a copy, assembled with the signature.

The lint copy carries a signature of a throw-away key of the issuer's kind: it parses like the
real certificate, and its TBS are the exact bytes the real key signs later (docs/adr/0004).
Nothing here holds a real key.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificateIssuerPublicKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from estcore.pki import crl_shards
from estcore.pki import der as der_codec
from estcore.pki.crl_shards import Partition, partition_of
from estcore.pki.csr import CertificationRequest
from estcore.pki.csr_structure import SAN_OID
from estcore.pki.keys import spki_der
from estcore.pki.profile import Profile
from estcore.pki.usages import OCSP_SIGNING, usage_oid

_CURVE_HASHES: dict[int, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    256: hashes.SHA256,
    384: hashes.SHA384,
    521: hashes.SHA512,
}
SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_BASIC_CONSTRAINTS = x509.BasicConstraints(ca=False, path_length=None)


@dataclass(frozen=True)
class IssuerCertificate:
    """The issuer as certificates name it."""

    issuer_id: str
    certificate: x509.Certificate
    crl_partitions: int = 1
    """Number of CRL shards; new certificates point to theirs. 1: one complete CRL."""

    @cached_property
    def subject(self) -> x509.Name:
        """The issuer_name that goes into certificates."""
        return self.certificate.subject

    @cached_property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """The AKI extension: the issuer's own SKI (RFC 5280 section 4.2.1.1)."""
        ski = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski.value)

    @cached_property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key that verifies what this issuer signs."""
        return self.certificate.public_key()  # type: ignore[return-value] # a CA's key can sign

    @cached_property
    def not_after(self) -> dt.datetime:
        """End of the issuer's validity."""
        return self.certificate.not_valid_after_utc

    @cached_property
    def subject_der(self) -> bytes:
        """The issuer_name as encoded."""
        return self.subject.public_bytes()

    @cached_property
    def spki(self) -> bytes:
        """The issuer's SubjectPublicKeyInfo."""
        return spki_der(self.public_key)

    @cached_property
    def der(self) -> bytes:
        """The issuer's own certificate."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True)
class LintCopy:
    """A certificate signed by a throw-away key: everything but the signature is final."""

    certificate: x509.Certificate
    tbs: bytes
    signature_algorithm: bytes


def signing_hash(public_key: CertificatePublicKeyTypes) -> SigningHash | None:
    """Return the hash an issuer key signs with; None where the scheme has its own (Ed25519)."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _CURVE_HASHES[public_key.curve.key_size]()
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return None
    return hashes.SHA256()


def throw_away_key(public_key: CertificatePublicKeyTypes) -> CertificateIssuerPrivateKeyTypes:
    """Return a new private key of the same kind as ``public_key``, for lint copies only."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(public_key.curve)
    if isinstance(public_key, rsa.RSAPublicKey):
        return rsa.generate_private_key(65537, public_key.key_size)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return ed25519.Ed25519PrivateKey.generate()
    raise TypeError(f"no issuer has a key like {type(public_key).__name__}")


def throw_away_key_like(
    public_key: CertificatePublicKeyTypes,
) -> CertificateIssuerPrivateKeyTypes:
    """Return a throw-away key of the same kind, made once per kind and size."""
    size = getattr(public_key, "key_size", 0)
    key = _THROW_AWAY.get((type(public_key).__name__, size))
    if key is None:
        key = throw_away_key(public_key)
        _THROW_AWAY[type(public_key).__name__, size] = key
    return key


_THROW_AWAY: dict[tuple[str, int], CertificateIssuerPrivateKeyTypes] = {}


class CertificateTemplate:
    """Everything of a certificate that one profile and one issuer fix, encoded once.

    What differs from one certificate to the next is filled in as DER; that costs a tenth of a
    builder's work and gives the same octets (a property test compares them).
    """

    def __init__(self, profile: Profile, issuer: IssuerCertificate) -> None:
        self.profile = profile
        self.issuer = issuer
        lint_certificate = _model(issuer, throw_away_key(issuer.public_key))
        _, self.signature_algorithm, self._signature = der_codec.children(
            lint_certificate.public_bytes(Encoding.DER)
        )
        self._issuer_name = issuer.subject_der
        self._before_ski: list[tuple[x509.ExtensionType, bool]] = [
            (_BASIC_CONSTRAINTS, True),
            (key_usage(profile), True),
            (x509.ExtendedKeyUsage([usage_oid(n) for n in profile.extended_key_usage]), False),
        ]
        self._after_san: list[tuple[x509.ExtensionType, bool]] = []
        self._in_parts = crl_shards.PLACEHOLDER in (profile.crl_url or "")
        self._tails: dict[Partition, bytes] = {}
        if profile.crl_url and not self._in_parts:
            url = crl_shards.filled(profile.crl_url, issuer.issuer_id)
            self._after_san.append((_crl_distribution(url), False))
        access = _information_access(profile, issuer.issuer_id)
        if access is not None:
            self._after_san.append((access, False))
        if OCSP_SIGNING in profile.extended_key_usage:
            # RFC 6960 section 4.2.2.2.1: the responder's own certificate is not checked.
            self._after_san.append((x509.OCSPNoCheck(), False))
        self._after_san += _further(profile)
        self._head = b"".join(_extension(e, critical=c) for e, c in self._before_ski)
        self._aki = _extension(issuer.key_identifier, critical=False)
        self._tail = b"".join(_extension(e, critical=c) for e, c in self._after_san)
        fixed = [*self._before_ski, (issuer.key_identifier, False), *self._after_san]
        self._fixed = {e.oid: ((e, c), _extension(e, critical=c)) for e, c in fixed}

    def validity(self, now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
        """Return (notBefore, notAfter): the lifetime counts from ``now``, capped by the issuer."""
        start = now.replace(microsecond=0)
        after = min(start + self.profile.lifetime, self.issuer.not_after)
        return start - self.profile.backdating, after

    def build(
        self, request: CertificationRequest, *, serial_number: int, now: dt.datetime
    ) -> LintCopy:
        """Return the lint copy for ``request`` (RFC 5280 section 4)."""
        before, after = self.validity(now)
        request.require_readable(SAN_OID)
        san = request.san_extension
        # RFC 5280 section 4.2.1.6: critical when the subject is empty.
        names = _extension(san, critical=not request.subject.rdns) if san else b""
        extensions = der_codec.tlv(
            der_codec.SEQUENCE,
            self._head,
            _octets_extension(_SKI_OID, der_codec.tlv(0x04, key_identifier(request.spki))),
            self._aki,
            names,
            self._tail_of(serial_number),
        )
        tbs = der_codec.tlv(
            der_codec.SEQUENCE,
            _VERSION_3,
            _integer(serial_number),
            self.signature_algorithm,
            self._issuer_name,
            der_codec.tlv(der_codec.SEQUENCE, _time(before), _time(after)),
            request.subject_der,
            request.spki,
            der_codec.tlv(0xA3, extensions),
        )
        der = der_codec.tlv(der_codec.SEQUENCE, tbs, self.signature_algorithm, self._signature)
        return LintCopy(x509.load_der_x509_certificate(der), tbs, self.signature_algorithm)

    def _tail_of(self, serial_number: int) -> bytes:
        if not self._in_parts:
            return self._tail
        part = partition_of(serial_number, self.issuer.crl_partitions)
        tail = self._tails.get(part)
        if tail is None:
            point = _extension(self._point(part), critical=False)
            tail = self._tails[part] = point + self._tail
        return tail

    def _point(self, part: Partition) -> x509.CRLDistributionPoints:
        url = crl_shards.filled(self.profile.crl_url or "", self.issuer.issuer_id, part)
        return _crl_distribution(url)

    def extensions(
        self, request: CertificationRequest, serial_number: int
    ) -> list[tuple[x509.ExtensionType, bool]]:
        """Return the exact extensions a certificate must have, in order, with criticality."""
        extensions = [
            *self._before_ski,
            (x509.SubjectKeyIdentifier(key_identifier(request.spki)), False),
            (self.issuer.key_identifier, False),
        ]
        san = request.san_extension
        if san is not None:
            extensions.append((san, not request.subject.rdns))
        if self._in_parts:
            part = partition_of(serial_number, self.issuer.crl_partitions)
            extensions.append((self._point(part), False))
        return [*extensions, *self._after_san]

    def encode_extensions(self, extensions: list[tuple[x509.ExtensionType, bool]]) -> bytes:
        """Return the extensions field of TBS bytes as DER writes ``extensions``.

        Extensions equal to the fixed ones have the fixed ones' octets, encoded once.
        """
        encoded = (self._encoded(extension, critical) for extension, critical in extensions)
        return der_codec.tlv(0xA3, der_codec.tlv(der_codec.SEQUENCE, *encoded))

    def _encoded(self, extension: x509.ExtensionType, critical: bool) -> bytes:
        fixed = self._fixed.get(extension.oid)
        if fixed is not None and fixed[0] == (extension, critical):
            return fixed[1]
        return _extension(extension, critical=critical)


_VERSION_3 = bytes.fromhex("a003020102")
_SKI_OID = bytes.fromhex("0603551d0e")
_TRUE = bytes.fromhex("0101ff")


def _model(issuer: IssuerCertificate, key: CertificateIssuerPrivateKeyTypes) -> x509.Certificate:
    # Its AlgorithmIdentifier and the shape of its signature are those of the issuer's kind.
    builder = x509.CertificateBuilder(
        issuer_name=issuer.subject,
        subject_name=issuer.subject,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=issuer.certificate.not_valid_before_utc,
        not_valid_after=issuer.not_after,
    )
    return builder.sign(key, signing_hash(key.public_key()))


def _extension(extension: x509.ExtensionType, *, critical: bool) -> bytes:
    return _octets_extension(
        _encode_oid(extension.oid), extension.public_bytes(), critical=critical
    )


def _octets_extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return der_codec.tlv(
        der_codec.SEQUENCE, oid, _TRUE if critical else b"", der_codec.tlv(0x04, value)
    )


@lru_cache(maxsize=64)
def _encode_oid(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *rest = (int(part) for part in oid.dotted_string.split("."))
    octets = bytearray()
    for arc in (first * 40 + second, *rest):
        value, piece = arc >> 7, [arc & 0x7F]
        while value:
            piece.append(0x80 | value & 0x7F)
            value >>= 7
        octets += bytes(reversed(piece))
    return der_codec.tlv(0x06, bytes(octets))


def _integer(number: int) -> bytes:
    return der_codec.tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=64)
def _time(moment: dt.datetime) -> bytes:
    # RFC 5280 section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on.
    if moment.year < 2050:  # noqa: PLR2004
        return der_codec.tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der_codec.tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())


def key_usage(profile: Profile) -> x509.KeyUsage:
    """Return the KeyUsage extension of the profile; certificate and CRL signing never set."""
    names = profile.key_usage
    return x509.KeyUsage(
        digital_signature="digital_signature" in names,
        content_commitment="content_commitment" in names,
        key_encipherment="key_encipherment" in names,
        key_agreement="key_agreement" in names,
        data_encipherment="data_encipherment" in names,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@lru_cache(maxsize=256)
def key_identifier(spki: bytes) -> bytes:
    """Return the SKI: leftmost 160 bits of SHA-256 of the key bits (RFC 7093 section 2)."""
    _, key_bits = der_codec.children(spki)
    _, start, end = der_codec.header(key_bits, 0)
    return sha256(key_bits[start + 1 : end]).digest()[:20]


def _crl_distribution(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def _information_access(profile: Profile, issuer_id: str) -> x509.AuthorityInformationAccess | None:
    places = (
        (AuthorityInformationAccessOID.OCSP, profile.ocsp_url),
        (AuthorityInformationAccessOID.CA_ISSUERS, profile.issuer_url),
    )
    descriptions = [
        x509.AccessDescription(
            method, x509.UniformResourceIdentifier(crl_shards.filled(url, issuer_id))
        )
        for method, url in places
        if url
    ]
    return x509.AuthorityInformationAccess(descriptions) if descriptions else None


def _further(profile: Profile) -> list[tuple[x509.ExtensionType, bool]]:
    extensions: list[tuple[x509.ExtensionType, bool]] = []
    if profile.certificate_policies:
        policies = [
            x509.PolicyInformation(x509.ObjectIdentifier(oid), None)
            for oid in profile.certificate_policies
        ]
        extensions.append((x509.CertificatePolicies(policies), False))
    if profile.must_staple:
        extensions.append((x509.TLSFeature([x509.TLSFeatureType.status_request]), False))
    for fixed in profile.fixed_extensions:
        oid = x509.ObjectIdentifier(fixed.oid)
        value = x509.UnrecognizedExtension(oid, bytes.fromhex(fixed.value))
        extensions.append((value, fixed.critical))
    return extensions


def assemble(tbs: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Return the certificate made of its three parts (RFC 5280 section 4.1)."""
    bits = der_codec.tlv(der_codec.BIT_STRING, b"\x00", signature)
    return der_codec.tlv(der_codec.SEQUENCE, tbs, signature_algorithm, bits)


def tbs_signature_algorithm(tbs: bytes) -> bytes:
    """Return the AlgorithmIdentifier inside stored TBS bytes, which the outer one must equal."""
    return der_codec.children(tbs)[2]
