"""From what a request asks for to what its certificate will say (pure).

A profile may fix the subject, add SAN entries, and let a request add usages or nothing at all.
The result is a request again, with the names of the certificate in place of its own: everything
after this compares, lints and records what will be signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography import x509

from estcore.errors import ProfileViolation
from estcore.pki.csr import CertificationRequest
from estcore.pki.csr_structure import (
    BASIC_CONSTRAINTS_OID,
    EXTENDED_KEY_USAGE_OID,
    KEY_USAGE_OID,
    SAN_OID,
)
from estcore.pki.name_templates import fill_san, fill_subject, values_of
from estcore.pki.names import SHORT_NAMES, common_names, san_entry
from estcore.pki.profile import Profile
from estcore.pki.usages import usage_name

_UNGRANTABLE = ("keyCertSign", "cRLSign", "encipherOnly", "decipherOnly")


@dataclass(frozen=True)
class OwnNames:
    """The names of a certificate that its request chose: a rule must allow them."""

    subject: tuple[tuple[str, str], ...]
    san: tuple[str, ...]
    nobody: bool


@dataclass(frozen=True)
class Usages:
    """KeyUsage and ExtendedKeyUsage of one certificate, by the names profiles use."""

    key_usage: tuple[str, ...]
    extended_key_usage: tuple[str, ...]


def granted_request(
    request: CertificationRequest, profile: Profile, tenant: str, service: str
) -> CertificationRequest:
    """Return the request with the names that its certificate will have.

    For first enrollments: a renewal keeps the names of its certificate (RFC 7030 section
    4.2.2), even if the templates have changed since.

    Raises:
        ProfileViolation: it has no value for a template, or may not ask for a SAN.
    """
    policy = profile.extensions.subject_alternative_name
    if policy != "override":
        request.require_readable(SAN_OID)
    if policy == "deny" and request.san_extension is not None:
        raise ProfileViolation(
            f"profile {profile.name} takes no request with a SAN", code="profile.extension"
        )
    if profile.subject_template is None and not profile.san_templates:
        return _without_templates(request, profile)
    values = values_of(request.subject, tenant, service)
    subject, subject_der = request.subject, request.subject_der
    if profile.subject_template is not None:
        subject = fill_subject(profile.subject_template, values)
        subject_der = subject.public_bytes()
    entries = [] if policy == "override" else list(request.san_extension or ())
    present = {san_entry(e) for e in entries}
    for template in profile.san_templates:
        made = fill_san(template, values)
        if san_entry(made) not in present:
            present.add(san_entry(made))
            entries.append(made)
    if not entries:
        return _without_templates(
            replace(request, subject=subject, subject_der=subject_der), profile
        )
    return _with_san(replace(request, subject=subject, subject_der=subject_der), entries)


def _without_templates(request: CertificationRequest, profile: Profile) -> CertificationRequest:
    if profile.extensions.subject_alternative_name == "override":
        request = request.with_san(None)
    names = common_names(request.subject)
    if request.san_extension is None and profile.common_name_to_dns_san and names:
        return _with_san(request, [x509.DNSName(names[0])])
    return request


def _with_san(
    request: CertificationRequest, entries: list[x509.GeneralName]
) -> CertificationRequest:
    return request.with_san(x509.SubjectAlternativeName(entries))


def own_names(
    request: CertificationRequest, profile: Profile | None, tenant: str, service: str
) -> OwnNames:
    """Return the names in a request that become its certificate's and no template makes.

    ``profile`` None stands for one without templates.

    Raises:
        RequestRejected: its SAN counts and cannot be read.
    """
    if profile is None or profile.extensions.subject_alternative_name != "override":
        request.require_readable(SAN_OID)
    subject = tuple(_pairs(request.subject))
    if profile is None:
        return OwnNames(subject, request.san, nobody=not subject and not request.san)
    own = profile.own_subject_attributes
    if own is not None:
        subject = tuple(pair for pair in subject if pair[0] in own)
    san = () if profile.extensions.subject_alternative_name == "override" else request.san
    if san and profile.san_templates:
        made = _made(profile, values_of(request.subject, tenant, service))
        san = tuple(entry for entry in san if entry not in made)
    templates = profile.subject_template is not None or bool(profile.san_templates)
    return OwnNames(subject, san, nobody=not (subject or san or templates))


def _pairs(subject: x509.Name) -> list[tuple[str, str]]:
    return [
        (
            SHORT_NAMES.get(attribute.oid, attribute.oid.dotted_string),
            attribute.value if isinstance(attribute.value, str) else "\0",
        )
        for attribute in subject
    ]


def _made(profile: Profile, values: Mapping[str, str]) -> frozenset[str]:
    made = set()
    for template in profile.san_templates:
        try:
            made.add(san_entry(fill_san(template, values)))
        except ProfileViolation:
            # A template that cannot be filled makes no name, so it excuses none.
            continue
    return frozenset(made)


def granted_usages(request: CertificationRequest, profile: Profile) -> Usages:
    """Return the usages of the certificate: the profile's, and what was asked where it may be.

    Raises:
        ProfileViolation: the request asks for what the profile refuses.
    """
    own = Usages(profile.key_usage, profile.extended_key_usage)
    policy = profile.extensions
    if not policy.reads_request:
        return own
    _require_readable(request, profile)
    requested_usage, requested_extended, other_oids = _requested(request)
    if policy.other == "deny" and other_oids:
        raise _refused(profile, f"extension {other_oids[0]}")
    return Usages(
        _granted(
            profile, policy.key_usage, own.key_usage, policy.requestable_key_usage, requested_usage
        ),
        _granted(
            profile,
            policy.extended_key_usage,
            own.extended_key_usage,
            policy.requestable_extended_key_usage,
            requested_extended,
        ),
    )


def _require_readable(request: CertificationRequest, profile: Profile) -> None:
    """Raise for an extension that counts here; what the profile leaves out may be unreadable."""
    policy = profile.extensions
    if policy.key_usage != "override":
        request.require_readable(KEY_USAGE_OID)
    if policy.extended_key_usage != "override":
        request.require_readable(EXTENDED_KEY_USAGE_OID)
    if policy.other == "deny":
        request.require_readable(BASIC_CONSTRAINTS_OID)


def _granted(
    profile: Profile,
    policy: str,
    own: tuple[str, ...],
    requestable: tuple[str, ...],
    requested: tuple[str, ...] | None,
) -> tuple[str, ...]:
    if policy == "override" or requested is None:
        return own
    if policy == "deny":
        raise _refused(profile, "usages")
    for name in requested:
        if name not in own and name not in requestable:
            raise _refused(profile, name)
    return own + tuple(name for name in requestable if name in requested and name not in own)


def _refused(profile: Profile, what: str) -> ProfileViolation:
    return ProfileViolation(
        f"profile {profile.name} does not let a request ask for {what}", code="profile.extension"
    )


def _requested(
    request: CertificationRequest,
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, list[str]]:
    """Return KeyUsage, ExtendedKeyUsage (None where absent) and the other extensions asked for."""
    usage = extended = None
    other_oids = list(request.other_extensions)
    for value in request.extensions:
        if isinstance(value, x509.KeyUsage):
            usage = _usage_names(value)
        elif isinstance(value, x509.ExtendedKeyUsage):
            extended = tuple(usage_name(oid) for oid in value)
        elif isinstance(value, x509.BasicConstraints) and value.ca:
            # cA FALSE says what every certificate of ours says.
            other_oids.append(value.oid.dotted_string)
    return usage, extended, other_oids


def _usage_names(usage: x509.KeyUsage) -> tuple[str, ...]:
    agreeing = usage.key_agreement
    bits = {
        "digital_signature": usage.digital_signature,
        "content_commitment": usage.content_commitment,
        "key_encipherment": usage.key_encipherment,
        "data_encipherment": usage.data_encipherment,
        "key_agreement": agreeing,
    }
    unsafe = (
        usage.key_cert_sign,
        usage.crl_sign,
        agreeing and usage.encipher_only,
        agreeing and usage.decipher_only,
    )
    named = [name for name, is_set in bits.items() if is_set]
    named += [name for name, is_set in zip(_UNGRANTABLE, unsafe, strict=True) if is_set]
    return tuple(named)
