"""Old and new roots and what links them, checked with openssl (RFC 4210 section 4.4)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from ca_signer.ceremony import offline_ca
from ca_signer.cli.entry import main as ca_signer
from ca_signer.issuers.cacerts import check_cross, linked
from ca_signer.settings import IssuerSettings
from ca_signer.signing.issuers import SigningIssuer, load_issuers
from estcore import ids
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estcore.pki.certificate import CertificateTemplate, assemble
from estcore.pki.csr import parse_csr
from estcore.pki.profile import load_profiles
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.signer_stack import PROFILES

CLOCK = SystemClock()


@pytest.fixture(scope="module", params=[1, 2], ids=["same-names", "other-names"])
def roots(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Two CAs in ``old`` and ``new``, with their cross certificates in ``cross.pem``."""
    folder = tmp_path_factory.mktemp("roots")
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    for name, generation in (("old", 1), ("new", request.param)):
        offline_ca.init(
            folder / name,
            name="Rolled",
            passphrase_file=passphrase,
            clock=CLOCK,
            generation=generation,
        )
    assert cross(folder, "old", "new", "cross.pem") == 0
    return folder


def cross(folder: Path, old: str, new: str, out: str) -> int:
    arguments = ["cross", "--old", folder / old, "--new", folder / new, "--out", folder / out]
    arguments += ["--passphrase-file", folder / "passphrase"]
    return ca_signer(["ca", *map(str, arguments)])


def settings(folder: Path, name: str, *, cross_file: Path | None = None) -> IssuerSettings:
    return IssuerSettings(
        issuer_id=name,
        certificate_file=folder / name / "issuing.pem",
        chain_file=folder / name / "chain.pem",
        key_file=folder / name / "issuing.key",
        passphrase_file=folder / "passphrase",
        generation_of=None if name == "old" else "old",
        cross_file=cross_file,
    )


def issuers(folder: Path) -> dict[str, SigningIssuer]:
    return load_issuers(
        [settings(folder, "old"), settings(folder, "new", cross_file=folder / "cross.pem")]
    )


async def leaf(issuer: SigningIssuer, out: Path) -> Path:
    template = CertificateTemplate(load_profiles(PROFILES).get("service-mtls"), issuer.certificate)
    request = parse_csr(make_csr("leaf.clinic.example")[1])
    copy = template.build(request, serial_number=ids.new_serial_number(), now=CLOCK.now())
    signature = await issuer.keystore.sign(copy.tbs)
    der = assemble(copy.tbs, copy.signature_algorithm, signature)
    out.write_bytes(offline_ca.pem(x509.load_der_x509_certificate(der)))
    return out


def verifies(root: Path, sent: Path, certificate: Path) -> bool:
    done = subprocess.run(
        [
            "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore",
            "-CAfile", root, "-untrusted", sent, certificate,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


async def test_D3_who_has_one_root_verifies_leaves_under_both(roots: Path, tmp_path: Path) -> None:
    """RFC 4210 section 4.4: "the old with new … and new with old certificates"."""
    linking = (roots / "cross.pem").read_bytes()
    for name, issuer in issuers(roots).items():
        certificate = await leaf(issuer, tmp_path / f"{name}.pem")
        chain = (roots / name / "issuing.pem").read_bytes()
        alone, both = tmp_path / "alone.pem", tmp_path / "both.pem"
        alone.write_bytes(chain)
        both.write_bytes(chain + linking)
        for trusted in ("old", "new"):
            root = roots / trusted / "root.pem"
            assert verifies(root, both, certificate), (name, trusted)
            assert verifies(root, alone, certificate) == (trusted == name), (name, trusted)


def test_D2_validity_is_that_of_rfc_4210(roots: Path) -> None:
    """RFC 4210 section 4.4.1: NewWithOld from the new key's beginning to the old root's end."""
    new_with_old, old_with_new = x509.load_pem_x509_certificates((roots / "cross.pem").read_bytes())
    old, new = (
        x509.load_pem_x509_certificate((roots / n / "root.pem").read_bytes())
        for n in ("old", "new")
    )
    assert new_with_old.not_valid_before_utc == new.not_valid_before_utc
    assert new_with_old.not_valid_after_utc == old.not_valid_after_utc
    assert old_with_new.not_valid_before_utc == old.not_valid_before_utc
    assert old_with_new.not_valid_after_utc == old.not_valid_after_utc


def test_D1_cross_certificates_name_key_and_signer_as_the_roots_do(roots: Path) -> None:
    certificates = x509.load_pem_x509_certificates((roots / "cross.pem").read_bytes())
    old, new = (
        x509.load_pem_x509_certificate((roots / n / "root.pem").read_bytes())
        for n in ("old", "new")
    )
    ski, aki = x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier
    for one, subject, issuer in ((certificates[0], new, old), (certificates[1], old, new)):
        one.verify_directly_issued_by(issuer)
        assert one.subject == subject.subject
        found = one.extensions
        own = subject.extensions.get_extension_for_class(ski).value
        above = issuer.extensions.get_extension_for_class(ski).value
        assert found.get_extension_for_class(ski).value == own
        assert found.get_extension_for_class(aki).value.key_identifier == above.digest
        assert found.get_extension_for_class(x509.BasicConstraints).critical


def test_a_file_that_links_nothing_stops_the_start(roots: Path, tmp_path: Path) -> None:
    both = issuers(roots)
    check_cross(both)
    assert linked(both["new"], both["old"])
    for wrong in ("old", "new"):
        other = settings(roots, "new", cross_file=roots / wrong / "root.pem")
        with pytest.raises(ConfigurationError) as refused:
            check_cross(load_issuers([settings(roots, "old"), other]))
        assert refused.value.code == "issuer.cross"
    unlinked = load_issuers([settings(roots, "old"), settings(roots, "new")])
    assert not linked(unlinked["new"], unlinked["old"])


def test_one_direction_alone_is_not_enough(roots: Path, tmp_path: Path) -> None:
    certificates = x509.load_pem_x509_certificates((roots / "cross.pem").read_bytes())
    for certificate in certificates:
        half = tmp_path / "half.pem"
        half.write_bytes(offline_ca.pem(certificate))
        found = load_issuers([settings(roots, "old"), settings(roots, "new", cross_file=half)])
        check_cross(found)
        assert not linked(found["new"], found["old"])


def test_nothing_is_overwritten_and_a_root_is_not_crossed_with_itself(roots: Path) -> None:
    assert cross(roots, "old", "new", "cross.pem") == 2
    assert cross(roots, "old", "old", "self.pem") == 2
    assert not (roots / "self.pem").exists()


def test_a_further_issuing_ca_has_the_same_root_and_another_name(
    roots: Path, tmp_path: Path
) -> None:
    arguments = ["issuing", "--name", "Rolled", "--folder", roots / "old", "--out", tmp_path]
    arguments += ["--passphrase-file", roots / "passphrase"]
    assert ca_signer(["ca", *map(str, arguments)]) == 0
    made = x509.load_pem_x509_certificate((tmp_path / "issuing.pem").read_bytes())
    first = x509.load_pem_x509_certificate((roots / "old" / "issuing.pem").read_bytes())
    assert (tmp_path / "chain.pem").read_bytes() == (roots / "old" / "root.pem").read_bytes()
    assert made.issuer == first.issuer
    assert made.subject != first.subject
    assert made.public_key() != first.public_key()
