"""Names against the limits of a profile and the name constraints of an issuer (pure)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from cryptography import x509

from estcore.errors import MalformedRequest, ProfileViolation
from estcore.pki import der as der_codec
from estcore.pki.name_grammar import uri_host
from estcore.pki.names import canonical_name, common_names, lower_ascii
from estcore.pki.profile import NameLimits

_UTF8_STRING = 0x0C
_HOST = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+")
_URI_BOUNDARIES = ("/", "?", "#", ":")
_CONSTRAINED = (
    x509.DNSName,
    x509.IPAddress,
    x509.UniformResourceIdentifier,
    x509.RFC822Name,
    x509.DirectoryName,
)


def within_limits(kind: str, value: str, limits: NameLimits) -> bool:
    """Return whether a SAN entry, taken apart at its first colon, is within a profile's limits."""
    match kind:
        case "dns":
            return not limits.dns_suffixes or any(
                under_domain(value, suffix) for suffix in limits.dns_suffixes
            )
        case "ip":
            return not limits.ips or _in_networks(value, limits.ips)
        case "uri":
            prefixes = limits.uri_prefixes
            return not prefixes or any(under_uri_prefix(value, prefix) for prefix in prefixes)
        case "email":
            host = value.rpartition("@")[2]
            return not limits.email_domains or host in map(lower_ascii, limits.email_domains)
        case "other":
            oid = value.partition(":")[0]
            return not limits.other_names or oid in limits.other_names
        case _:
            return True


def under_domain(name: str, domain: str) -> bool:
    """Return whether a DNS name is ``domain`` or a name under it; case does not count."""
    host, top = lower_ascii(name), lower_ascii(domain).lstrip(".")
    return host == top or host.endswith("." + top)


def under_uri_prefix(uri: str, prefix: str) -> bool:
    """Return whether a URI is ``prefix`` or goes on after it at a boundary of its parts.

    ``https://clinic.example`` is a prefix of ``https://clinic.example/a`` and not of
    ``https://clinic.example.evil`` or ``https://clinic.example@evil``.
    """
    try:
        uri_host(uri)
    except ValueError:
        return False
    if not uri.startswith(prefix):
        return False
    after = uri[len(prefix) :]
    return not after or prefix.endswith(_URI_BOUNDARIES) or after.startswith(_URI_BOUNDARIES[:3])


def _in_networks(value: str, networks: Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_network(value)
    except ValueError:
        return False
    for text in networks:
        network = ipaddress.ip_network(text)
        if isinstance(address, ipaddress.IPv4Network) and isinstance(
            network, ipaddress.IPv4Network
        ):
            if address.subnet_of(network):
                return True
        elif (
            isinstance(address, ipaddress.IPv6Network)
            and isinstance(network, ipaddress.IPv6Network)
            and address.subnet_of(network)
        ):
            return True
    return False


def utf8_text(octets_hex: str) -> str:
    """Return the text in the UTF8String of an otherName; empty where it is none."""
    try:
        return der_codec.content(bytes.fromhex(octets_hex), _UTF8_STRING).decode()
    except (MalformedRequest, ValueError):
        return ""


def check_name_constraints(
    subject: x509.Name, san: Iterable[x509.GeneralName], issuers: Sequence[x509.NameConstraints]
) -> None:
    """Check names against the constraints of every CA above them (RFC 5280 section 4.2.1.10).

    A CN that reads as a host name counts as one where there is no DNS name in the SAN: clients
    exist that read it so.

    Raises:
        ProfileViolation: a certificate with this name would be refused by everybody.
    """
    names: list[x509.GeneralName] = [*san]
    if not any(isinstance(name, x509.DNSName) for name in names):
        names += [x509.DNSName(lower_ascii(n)) for n in common_names(subject) if _HOST.fullmatch(n)]
    if subject.rdns:
        names.append(x509.DirectoryName(subject))
    for constraints in issuers:
        for name in names:
            if not _permitted(name, constraints):
                raise ProfileViolation(
                    f"the issuer may not certify {name.value}", code="issuer.name_constraints"
                )


def _permitted(name: x509.GeneralName, constraints: x509.NameConstraints) -> bool:
    excluded = [b for b in constraints.excluded_subtrees or () if isinstance(b, type(name))]
    permitted = [b for b in constraints.permitted_subtrees or () if isinstance(b, type(name))]
    if not isinstance(name, _CONSTRAINED):
        # It is undefined whether such a name is within such a constraint.
        return not excluded and not permitted
    if isinstance(name, x509.UniformResourceIdentifier) and not _uri_host(name.value):
        # RFC 5280 section 4.2.1.10: without a host no constraint can be applied.
        return not excluded and not permitted
    if any(_within(name, base) for base in excluded):
        return False
    return not permitted or any(_within(name, base) for base in permitted)


def _within(name: x509.GeneralName, base: x509.GeneralName) -> bool:
    match name, base:
        case x509.DNSName(value=value), x509.DNSName(value=domain):
            return under_domain(value, domain) if domain else True
        case x509.IPAddress(value=address), x509.IPAddress(value=network):
            return _in_networks(str(address), [str(network)])
        case x509.UniformResourceIdentifier(value=uri), x509.UniformResourceIdentifier(value=host):
            return _host_within(_uri_host(uri), host)
        case x509.RFC822Name(value=mail), x509.RFC822Name(value=constraint):
            if "@" in constraint:
                return mail.rpartition("@")[::2] == _split_mail(constraint)
            return _host_within(mail.rpartition("@")[2], constraint)
        case _:
            return _name_within(name.value, base.value)


def _split_mail(text: str) -> tuple[str, str]:
    local, _, host = text.rpartition("@")
    return local, host


def _host_within(host: str, constraint: str) -> bool:
    """With a leading dot any host in the domain, else that very host."""
    host, constraint = lower_ascii(host), lower_ascii(constraint)
    return host.endswith(constraint) if constraint.startswith(".") else host == constraint


def _uri_host(uri: str) -> str:
    try:
        return uri_host(uri)
    except ValueError:
        return ""


def _name_within(subject: object, top: object) -> bool:
    if not isinstance(subject, x509.Name) or not isinstance(top, x509.Name):
        return False
    depth = len(top.rdns)
    return canonical_name(x509.Name(subject.rdns[:depth])) == canonical_name(top)
