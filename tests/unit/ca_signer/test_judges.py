"""Independent linters, pkilint and openssl, over every kind of certificate we issue."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pkilint import loader
from pkilint.pkix import certificate as pkix_certificate
from pkilint.pkix import extension, name
from pkilint.validation import ValidationFindingDescription, ValidationFindingSeverity

from ca_signer.ceremony import offline_ca
from ca_signer.signing.issuers import load_issuer
from estcore import ids
from estcore.clock import SystemClock
from estcore.pki.certificate import CertificateTemplate, assemble
from estcore.pki.csr import parse_csr
from estcore.pki.names import parse_name
from estcore.pki.profile import load_profiles
from estcore.policy.granted_names import granted_request
from estsuite_testing.signer_stack import EVERY_FEATURE, PROFILES

ALL = {name: file for file in (PROFILES, EVERY_FEATURE) for name in load_profiles(file).profiles}
PROFILE_NAMES = sorted(ALL)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    offline_ca.init(folder / "ca", name="Judged", passphrase_file=passphrase, clock=SystemClock())
    offline_ca.server_certificate(
        folder / "ca",
        out=folder / "server",
        names=["est.clinic.example", "127.0.0.1"],
        passphrase_file=passphrase,
        days=397,
        clock=SystemClock(),
    )
    return folder


async def issued(ca: Path, profile_name: str) -> bytes:
    """One certificate of a profile, made by the very parts the signer uses."""
    from ca_signer.settings import IssuerSettings

    issuer = load_issuer(
        IssuerSettings(
            issuer_id="issuing",
            certificate_file=ca / "ca" / "issuing.pem",
            chain_file=ca / "ca" / "chain.pem",
            key_file=ca / "ca" / "issuing.key",
            passphrase_file=ca / "passphrase",
        )
    )
    profile = load_profiles(ALL[profile_name]).get(profile_name)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = parse_name("CN=web.clinic.example,serialNumber=4711")
    san = x509.SubjectAlternativeName([x509.DNSName("web.clinic.example")])
    csr = (
        x509.CertificateSigningRequestBuilder(subject)
        .add_extension(san, critical=False)
        .sign(key, SHA256())
    )
    template = CertificateTemplate(profile, issuer.certificate)
    request = parse_csr(csr.public_bytes(Encoding.DER))
    copy = template.build(
        granted_request(request, profile, "clinic", "pumps"),
        serial_number=ids.new_serial_number(),
        now=SystemClock().now(),
    )
    signature = await issuer.keystore.sign(copy.tbs)
    issuer.check_signature(copy.tbs, signature)
    return assemble(copy.tbs, copy.signature_algorithm, signature)


def findings(der: bytes) -> list[str]:
    """What pkilint's RFC 5280 validators say, from notice up (lower numbers are worse)."""
    validator = pkix_certificate.create_pkix_certificate_validator_container(
        pkix_certificate.create_decoding_validators(
            name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
        ),
        [
            pkix_certificate.create_issuer_validator_container([]),
            pkix_certificate.create_validity_validator_container(),
            pkix_certificate.create_subject_validator_container([]),
            pkix_certificate.create_extensions_validator_container([]),
        ],
    )
    results = validator.validate(loader.load_certificate(der, "certificate").root)
    return [
        f"{f.finding.code}: {f.message}"
        for result in results
        for f in result.finding_descriptions
        if f.finding.severity <= ValidationFindingSeverity.NOTICE and not _of_another_scheme(f)
    ]


def _of_another_scheme(found: ValidationFindingDescription) -> bool:
    """pkilint knows the schemes of the web alone; RFC 3986 has spiffe and urn as well."""
    if found.finding.code != "pkix.invalid_uri_syntax":
        return False
    return (
        re.search(r'"(spiffe://[a-z0-9./-]+|urn:[a-z0-9]+:[a-z0-9-]+:?\d*)"', str(found))
        is not None
    )


@pytest.mark.parametrize("profile_name", PROFILE_NAMES)
async def test_E11_pkilint_finds_nothing_in_what_we_issue(ca: Path, profile_name: str) -> None:
    assert findings(await issued(ca, profile_name)) == []


def test_the_linter_can_find_something() -> None:
    """A linter that never objects is none: a certificate without any extension has faults."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bare")])
    now = SystemClock().now()
    bare = x509.CertificateBuilder(
        subject, subject, key.public_key(), 1, now, now.replace(year=now.year + 1)
    )
    assert findings(bare.sign(key, SHA256()).public_bytes(Encoding.DER)) != []


@pytest.mark.parametrize("profile_name", PROFILE_NAMES)
async def test_E11_openssl_verifies_strictly(ca: Path, profile_name: str, tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.pem"
    certificate = x509.load_der_x509_certificate(await issued(ca, profile_name))
    leaf.write_bytes(certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", ca / "ca" / "root.pem",
         "-untrusted", ca / "ca" / "issuing.pem", leaf],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stem", ["ca/root", "ca/issuing", "ca/infrastructure", "server/server"])
def test_pkilint_finds_nothing_in_the_ceremonys_certificates(ca: Path, stem: str) -> None:
    certificate = x509.load_pem_x509_certificate((ca / f"{stem}.pem").read_bytes())
    assert findings(certificate.public_bytes(Encoding.DER)) == []


def test_keys_of_the_ceremony_are_encrypted_and_private(ca: Path) -> None:
    for stem in ("root", "issuing", "infrastructure"):
        path = ca / "ca" / f"{stem}.key"
        assert b"ENCRYPTED" in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_unencrypted_key_is_refused(ca: Path, tmp_path: Path) -> None:
    from ca_signer.settings import IssuerSettings
    from estcore.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="is not encrypted"):
        load_issuer(
            IssuerSettings(
                issuer_id="x",
                certificate_file=ca / "server" / "server.pem",
                chain_file=ca / "ca" / "chain.pem",
                key_file=ca / "server" / "server.key",
                passphrase_file=ca / "passphrase",
            )
        )
