"""What a server wants in a CSR: the body of ``GET csrattrs``, written and read.

RFC 7030 section 4.5.2 as RFC 9908 clarifies it. There are two forms: the list of identifiers
and attributes that every client knows, and the template of RFC 9908 section 3.4, which also
has values for the subject and places to fill in. A client that knows templates ignores
the list beside one. What is demanded of whom is decided in ``estcore.est.csr_demands``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from estcore.errors import MalformedRequest
from estcore.est.csr_keys import (
    HASH_OF_SIGNATURE,
    classic_key,
    read_classic_key,
    read_template_key,
    signature_oid,
    template_key,
)
from estcore.pki import der as der_codec
from estcore.pki.attributes import (
    CHALLENGE_PASSWORD_OID,
    EXTENSION_REQUEST_OID,
    UTF8_STRING,
    attribute,
    read_attribute,
    string_value,
)
from estcore.pki.names import SHORT_NAMES
from estcore.pki.profile import KeyAlgorithm

CSRAttrsForm = Literal["legacy", "template", "both"]
TEMPLATE_OID = "1.2.840.113549.1.9.16.2.61"
EXTENSION_TEMPLATE_OID = "1.2.840.113549.1.9.16.2.62"
SAN_OID = ExtensionOID.SUBJECT_ALTERNATIVE_NAME.dotted_string

MAX_CSRATTRS_BYTES = 16_384
MAX_ITEMS = 64
ANY_IP = bytes.fromhex("30028700")
"""A SAN of one empty iPAddress: the client fills in its address (RFC 9908 section 3.4)."""
_ANY_DIRECTORY_NAME = bytes.fromhex("a4023000")
_KEY_FIELD, _ATTRIBUTES_FIELD = 0xA0, 0xA1
_SUBJECT_OIDS = {oid.dotted_string for oid in SHORT_NAMES}
_EXTENSION_OIDS = {SAN_OID}


@dataclass(frozen=True)
class RDNDemand:
    """One attribute of the subject; ``value`` None: the client fills it in."""

    oid: str
    value: str | None = None


@dataclass(frozen=True)
class ExtensionDemand:
    """One extension; ``value`` is the DER inside extnValue, None: the client fills it in."""

    oid: str
    value: bytes | None = None
    critical: bool = False

    @property
    def complete(self) -> bool:
        """Return whether nothing is left to fill in."""
        if self.value is None:
            return False
        return self.oid != SAN_OID or not _has_placeholder(self.value)


@dataclass(frozen=True)
class CSRDemands:
    """What must be in a CSR. Nothing set means: nothing in particular.

    ``exact_subject``: the subject has these attributes and no others (a template said so).
    """

    key_algorithm: KeyAlgorithm | None = None
    hash_name: Literal["sha256", "sha384", "sha512"] | None = None
    subject: tuple[RDNDemand, ...] = ()
    exact_subject: bool = False
    extensions: tuple[ExtensionDemand, ...] = ()
    challenge_password: bool = False

    @property
    def empty(self) -> bool:
        """Return whether 204 without a body says the same (RFC 7030 section 4.5.2)."""
        return self == CSRDemands()


def encode_csrattrs(demands: CSRDemands, form: CSRAttrsForm = "both") -> bytes:
    """Return CsrAttrs in DER (RFC 8951 section 4).

    The list cannot say values of the subject nor which part of an extension is open; it names
    those attributes and extensions. The template cannot say a hash. An extension that is
    demanded twice is a ValueError (RFC 9908 section 3.2).
    """
    oids = [e.oid for e in demands.extensions]
    if len(set(oids)) != len(oids):
        raise ValueError("an extension is demanded twice")
    items: list[bytes] = []
    if demands.challenge_password:
        # In every form: RFC 7030 section 4.5.2 wants it in the list where linking is required.
        items.append(der_codec.oid(CHALLENGE_PASSWORD_OID))
    if form != "template":
        items += _legacy_items(demands)
    wanted = replace(demands, hash_name=None) != CSRDemands()
    if form != "legacy" and wanted:
        items.append(attribute(TEMPLATE_OID, _template(demands)))
    return der_codec.tlv(der_codec.SEQUENCE, *items)


def _legacy_items(demands: CSRDemands) -> list[bytes]:
    items: list[bytes] = []
    if demands.key_algorithm is not None:
        items.append(attribute(*classic_key(demands.key_algorithm)))
    items += [der_codec.oid(rdn) for rdn in dict.fromkeys(r.oid for r in demands.subject)]
    complete = [e for e in demands.extensions if e.complete]
    if complete:
        items.append(attribute(EXTENSION_REQUEST_OID, _extensions(complete)))
    items += [der_codec.oid(e.oid) for e in demands.extensions if not e.complete]
    if demands.key_algorithm is not None and demands.hash_name is not None:
        items.append(der_codec.oid(signature_oid(demands.key_algorithm, demands.hash_name)))
    return items


def _template(demands: CSRDemands) -> bytes:
    """Return the CertificationRequestInfoTemplate (RFC 9908 section 3.4 and appendix A)."""
    subject = [_rdn(rdn) for rdn in demands.subject]
    attributes = []
    if demands.challenge_password:
        attributes.append(attribute(CHALLENGE_PASSWORD_OID))
    if demands.extensions:
        # Never both kinds in one template.
        complete = all(e.complete for e in demands.extensions)
        oid = EXTENSION_REQUEST_OID if complete else EXTENSION_TEMPLATE_OID
        attributes.append(attribute(oid, _extensions(demands.extensions)))
    return der_codec.tlv(
        der_codec.SEQUENCE,
        der_codec.integer(0),
        der_codec.tlv(der_codec.SEQUENCE, *subject) if subject else b"",
        _key_field(demands.key_algorithm),
        der_codec.tlv(_ATTRIBUTES_FIELD, *sorted(attributes)),
    )


def _key_field(algorithm: KeyAlgorithm | None) -> bytes:
    return b"" if algorithm is None else der_codec.tlv(_KEY_FIELD, template_key(algorithm))


def _rdn(demand: RDNDemand) -> bytes:
    value = b""
    if demand.value is not None:
        value = der_codec.tlv(UTF8_STRING, demand.value.encode())
    pair = der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(demand.oid), value)
    return der_codec.tlv(der_codec.SET, pair)


def _extensions(demands: list[ExtensionDemand] | tuple[ExtensionDemand, ...]) -> bytes:
    return der_codec.tlv(der_codec.SEQUENCE, *(_extension(d) for d in demands))


def _extension(demand: ExtensionDemand) -> bytes:
    critical = der_codec.tlv(der_codec.BOOLEAN, b"\xff") if demand.critical else b""
    value = b""
    if demand.value is not None:
        value = der_codec.tlv(der_codec.OCTET_STRING, demand.value)
    return der_codec.tlv(der_codec.SEQUENCE, der_codec.oid(demand.oid), critical, value)


def parse_csrattrs(der: bytes) -> CSRDemands:
    """Return what a server's CsrAttrs demand; what is not known is ignored (section 4.5.2).

    Raises:
        MalformedRequest: not CsrAttrs, too large, contradicting itself, or a demand for a key
            of a kind that is not supported (``csrattrs.key``).
    """
    if len(der) > MAX_CSRATTRS_BYTES:
        raise MalformedRequest(f"more than {MAX_CSRATTRS_BYTES} bytes", code="csrattrs.too_large")
    items = der_codec.inside(der, der_codec.SEQUENCE)
    if len(items) > MAX_ITEMS:
        raise MalformedRequest(f"more than {MAX_ITEMS} items", code="csrattrs.too_large")
    oids = [der_codec.oid_text(i) for i in items if i[0] == der_codec.OBJECT_IDENTIFIER]
    attributes = [read_attribute(i) for i in items if i[0] != der_codec.OBJECT_IDENTIFIER]
    templates = [values for oid, values in attributes if oid == TEMPLATE_OID]
    if not templates:
        return _read_list(oids, attributes)
    if len(templates) != 1:
        raise _contradiction("two templates")
    demands = _read_template(_only(templates[0], "template"))
    # Sent to every client; a channel binding that was not asked for is never refused.
    linked = demands.challenge_password or CHALLENGE_PASSWORD_OID in oids
    return replace(demands, challenge_password=linked)


def _contradiction(what: str) -> MalformedRequest:
    return MalformedRequest(f"csrattrs: {what}", code="csrattrs.malformed")


def _only(values: tuple[bytes, ...], what: str) -> bytes:
    if len(values) != 1:
        raise _contradiction(f"{what} has not exactly one value")
    return values[0]


def _read_list(oids: list[str], attributes: list[tuple[str, tuple[bytes, ...]]]) -> CSRDemands:
    oids = list(oids)
    keys: list[KeyAlgorithm] = []
    requests: list[tuple[bytes, ...]] = []
    for oid, values in attributes:
        key = read_classic_key(oid, values)
        if key is not None:
            keys.append(key)
        if oid == EXTENSION_REQUEST_OID:
            requests.append(values)
    if len(keys) > 1 or len(requests) > 1:
        raise _contradiction("key type or extensionRequest stands twice")
    extensions: tuple[ExtensionDemand, ...] = ()
    if requests:
        # Servers older than RFC 9908 put identifiers where one Extensions belongs.
        loose = [v for v in requests[0] if v[0] == der_codec.OBJECT_IDENTIFIER]
        oids += [der_codec.oid_text(v) for v in loose]
        if not loose:
            value = _only(requests[0], "extensionRequest")
            extensions = _read_extensions(value, partial=False)
    stated = {e.oid for e in extensions}
    open_oids = [o for o in dict.fromkeys(oids) if o in _EXTENSION_OIDS - stated]
    hash_names = [HASH_OF_SIGNATURE[o] for o in oids if o in HASH_OF_SIGNATURE]
    return CSRDemands(
        key_algorithm=keys[0] if keys else None,
        hash_name=hash_names[0] if hash_names else None,
        subject=tuple(RDNDemand(o) for o in dict.fromkeys(oids) if o in _SUBJECT_OIDS),
        extensions=(*extensions, *(ExtensionDemand(o) for o in open_oids)),
        challenge_password=CHALLENGE_PASSWORD_OID in oids,
    )


def _read_template(element: bytes) -> CSRDemands:
    version, *fields = der_codec.inside(element, der_codec.SEQUENCE) or [b""]
    if der_codec.integer_value(version) != 0:
        raise _contradiction("a template of another version")
    subject: tuple[RDNDemand, ...] = ()
    key: KeyAlgorithm | None = None
    if fields and fields[0][0] == der_codec.SEQUENCE:
        subject = _read_subject(fields.pop(0))
    if fields and fields[0][0] == _KEY_FIELD:
        key = read_template_key(der_codec.inside(fields.pop(0), _KEY_FIELD))
    if len(fields) != 1:
        raise _contradiction("a template without attributes, or with more than that")
    attributes = [read_attribute(e) for e in der_codec.inside(fields[0], _ATTRIBUTES_FIELD)]
    kinds = (EXTENSION_REQUEST_OID, EXTENSION_TEMPLATE_OID)
    requests = [(oid, values) for oid, values in attributes if oid in kinds]
    if len(requests) > 1:
        raise _contradiction("a template asks for extensions twice")
    extensions: tuple[ExtensionDemand, ...] = ()
    for oid, values in requests:
        value = _only(values, "the request for extensions")
        extensions = _read_extensions(value, partial=oid == EXTENSION_TEMPLATE_OID)
    return CSRDemands(
        key_algorithm=key,
        subject=subject,
        exact_subject=bool(subject),
        extensions=extensions,
        challenge_password=any(oid == CHALLENGE_PASSWORD_OID for oid, _ in attributes),
    )


def _read_subject(element: bytes) -> tuple[RDNDemand, ...]:
    """Return the RDNs of a NameTemplate; one with several attributes is refused."""
    demands = []
    for rdn in der_codec.inside(element, der_codec.SEQUENCE):
        pairs = der_codec.inside(rdn, der_codec.SET)
        pair = der_codec.inside(_only(tuple(pairs), "an RDN"), der_codec.SEQUENCE)
        if len(pair) not in (1, 2):
            raise _contradiction("an RDN is a type and at most one value")
        value = string_value(pair[1]) if len(pair) > 1 else None
        demands.append(RDNDemand(der_codec.oid_text(pair[0]), value))
    if not demands or len(demands) > MAX_ITEMS:
        raise _contradiction("a template with an empty or endless subject")
    return tuple(demands)


def _read_extensions(element: bytes, *, partial: bool) -> tuple[ExtensionDemand, ...]:
    members = der_codec.inside(element, der_codec.SEQUENCE)
    if not 1 <= len(members) <= MAX_ITEMS:
        raise _contradiction("no extensions, or too many")
    demands = tuple(_read_extension(m, partial=partial) for m in members)
    if len({d.oid for d in demands}) != len(demands):
        raise _contradiction("an extension stands twice")
    return demands


def _read_extension(element: bytes, *, partial: bool) -> ExtensionDemand:
    oid, *rest = der_codec.inside(element, der_codec.SEQUENCE) or [b""]
    critical = bool(rest) and rest[0][0] == der_codec.BOOLEAN
    if critical and der_codec.content(rest.pop(0), der_codec.BOOLEAN) != b"\xff":
        raise _contradiction("critical is TRUE or absent")
    if len(rest) > 1 or not (rest or partial):
        raise _contradiction("an extension is an identifier, critical and one value")
    value = der_codec.content(rest[0], der_codec.OCTET_STRING) if rest else None
    return ExtensionDemand(der_codec.oid_text(oid), value, critical)


def _has_placeholder(san: bytes) -> bool:
    """Return whether a SAN has an empty address or an empty directory name to fill in."""
    try:
        names = der_codec.inside(san, der_codec.SEQUENCE)
    except MalformedRequest:
        return False
    return any(name in (b"\x87\x00", _ANY_DIRECTORY_NAME) for name in names)


def fixed_san(name: x509.GeneralName) -> bytes:
    """Return the DER of a SAN with one name, as an extension's value."""
    return x509.SubjectAlternativeName([name]).public_bytes()
