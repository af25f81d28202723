"""Usages of cert-manager and of Kubernetes, compared with those of a certificate (pure).

Extended usages are compared, since a certificate without one of them cannot be used for it (RFC
5280 section 4.2.1.12). Of the key usages only those of a CA matter here: which of the others fit is
a matter of the key's algorithm, and servers leave out ``key encipherment`` for EC keys (RFC 8813).
"""

from __future__ import annotations

from collections.abc import Collection

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

EXTENDED = {
    "any": Usage.ANY_EXTENDED_KEY_USAGE,
    "server auth": Usage.SERVER_AUTH,
    "client auth": Usage.CLIENT_AUTH,
    "code signing": Usage.CODE_SIGNING,
    "email protection": Usage.EMAIL_PROTECTION,
    "s/mime": Usage.EMAIL_PROTECTION,
    "ipsec end system": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.5"),
    "ipsec tunnel": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.6"),
    "ipsec user": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.7"),
    "timestamping": Usage.TIME_STAMPING,
    "ocsp signing": Usage.OCSP_SIGNING,
    "microsoft sgc": x509.ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"),
    "netscape sgc": x509.ObjectIdentifier("2.16.840.1.113730.4.1"),
}
OF_A_CA = frozenset({"cert sign", "crl sign"})


def of_a_ca(usages: Collection[str]) -> list[str]:
    """Return the usages that only a CA certificate has."""
    return sorted(OF_A_CA & {*usages})


def missing(usages: Collection[str], certificate: x509.Certificate) -> list[str]:
    """Return the extended usages that were asked for and that the certificate does not allow.

    A certificate without the extension, or with anyExtendedKeyUsage, allows all.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return []
    allowed = set(extension.value)
    if Usage.ANY_EXTENDED_KEY_USAGE in allowed:
        return []
    return sorted({u for u in usages if u in EXTENDED and EXTENDED[u] not in allowed})
