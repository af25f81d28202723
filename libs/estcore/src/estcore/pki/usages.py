"""Extended key usages by name, for profiles and requests."""

from __future__ import annotations

import re
from typing import Annotated

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import AfterValidator

OCSP_SIGNING = "ocsp_signing"
"""For the responders of ca-signer alone: no profiles file can say it."""
KEY_GENERATION = "cm_kga"
"""id-kp-cmKGA (RFC 9480 section 2.2), for those parts of ca-signer that make keys of clients."""
_OWN = (OCSP_SIGNING, KEY_GENERATION)
EKU_OIDS = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "code_signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "email_protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "time_stamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "smartcard_logon": ExtendedKeyUsageOID.SMARTCARD_LOGON,
    "ipsec_ike": ExtendedKeyUsageOID.IPSEC_IKE,
    "cmc_ra": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"),
    OCSP_SIGNING: ExtendedKeyUsageOID.OCSP_SIGNING,
    KEY_GENERATION: x509.ObjectIdentifier("1.3.6.1.5.5.7.3.32"),
}
_NAMES = {oid: name for name, oid in EKU_OIDS.items()}
_UNSAFE = {
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string,
    ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string,
    "1.3.6.1.5.5.7.3.32",
}
_DOTTED = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,18})){1,30}")


def usage_oid(name: str) -> x509.ObjectIdentifier:
    """Return the identifier of a usage written by name or dotted."""
    return EKU_OIDS.get(name) or x509.ObjectIdentifier(name)


def usage_name(oid: x509.ObjectIdentifier) -> str:
    """Return how profiles write a usage: by name where it has one."""
    return _NAMES.get(oid, oid.dotted_string)


def _check_usage(name: str) -> str:
    if name in EKU_OIDS and name not in _OWN:
        return name
    if _DOTTED.fullmatch(name) and name not in _UNSAFE:
        if usage_name(x509.ObjectIdentifier(name)) != name:
            raise ValueError(f"write {usage_name(x509.ObjectIdentifier(name))} for {name}")
        return name
    names = ", ".join(n for n in EKU_OIDS if n not in _OWN)
    raise ValueError(f"{name!r} is none of {names}, nor another identifier a profile may have")


ExtendedKeyUsageName = Annotated[str, AfterValidator(_check_usage)]
