"""Subjects and SAN entries of certificates, made from templates in a profile (pure).

In braces stand ``tenant`` and ``service`` of the owner, and ``csr.CN`` or another attribute of
the request's subject. A value is put in after the template was taken apart, so nothing a client
sends can add an attribute or a separator.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from cryptography import x509

from estcore.errors import ProfileViolation
from estcore.pki import der as der_codec
from estcore.pki.names import LONG_NAMES, SHORT_NAMES, lower_ascii

PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]+)\}")
OWNER_PLACEHOLDERS = frozenset({"tenant", "service"})
_PLAIN = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,252})")
_UTF8_STRING = 0x0C


def placeholders(template: str) -> list[str]:
    """Return what stands in braces."""
    return PLACEHOLDER.findall(template)


def values_of(subject: x509.Name, tenant: str, service: str) -> dict[str, str]:
    """Return what placeholders stand for; an attribute that stands twice stands for nothing."""
    values: dict[str, str] = {}
    twice: set[str] = set()
    for attribute in subject:
        key = "csr." + SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string)
        if key in values:
            twice.add(key)
        if isinstance(attribute.value, str):
            values[key] = attribute.value
    for key in twice:
        del values[key]
    return values | {"tenant": tenant, "service": service}


def check_template(template: str, *, attributes: frozenset[str]) -> None:
    """Check the placeholders of a template; ``attributes`` are what a subject may have.

    Raises:
        ValueError: with a sentence for the operator.
    """
    for name in placeholders(template):
        short = name.removeprefix("csr.")
        if name not in OWNER_PLACEHOLDERS and (short == name or short not in attributes):
            raise ValueError(f"{{{name}}} is not tenant, service or csr. and a subject attribute")
    if set(PLACEHOLDER.sub("", template)) & set("{}"):
        raise ValueError(f"a brace in {template!r} has no partner")


def subject_parts(template: str) -> list[tuple[str, str]]:
    """Return attribute and value template of each part of ``CN={csr.CN},O=Clinic``.

    Raises:
        ValueError: an unknown attribute or an empty value.
    """
    parts = []
    for part in template.split(","):
        short, _, value = part.strip().partition("=")
        if short not in LONG_NAMES or not value:
            raise ValueError(f"cannot read the subject part {part!r}")
        parts.append((short, value))
    return parts


def fill_subject(template: str, values: Mapping[str, str]) -> x509.Name:
    """Return the subject that a template gives.

    Raises:
        ProfileViolation: a value is missing, or too long for its attribute.
    """
    try:
        return x509.Name(
            [
                x509.NameAttribute(LONG_NAMES[short], _fill(value, values))
                for short, value in subject_parts(template)
            ]
        )
    except ValueError as exc:
        raise ProfileViolation(
            f"the profile's subject cannot be made: {str(exc).lower()}", code="profile.subject"
        ) from exc


def fill_san(template: str, values: Mapping[str, str]) -> x509.GeneralName:
    """Return the SAN entry that a template gives.

    Raises:
        ProfileViolation: a value is missing or not a plain name, or the whole is no such entry.
    """
    for name in placeholders(template):
        value = values.get(name, "")
        if not _PLAIN.fullmatch(value) or ".." in value:
            raise ProfileViolation(
                f"{name} is missing or not a plain name", code="profile.san_template"
            )
    try:
        return general_name(_fill(template, values))
    except ValueError as exc:
        raise ProfileViolation(
            f"the profile's SAN cannot be made: {exc}", code="profile.san_template"
        ) from exc


def general_name(text: str) -> x509.GeneralName:
    """Return the SAN entry written ``kind:value``; ``other:<oid>:<text>`` holds a UTF8String.

    Raises:
        ValueError: not such an entry.
    """
    kind, _, value = text.partition(":")
    if not value:
        raise ValueError(f"{text!r} is not kind:value")
    match kind:
        case "dns":
            return x509.DNSName(lower_ascii(value))
        case "ip":
            return x509.IPAddress(ipaddress.ip_address(value))
        case "uri":
            return x509.UniformResourceIdentifier(value)
        case "email":
            return x509.RFC822Name(value)
        case "other":
            oid, _, words = value.partition(":")
            if not words:
                raise ValueError(f"{text!r} is not other:<oid>:<text>")
            octets = der_codec.tlv(_UTF8_STRING, words.encode())
            return x509.OtherName(x509.ObjectIdentifier(oid), octets)
        case _:
            raise ValueError(f"{kind!r} is not dns, ip, uri, email or other")


def _fill(template: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        text = values.get(match[1])
        if not text:
            raise ProfileViolation(
                f"the request has no single {match[1].removeprefix('csr.')} in its subject",
                code="profile.subject",
            )
        return text

    return PLACEHOLDER.sub(value, template)
