"""Profiles: templates, limits, what a request may add, and the constraints of CAs above."""

from __future__ import annotations

import datetime as dt
import ipaddress
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from estcore import ids
from estcore.errors import NotAuthorized, ProfileViolation
from estcore.est.csr_demands import csr_builder, demands_for
from estcore.messages.envelope import decode, encode
from estcore.messages.state import ProfilesState
from estcore.pki.certificate import CertificateTemplate, IssuerCertificate
from estcore.pki.csr import CertificationRequest, parse_csr
from estcore.pki.lint import lint
from estcore.pki.name_limits import check_name_constraints
from estcore.pki.name_templates import general_name
from estcore.pki.names import parse_name, san_entry
from estcore.pki.profile import Profile
from estcore.policy.decide import check_names, check_profile
from estcore.policy.document import Names, Rule
from estcore.policy.granted_names import granted_request, granted_usages

KEY = ec.generate_private_key(ec.SECP256R1())
CA_KEY = ec.generate_private_key(ec.SECP256R1())
NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
UPN = "1.3.6.1.4.1.311.20.2.3"
CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
ANY_NAMES = Names(common_names=("*",), dns_suffixes=("clinic.example",))
NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


def profile(**changes: Any) -> Profile:
    base = {"name": "p", "lifetime": "30d", "key_algorithms": ["ec-p256"]}
    kinds = {"san_kinds": ["dns", "ip", "uri", "email", "other"]}
    attributes = {"subject_attributes": ["CN", "O", "OU", "serialNumber"]}
    return Profile.model_validate({**base, **kinds, **attributes, **changes})


def request(
    subject: str = "CN=web", san: tuple[str, ...] = (), *extensions: x509.ExtensionType
) -> CertificationRequest:
    builder = x509.CertificateSigningRequestBuilder(parse_name(subject))
    if san:
        entries = [general_name(text) for text in san]
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return parse_csr(builder.sign(KEY, SHA256()).public_bytes(Encoding.DER))


def granted(request: CertificationRequest, profile: Profile) -> CertificationRequest:
    return granted_request(request, profile, "clinic", "billing")


def template(profile: Profile) -> CertificateTemplate:
    name = parse_name("CN=Test CA")
    certificate = (
        x509.CertificateBuilder(name, name, CA_KEY.public_key(), 7, NOW, NOW + dt.timedelta(3650))
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(CA_KEY.public_key()), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(CA_KEY, SHA256())
    )
    return CertificateTemplate(profile, IssuerCertificate("issuing", certificate))


def certificate(request: CertificationRequest, profile: Profile) -> x509.Certificate:
    made = template(profile)
    copy = made.build(request, serial_number=ids.new_serial_number(), now=NOW)
    lint(copy, request=request, template=made, now=NOW)
    return copy.certificate


# Names


def test_a_subject_template_makes_the_subject_whatever_was_asked() -> None:
    found = granted(
        request("CN=web,O=Evil,OU=x"),
        profile(subject_template="O=Clinic,OU={service},CN={csr.CN}"),
    )
    assert found.subject_text == "O=Clinic,OU=billing,CN=web"
    assert certificate(found, profile()).subject == found.subject


def test_nothing_in_a_request_adds_an_attribute_through_a_template() -> None:
    clever = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web,O=Evil")])
    csr = x509.CertificateSigningRequestBuilder(clever).sign(KEY, SHA256())
    found = granted(
        parse_csr(csr.public_bytes(Encoding.DER)), profile(subject_template="O=Clinic,CN={csr.CN}")
    )
    assert [a.value for a in found.subject] == ["Clinic", "web,O=Evil"]


@pytest.mark.parametrize("subject", ["O=Clinic", "CN=a,CN=b"])
def test_a_template_without_its_one_value_is_refused(subject: str) -> None:
    with pytest.raises(ProfileViolation) as refused:
        granted(request(subject, ("dns:a.test",)), profile(subject_template="CN={csr.CN}"))
    assert refused.value.code == "profile.subject"


def test_san_templates_are_added_once() -> None:
    wanted = profile(san_templates=["dns:{service}.svc.clinic.example", "uri:spiffe://c/{tenant}"])
    found = granted(request(san=("dns:web.clinic.example",)), wanted)
    assert found.san == (
        "dns:billing.svc.clinic.example",
        "dns:web.clinic.example",
        "uri:spiffe://c/clinic",
    )
    again = granted(request(san=found.san), wanted)
    assert again.san == found.san
    found_in = certificate(found, wanted).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert sorted(map(san_entry, found_in.value)) == list(found.san)


def test_a_san_template_takes_only_plain_values() -> None:
    clever = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a/../../admin")])
    csr = x509.CertificateSigningRequestBuilder(clever).sign(KEY, SHA256())
    with pytest.raises(ProfileViolation) as refused:
        granted(
            parse_csr(csr.public_bytes(Encoding.DER)),
            profile(san_templates=["uri:spiffe://clinic/{csr.CN}"]),
        )
    assert refused.value.code == "profile.san_template"


def test_override_takes_no_san_of_the_request() -> None:
    wanted = profile(
        san_templates=["dns:{service}.clinic.example"],
        extensions={"subject_alternative_name": "override"},
    )
    assert granted(request(san=("dns:evil.example",)), wanted).san == (
        "dns:billing.clinic.example",
    )


def test_deny_refuses_a_request_with_a_san() -> None:
    wanted = profile(extensions={"subject_alternative_name": "deny"})
    assert granted(request(), wanted).san == ()
    with pytest.raises(ProfileViolation) as refused:
        granted(request(san=("dns:a.test",)), wanted)
    assert refused.value.code == "profile.extension"


def test_the_rule_applies_to_what_the_client_chose_and_not_to_templates() -> None:
    wanted = profile(
        subject_template="O=Clinic,CN={csr.CN}", san_templates=["uri:spiffe://c/{service}"]
    )
    owner = ("clinic", "billing")
    first = request("CN=web,O=Evil")
    check_names(first, ANY_NAMES, wanted, owner)
    # A renewal carries the certificate's own names.
    made = granted(first, wanted)
    check_names(made, ANY_NAMES, wanted, owner)
    with pytest.raises(NotAuthorized):
        check_names(made, ANY_NAMES)
    with pytest.raises(NotAuthorized):
        check_names(request("CN=web", ("uri:spiffe://c/other",)), ANY_NAMES, wanted, owner)
    with pytest.raises(NotAuthorized):
        check_names(request("CN=a.b"), Names(common_names=("web",)), wanted, owner)


@given(st.sampled_from(["CN=web", "CN=web,O=Evil", "CN=web,serialNumber=7"]), st.booleans())
def test_granting_twice_changes_nothing(subject: str, named: bool) -> None:
    wanted = profile(
        subject_template="CN={csr.CN},O=Clinic", san_templates=["dns:{csr.CN}.clinic.example"]
    )
    once = granted(request(subject, ("dns:b.test",) if named else ()), wanted)
    twice = granted(once, wanted)
    assert (twice.subject_canonical, twice.san) == (once.subject_canonical, once.san)


def test_what_only_a_san_template_takes_of_the_subject_needs_its_rule() -> None:
    wanted = profile(
        subject_template="O=Clinic,OU={service}", san_templates=["dns:{csr.CN}.clinic.example"]
    )
    names = Names(common_names=("web",))
    check_names(request("CN=web,O=Evil"), names, wanted, ("clinic", "billing"))
    with pytest.raises(NotAuthorized):
        check_names(request("CN=admin"), names, wanted, ("clinic", "billing"))


def test_team_and_cluster_come_from_claims_like_the_owner() -> None:
    raw = {
        "name": "pods",
        "principal": {"token": {"issuer": "east", "claims": {"sub": "*"}}},
        "owner": {"tenant": "{ns}", "service": "{sa}", "team": "{team}", "cluster": "east"},
        "labels": ["services"],
        "profiles": ["p"],
        "names": {"serial_numbers": ["{ns}-{id}"], "organizations": ["{id}"]},
    }
    rule = Rule.model_validate(raw)
    claims = {"ns": "clinic", "sa": "billing", "team": "cardiology", "id": "7"}
    owner = rule.bound(claims).owner
    assert (owner.tenant, owner.service, owner.team, owner.cluster) == (
        "clinic", "billing", "cardiology", "east",
    )  # fmt: skip
    with pytest.raises(NotAuthorized):
        rule.bound({**claims, "team": "not a token"})
    with pytest.raises(NotAuthorized):
        rule.bound({k: v for k, v in claims.items() if k != "team"})
    # At a renewal only the owner is known: a pattern stands open, anything else is left out.
    renewing = rule.bound_to_owner("clinic", "billing")
    assert renewing is not None
    assert renewing.names.serial_numbers == ("clinic-*",)
    assert renewing.names.organizations == ()
    # A second star would be a wider pattern than the policy wrote.
    wide = raw | {"names": {"serial_numbers": ["{id}-*"]}}
    again = Rule.model_validate(wide).bound_to_owner("clinic", "billing")
    assert again is not None
    assert again.names.serial_numbers == ()


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("dns_suffixes=clinic.example", "dns:a.clinic.example", "dns:a.notclinic.example"),
        ("ips=10.1.0.0/16", "ip:10.1.2.3", "ip:10.2.0.1"),
        ("ips=2001:db8::/32", "ip:2001:db8::1", "ip:10.1.2.3"),
        ("uri_prefixes=spiffe://clinic/", "uri:spiffe://clinic/a", "uri:spiffe://clinics/a"),
        ("email_domains=clinic.example", "email:a@clinic.example", "email:a@b.example"),
        (f"other_names={UPN}", f"other:{UPN}:a@clinic", "other:1.2.3.4:a@clinic"),
    ],
)
def test_limits_hold_whatever_a_rule_allows(kind: str, inside: str, outside: str) -> None:
    name, _, value = kind.partition("=")
    wanted = profile(limits={name: [value]})
    check_profile(request(san=(inside,)), wanted)
    with pytest.raises(ProfileViolation) as refused:
        check_profile(request(san=(outside,)), wanted)
    assert refused.value.code == "profile.limits"


@pytest.mark.parametrize(
    ("allowed", "entry", "is_allowed"),
    [
        (f"{UPN}=*@clinic.example", "jane@clinic.example", True),
        (f"{UPN}=*@clinic.example", "jane@clinic.example.evil", False),
        (UPN, "anything", True),
        ("1.2.3.4", "anything", False),
    ],
)
def test_E9_other_names_are_allowed_by_type_and_text(
    allowed: str, entry: str, is_allowed: bool
) -> None:
    csr = request(san=(f"other:{UPN}:{entry}",))
    names = Names(common_names=("web",), other_names=(allowed,))
    check_profile(csr, profile())
    if is_allowed:
        check_names(csr, names)
        return
    with pytest.raises(NotAuthorized):
        check_names(csr, names)


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("serialNumber=4711", {"serial_numbers": ["47*"]}),
        ("UID=jane", {"user_ids": ["jane"]}),
        ("C=DE", {"countries": ["DE"]}),
        ("ST=Hessen", {"states": ["Hessen"]}),
        ("L=Kassel", {"localities": ["Kassel"]}),
        ("DC=clinic", {"domain_components": ["clinic"]}),
        ("OU=ward", {"organizational_units": ["ward"]}),
    ],
)
def test_every_subject_attribute_needs_its_rule(subject: str, names: dict[str, Any]) -> None:
    check_names(request(subject), Names.model_validate(names))
    with pytest.raises(NotAuthorized):
        check_names(request(subject), Names.model_validate({key: ["other"] for key in names}))
    with pytest.raises(NotAuthorized):
        check_names(request(subject), ANY_NAMES)


# What a request may add


def usage(**bits: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**{**NO_USAGE, **bits})


UNSAFE = {
    "CA:TRUE": x509.BasicConstraints(ca=True, path_length=None),
    "keyCertSign": usage(digital_signature=True, key_cert_sign=True),
    "cRLSign": usage(crl_sign=True),
    "anyEKU": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "cmcRA": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, CMC_RA]),
    "OCSPSigning": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_E6_what_is_unsafe_is_never_in_the_certificate(what: str) -> None:
    asked = request("CN=web", (), UNSAFE[what])
    assert granted_usages(asked, profile()) == granted_usages(request(), profile())
    made = certificate(asked, profile()).extensions
    assert made.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usages = made.get_extension_for_class(x509.KeyUsage).value
    assert (usages.key_cert_sign, usages.crl_sign) == (False, False)
    assert list(made.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]


@pytest.mark.parametrize("what", UNSAFE)
def test_E6_where_requests_may_add_usages_unsafe_ones_are_refused(what: str) -> None:
    wanted = profile(
        extensions={
            "key_usage": "append",
            "requestable_key_usage": ["key_encipherment"],
            "extended_key_usage": "append",
            "requestable_extended_key_usage": ["server_auth", "1.3.6.1.4.1.99999.1"],
            "other": "deny",
        }
    )
    with pytest.raises(ProfileViolation) as refused:
        granted_usages(request("CN=web", (), UNSAFE[what]), wanted)
    assert refused.value.code == "profile.extension"


def test_append_adds_what_may_be_asked_and_was() -> None:
    wanted = profile(
        extensions={
            "extended_key_usage": "append",
            "requestable_extended_key_usage": ["server_auth", "1.3.6.1.4.1.99999.1"],
        }
    )
    assert granted_usages(request(), wanted).extended_key_usage == ("client_auth",)
    asked = request("CN=web", (), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))
    assert granted_usages(asked, wanted).extended_key_usage == ("client_auth", "server_auth")


def test_deny_refuses_to_be_asked_at_all() -> None:
    asked = request("CN=web", (), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    with pytest.raises(ProfileViolation):
        granted_usages(asked, profile(extensions={"extended_key_usage": "deny"}))
    with pytest.raises(ProfileViolation):
        granted_usages(
            request("CN=web", (), x509.OCSPNoCheck()), profile(extensions={"other": "deny"})
        )
    said_anyway = request("CN=web", (), x509.BasicConstraints(ca=False, path_length=None))
    granted_usages(said_anyway, profile(extensions={"other": "deny"}))


def test_policies_stapling_and_extensions_of_ones_own_are_in_the_certificate() -> None:
    wanted = profile(
        certificate_policies=["1.3.6.1.4.1.99999.2.1"],
        must_staple=True,
        extended_key_usage=["client_auth", "1.3.6.1.4.1.99999.1"],
        key_usage=["digital_signature", "data_encipherment"],
        fixed_extensions=[{"oid": "1.3.6.1.4.1.99999.3", "value": "0c024f4b"}],
    )
    made = certificate(request(), wanted).extensions
    policies = made.get_extension_for_class(x509.CertificatePolicies).value
    assert [p.policy_identifier.dotted_string for p in policies] == ["1.3.6.1.4.1.99999.2.1"]
    assert made.get_extension_for_class(x509.TLSFeature) is not None
    own = made.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.99999.3"))
    assert isinstance(own.value, x509.UnrecognizedExtension)
    assert own.value.value == bytes.fromhex("0c024f4b")


@pytest.mark.parametrize(
    "changes",
    [
        {"extended_key_usage": ["any_extended"]},
        {"extended_key_usage": ["2.5.29.37.0"]},
        {"extended_key_usage": ["1.3.6.1.5.5.7.3.9"]},
        {"extended_key_usage": ["ocsp_signing"]},
        {"extended_key_usage": []},
        {"key_usage": ["key_cert_sign"]},
        {"fixed_extensions": [{"oid": "2.5.29.19", "value": "30030101ff"}]},
        {"fixed_extensions": [{"oid": "1.3.6.1.4.1.99999.3", "value": "0c054f4b"}]},
        {"fixed_extensions": [{"oid": "1.3.6.1.4.1.99999.3", "value": "0500"}] * 2},
        {"subject_template": "CN={claim}"},
        {"subject_template": "CN={csr.CN"},
        {"subject_template": "UID={csr.CN}"},
        {"san_templates": ["uri:spiffe://c/{csr.evil}"]},
        {"san_templates": ["ftp:x"]},
        {"san_templates": ["dns:x"], "san_kinds": ["uri"]},
        {"extensions": {"key_usage": "append"}},
        {"extensions": {"requestable_key_usage": ["key_agreement"]}},
        {"limits": {"ips": ["10.0.0.1/8"]}},
        {"max_active": 0},
        {"max_active": 1},
    ],
)
def test_a_profile_that_is_not_right_is_not_loaded(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        profile(**changes)


def test_profiles_reach_front_ends_without_what_they_do_not_use() -> None:
    """A front end of an older version refuses fields it does not know."""
    plain, full = profile(), profile(subject_template="CN={csr.CN}", approval=True)
    message = ProfilesState(version="1", updated_at=NOW, profiles=(plain, full))
    assert b"extensions" not in encode(message)
    assert decode(ProfilesState, encode(message)) == message


def test_csrattrs_demands_what_fills_the_templates() -> None:
    wanted = profile(
        subject_template="O=Clinic,serialNumber={csr.serialNumber}",
        san_templates=["uri:urn:clinic:{csr.serialNumber}"],
        extensions={"subject_alternative_name": "override"},
    )
    own = parse_name("CN=pump,serialNumber=4711")
    csr = csr_builder(demands_for(wanted), subject=own).sign(KEY, SHA256())
    found = granted(parse_csr(csr.public_bytes(Encoding.DER)), wanted)
    check_profile(found, wanted)
    assert found.subject_text == "O=Clinic,serialNumber=4711"
    assert found.san == ("uri:urn:clinic:4711",)


# The CAs above

CONSTRAINTS = x509.NameConstraints(
    permitted_subtrees=[
        x509.DNSName("clinic.example"),
        x509.IPAddress(ipaddress.ip_network("10.0.0.0/8")),
        x509.UniformResourceIdentifier(".clinic.example"),
        x509.RFC822Name("clinic.example"),
        x509.DirectoryName(parse_name("O=Clinic")),
    ],
    excluded_subtrees=[
        x509.DNSName("secret.clinic.example"),
        x509.IPAddress(ipaddress.ip_network("10.66.0.0/16")),
    ],
)


@pytest.mark.parametrize(
    ("subject", "san", "good"),
    [
        ("O=Clinic,CN=web", ("dns:a.clinic.example",), True),
        ("O=Clinic,CN=web", ("dns:clinic.example",), True),
        ("O=Clinic,CN=web", ("dns:a.otherclinic.example",), False),
        ("O=Clinic,CN=web", ("dns:x.secret.clinic.example",), False),
        ("O=Clinic,CN=web", ("ip:10.1.2.3",), True),
        ("O=Clinic,CN=web", ("ip:11.1.2.3",), False),
        ("O=Clinic,CN=web", ("ip:10.66.2.3",), False),
        ("O=Clinic,CN=web", ("uri:https://a.clinic.example/x",), True),
        ("O=Clinic,CN=web", ("uri:https://clinic.example/x",), False),
        ("O=Clinic,CN=web", ("email:a@clinic.example",), True),
        ("O=Clinic,CN=web", ("email:a@b.clinic.example",), False),
        ("O=Other,CN=web", ("dns:a.clinic.example",), False),
        ("CN=web,O=Clinic", ("dns:a.clinic.example",), False),
        ("O=Clinic,CN=evil.example", (), False),
        ("O=Clinic,CN=a.clinic.example", (), True),
    ],
)
def test_E11_name_constraints_of_the_issuer_hold_as_openssl_sees_them(
    tmp_path: Path, subject: str, san: tuple[str, ...], good: bool
) -> None:
    csr = request(subject, san)
    try:
        check_name_constraints(csr.subject, csr.san_extension or (), [CONSTRAINTS])
        permitted = True
    except ProfileViolation as refused:
        assert refused.code == "issuer.name_constraints"
        permitted = False
    assert permitted is good
    assert openssl_verifies(tmp_path, csr) is good


def openssl_verifies(folder: Path, csr: CertificationRequest) -> bool:
    """Ask openssl about a certificate for ``csr`` by a CA with the constraints."""
    name = parse_name("O=Clinic,CN=CA")
    now = dt.datetime.now(dt.UTC)
    ski = x509.SubjectKeyIdentifier.from_public_key(CA_KEY.public_key())
    ca = (
        x509.CertificateBuilder(name, name, CA_KEY.public_key(), 1, now, now + dt.timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage(key_cert_sign=True), critical=True)
        .add_extension(ski, critical=False)
        .add_extension(CONSTRAINTS, critical=True)
        .sign(CA_KEY, SHA256())
    )
    leaf = x509.CertificateBuilder(
        name,
        csr.subject,
        csr.public_key,
        2,
        now,
        now + dt.timedelta(1),
    )
    if csr.san_extension is not None:
        leaf = leaf.add_extension(csr.san_extension, critical=False)
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "leaf.pem").write_bytes(leaf.sign(CA_KEY, SHA256()).public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", folder / "ca.pem", folder / "leaf.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0
