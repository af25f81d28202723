"""Encodings that no library writes: CSRs and names put together element by element, and signed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import strategies as st

from estcore.pki import der
from estsuite_testing.chains import HOUR, NOON, Pair

_KEY = ec.generate_private_key(ec.SECP256R1())
_ECDSA_WITH_SHA256 = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"))


def name(*attributes: tuple[str, int, bytes]) -> bytes:
    """A Name of one RDN for each (identifier, string tag, octets)."""
    return der.tlv(
        der.SEQUENCE,
        *(
            der.tlv(der.SET, der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(tag, octets)))
            for oid, tag, octets in attributes
        ),
    )


def extension(oid: str, value: bytes, *, critical: bytes | None = None) -> bytes:
    """An Extension; ``critical`` is the content of its BOOLEAN, None leaves it out."""
    flag = b"" if critical is None else der.tlv(der.BOOLEAN, critical)
    return der.tlv(der.SEQUENCE, der.oid(oid), flag, der.tlv(der.OCTET_STRING, value))


def csr_attribute(oid: str, *values: bytes) -> bytes:
    """An Attribute with its values in the order given."""
    return der.tlv(der.SEQUENCE, der.oid(oid), der.tlv(der.SET, *values))


def signed_csr(
    *attributes: bytes,
    version: int = 0,
    subject: bytes | None = None,
    spki: bytes | None = None,
    algorithm: bytes = _ECDSA_WITH_SHA256,
    no_attributes: bool = False,
) -> bytes:
    """A CSR with these attributes in this order, signed over exactly these octets."""
    public = _KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = der.tlv(
        der.SEQUENCE,
        der.integer(version),
        name(("2.5.4.3", 0x0C, b"web")) if subject is None else subject,
        public if spki is None else spki,
        b"" if no_attributes else der.tlv(0xA0, *attributes),
    )
    signature = _KEY.sign(info, ec.ECDSA(SHA256()))
    return der.tlv(der.SEQUENCE, info, algorithm, der.tlv(der.BIT_STRING, b"\0", signature))


def resigned(certificate: bytes, key: ec.EllipticCurvePrivateKey, old: bytes, new: bytes) -> bytes:
    """The certificate with octets of its TBS replaced by as many others, signed by ``key``."""
    tbs, algorithm, _ = der.children(certificate)
    if tbs.count(old) == 0 or len(old) != len(new):
        raise ValueError("there is nothing to replace")
    changed = tbs.replace(old, new)
    signature = key.sign(changed, ec.ECDSA(SHA256()))
    return der.tlv(der.SEQUENCE, changed, algorithm, der.tlv(der.BIT_STRING, b"\0", signature))


def over_sha1(pair: Pair, issuer: Pair) -> Pair:
    """The certificate signed again with ECDSA over SHA-1, which no library signs any more."""
    tbs, *_ = der.children(pair[0].public_bytes(Encoding.DER))
    fields = der.children(tbs)
    algorithm = fields[2] = der.tlv(der.SEQUENCE, der.oid("1.2.840.10045.4.1"))
    changed = der.tlv(der.SEQUENCE, *fields)
    signature = issuer[1].sign(changed, ec.ECDSA(SHA1()))  # noqa: S303 - for what refuses it
    bits = der.tlv(der.BIT_STRING, b"\0", signature)
    octets = der.tlv(der.SEQUENCE, changed, algorithm, bits)
    return x509.load_der_x509_certificate(octets), pair[1]


def turned_rdn(name: bytes) -> tuple[bytes, bytes]:
    """The last RDN of a Name, and the same with its attributes in the opposite order."""
    rdn = der.children(name)[-1]
    return rdn, der.tlv(der.SET, *reversed(der.children(rdn)))


@st.composite
def damaged(draw: st.DrawFn, octets: bytes) -> bytes:
    """An encoding with bits flipped, a part cut out, a part repeated, or a length changed."""
    result = bytearray(octets)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(result) - 1)))
        match draw(st.sampled_from(["bit", "octet", "cut", "end", "repeat", "insert"])):
            case "bit":
                result[place : place + 1] = bytes(
                    o ^ 1 << draw(st.integers(0, 7)) for o in result[place : place + 1]
                )
            case "octet":  # also a tag or a length
                result[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del result[place : place + draw(st.integers(1, 20))]
            case "end":
                del result[place:]
            case "repeat":
                result[place:place] = result[place : place + draw(st.integers(1, 20))]
            case _:
                result[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(result)


def every_octet_changed(octets: bytes) -> Iterator[bytes]:
    """The encoding with each octet in turn replaced by the values that break parsers."""
    for place, octet in enumerate(octets):
        for value in (0x00, 0x1F, 0x30, 0x7F, 0x80, 0xFF, octet ^ 0x01, octet ^ 0x20, octet ^ 0x80):
            yield octets[:place] + bytes((value,)) + octets[place + 1 :]


@dataclass(frozen=True)
class UnsortedName:
    """A maker whose certificates have an RDN of two attributes in the order DER forbids."""

    common_name: str
    key: ec.EllipticCurvePrivateKey

    @property
    def name(self) -> x509.Name:
        pairs = ((NameOID.COMMON_NAME, self.common_name), (NameOID.ORGANIZATION_NAME, "Maker"))
        attributes = [x509.NameAttribute(oid, value) for oid, value in pairs]
        return x509.Name([x509.RelativeDistinguishedName(attributes)])

    def issued_by(self, issuer: UnsortedName, *, ca: bool) -> bytes:
        """Its certificate by ``issuer``, valid around ``chains.NOON``."""
        public, parent = self.key.public_key(), issuer.key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOON - HOUR)
            .not_valid_after(NOON + HOUR)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(parent), critical=False
            )
        )
        octets = builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)
        for name in (issuer.name, self.name):
            turned = turned_rdn(name.public_bytes())
            if turned[0] in octets:
                octets = resigned(octets, issuer.key, *turned)
        return octets


def rdns_out_of_order(common_name: str) -> UnsortedName:
    """A maker, or a device of it, with a key of its own."""
    return UnsortedName(common_name, ec.generate_private_key(ec.SECP256R1()))
