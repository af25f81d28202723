"""Which demands follow from a profile, and how a client meets them.

The server computes them from the very profile and names that decide at enrollment, so a client
that follows csrattrs passes (RFC 7030 section 4.5). Only what a decision would refuse to do
without is demanded; everything else in a certificate is the profile's own.
"""

from __future__ import annotations

import ipaddress
from typing import Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID

from estcore.errors import RequestRejected
from estcore.est.csr_keys import usual_hash
from estcore.est.csrattrs import (
    ANY_IP,
    SAN_OID,
    CSRDemands,
    ExtensionDemand,
    RDNDemand,
    fixed_san,
)
from estcore.pki.attributes import CHALLENGE_PASSWORD_OID
from estcore.pki.name_templates import placeholders
from estcore.pki.names import LONG_NAMES, SHORT_NAMES
from estcore.pki.profile import Profile

_CN = NameOID.COMMON_NAME.dotted_string
_MAX_COMMON_NAME = 64


class NamesRule(Protocol):
    """The part of a rule's names that matters here; ``estcore.policy.document.Names`` is one."""

    @property
    def common_names(self) -> tuple[str, ...]:
        """Patterns of common names."""

    @property
    def dns(self) -> tuple[str, ...]:
        """Patterns of DNS names."""

    @property
    def dns_suffixes(self) -> tuple[str, ...]:
        """Domains under which every name is allowed."""

    @property
    def ips(self) -> tuple[str, ...]:
        """Addresses and networks."""

    @property
    def uri_prefixes(self) -> tuple[str, ...]:
        """Beginnings of URIs."""

    @property
    def emails(self) -> tuple[str, ...]:
        """Mail addresses."""

    @property
    def other_names(self) -> tuple[str, ...]:
        """Types of otherName, with or without a pattern."""


def demands_for(
    profile: Profile, names: NamesRule | None = None, *, linking_required: bool = False
) -> CSRDemands:
    """Return what a CSR for this profile must have.

    ``names`` is the rule of an authenticated client, claims put in, None for anybody: where
    the rule leaves one single name, its value is included. The key is the profile's first
    kind, one that passes.
    """
    algorithm = profile.key_algorithms[0]
    subject, extensions = _name_demands(profile, names)
    return CSRDemands(
        key_algorithm=algorithm,
        hash_name=usual_hash(algorithm),
        subject=subject,
        exact_subject=bool(subject),
        extensions=extensions,
        challenge_password=linking_required,
    )


def _name_demands(
    profile: Profile, names: NamesRule | None
) -> tuple[tuple[RDNDemand, ...], tuple[ExtensionDemand, ...]]:
    """Return what is demanded of subject and SAN.

    A request must have a subject or a SAN. csrattrs cannot say "one or the other", so where both
    would do, nothing is demanded but a name that is the only one possible.
    """
    if profile.subject_template is not None or profile.san_templates:
        return _demands_of_templates(profile)
    if profile.extensions.subject_alternative_name != "append":
        return (RDNDemand(_CN, _only_common_name(names)),), ()
    kinds: set[str] = {k for k in profile.san_kinds if names is None or _allowed(k, names)}
    only = None if names is None else _only_san(kinds, names)
    if only is not None:
        return (), (ExtensionDemand(SAN_OID, fixed_san(only)),)
    needed = profile.san_required and not profile.common_name_to_dns_san
    if needed or not _common_name_possible(profile, names):
        return (), (ExtensionDemand(SAN_OID, ANY_IP if kinds == {"ip"} else None),)
    if not kinds:
        return (RDNDemand(_CN, _only_common_name(names)),), ()
    return (), ()


def _demands_of_templates(
    profile: Profile,
) -> tuple[tuple[RDNDemand, ...], tuple[ExtensionDemand, ...]]:
    """Only what fills the templates; the rest of the names is the profile's."""
    texts = [profile.subject_template or "", *profile.san_templates]
    own = {n.removeprefix("csr.") for text in texts for n in placeholders(text) if "csr." in n}
    return tuple(RDNDemand(LONG_NAMES[short].dotted_string, None) for short in sorted(own)), ()


def _common_name_possible(profile: Profile, names: NamesRule | None) -> bool:
    if "CN" not in profile.subject_attributes:
        return False
    return names is None or bool(names.common_names or names.dns or names.dns_suffixes)


def _allowed(kind: str, names: NamesRule) -> bool:
    by_kind = {
        "dns": names.dns or names.dns_suffixes,
        "ip": names.ips,
        "uri": names.uri_prefixes,
        "email": names.emails,
        "other": names.other_names,
    }
    return bool(by_kind[kind])


def _only_san(kinds: set[str], names: NamesRule) -> x509.GeneralName | None:
    """Return the one SAN entry that the rule allows, None where there is a choice."""
    if len(kinds) != 1:
        return None
    if kinds == {"dns"} and not names.dns_suffixes:
        text = _only_text(names.dns)
        return None if text is None else x509.DNSName(text)
    if kinds == {"email"} and len(names.emails) == 1 and names.emails[0].isascii():
        return x509.RFC822Name(names.emails[0])
    if kinds == {"ip"} and len(names.ips) == 1:
        return _only_address(names.ips[0])
    return None


def _only_address(text: str) -> x509.IPAddress | None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    return x509.IPAddress(network.network_address) if network.num_addresses == 1 else None


def _only_text(patterns: tuple[str, ...]) -> str | None:
    """Return the one text that the patterns match; with a star or a claim they match several."""
    if len({pattern.lower() for pattern in patterns}) != 1 or set(patterns[0]) & set("*{"):
        return None
    return patterns[0]


def _only_common_name(names: NamesRule | None) -> str | None:
    if names is None or names.dns_suffixes:
        return None
    text = _only_text((*names.common_names, *names.dns))
    return text if text is not None and len(text) <= _MAX_COMMON_NAME else None


def csr_builder(
    demands: CSRDemands,
    *,
    subject: x509.Name,
    san: x509.SubjectAlternativeName | None = None,
    challenge: str | None = None,
) -> x509.CertificateSigningRequestBuilder:
    """Return a CSR builder that meets the demands; sign it with a key of the demanded kind.

    ``subject`` and ``san`` are the client's own names and fill in what is left open;
    ``challenge`` is the binding to the TLS session and is used where it is demanded.

    Raises:
        RequestRejected: something is demanded that the client does not have.
    """
    builder = x509.CertificateSigningRequestBuilder(_subject(demands, subject))
    if san is not None and not any(d.oid == SAN_OID for d in demands.extensions):
        builder = builder.add_extension(san, critical=False)
    for demand in demands.extensions:
        builder = builder.add_extension(_extension(demand, san), critical=demand.critical)
    if demands.challenge_password:
        if challenge is None:
            raise _unanswerable("a binding to the TLS session")
        oid = x509.ObjectIdentifier(CHALLENGE_PASSWORD_OID)
        builder = builder.add_attribute(oid, challenge.encode())
    return builder


def _unanswerable(what: str) -> RequestRejected:
    return RequestRejected(f"the server wants {what}", code="csrattrs.unanswerable")


def _subject(demands: CSRDemands, own: x509.Name) -> x509.Name:
    if demands.exact_subject:
        return x509.Name([_filled(rdn, own) for rdn in demands.subject])
    for rdn in demands.subject:
        _filled(rdn, own)
    return own


def _filled(rdn: RDNDemand, own: x509.Name) -> x509.NameAttribute[str | bytes]:
    oid = x509.ObjectIdentifier(rdn.oid)
    if rdn.value is not None:
        try:
            return x509.NameAttribute(oid, rdn.value)
        except ValueError as exc:
            raise _unanswerable(f"a {SHORT_NAMES.get(oid, rdn.oid)} that cannot be") from exc
    values = own.get_attributes_for_oid(oid)
    if not values:
        raise _unanswerable(f"a {SHORT_NAMES.get(oid, rdn.oid)} in the subject")
    return values[0]


def _extension(
    demand: ExtensionDemand, san: x509.SubjectAlternativeName | None
) -> x509.ExtensionType:
    if demand.value is not None and demand.complete:
        return x509.UnrecognizedExtension(x509.ObjectIdentifier(demand.oid), demand.value)
    if demand.oid != SAN_OID:
        raise _unanswerable(f"extension {demand.oid}")
    if san is None:
        raise _unanswerable("a SAN")
    return san
