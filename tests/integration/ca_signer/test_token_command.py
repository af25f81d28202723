"""A CA key that is born in a token: ``ca-signer token …``, ``ca init --issuing-csr``, ``ca import``."""

from __future__ import annotations

import datetime as dt
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_signer.cli.entry import main as ca_signer
from ca_signer.signing.hsm.csr import CA_KEY_USAGE
from ca_signer.signing.hsm.token import opened
from ca_signer.signing.issuers import SigningIssuer, load_issuers, tokens_of
from estcore import ids
from estcore.clock import SystemClock
from estcore.pki.certificate import CertificateTemplate, assemble
from estcore.pki.csr import parse_csr
from estcore.pki.profile import load_profiles
from estsuite_testing.e2e_stack import make_csr
from estsuite_testing.signer_stack import PROFILES
from estsuite_testing.softhsm import (
    ALGORITHMS,
    CommandFailed,
    SoftHSM,
    ca_signer_token,
    issuer_settings,
    with_keys,
)

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHSM:
    return with_keys(SoftHSM(tmp_path_factory.mktemp("hsm")))


def test_list_names_every_key_and_that_it_stays(hsm: SoftHSM) -> None:
    lines = ca_signer_token(hsm, "list").stdout.splitlines()
    assert sorted(lines) == [f"{i}\t{name}\tstays\t{name}" for i, name in ALGORITHMS.items()]


def test_the_token_is_found_by_its_serial_as_well(hsm: SoftHSM) -> None:
    listed = subprocess.run(
        ["softhsm2-util", "--module", hsm.module, "--show-slots"],
        env=hsm.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    serial = next(s for s in (li.split()[-1] for li in listed.splitlines() if "Serial" in li))
    assert ca_signer_token(hsm, "list", "--serial", serial).stdout.count("\n") == len(ALGORITHMS)


@pytest.mark.parametrize("key_id", ALGORITHMS, ids=ALGORITHMS.values())
def test_openssl_verifies_the_request_of_a_key_in_a_token(hsm: SoftHSM, key_id: str) -> None:
    done = subprocess.run(
        ["openssl", "req", "-in", hsm.csr(key_id), "-verify", "-noout", "-text"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verify OK" in done.stderr + done.stdout
    assert "CA:TRUE, pathlen:0" in done.stdout
    assert "Certificate Sign, CRL Sign" in done.stdout


async def issued(issuer: SigningIssuer) -> bytes:
    """One certificate, made by the very parts the signer uses."""
    profile = load_profiles(PROFILES).get("service-mtls")
    template = CertificateTemplate(profile, issuer.certificate)
    request = parse_csr(make_csr("token.clinic.example")[1])
    copy = template.build(request, serial_number=ids.new_serial_number(), now=SystemClock().now())
    signature = await issuer.keystore.sign(copy.tbs)
    issuer.check_signature(copy.tbs, signature)
    return assemble(copy.tbs, copy.signature_algorithm, signature)


@pytest.mark.parametrize("key_id", ALGORITHMS, ids=ALGORITHMS.values())
async def test_openssl_verifies_what_a_token_signed(
    hsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_id: str
) -> None:
    hsm.use(monkeypatch)
    issuers = load_issuers([issuer_settings(hsm, tmp_path, key_id)])
    async with opened(tokens_of(issuers)):
        certificate = x509.load_der_x509_certificate(await issued(issuers["issuing"]))
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "ca" / "root.pem",
         "-untrusted", tmp_path / "ca" / "issuing.pem", leaf],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_key_id_is_given_once(hsm: SoftHSM) -> None:
    with pytest.raises(CommandFailed, match="KeyIdTaken"):
        ca_signer_token(hsm, "generate", "--key-id", "01")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("--label", "another"), "NoSuchToken"),
        (("--module", "/nowhere.so"), "no PKCS#11 module"),
        (("--module", "/bin/true"), "module: PKCS11Error"),
    ],
    ids=["token", "file", "no module"],
)
def test_what_is_wrong_is_one_line(hsm: SoftHSM, change: tuple[str, ...], word: str) -> None:
    with pytest.raises(CommandFailed, match=word) as caught:
        ca_signer_token(hsm, "list", *change)
    assert caught.value.args[1].count("\n") == 1


def test_a_wrong_pin_is_one_line_without_the_pin(hsm: SoftHSM, tmp_path: Path) -> None:
    wrong = tmp_path / "pin"
    wrong.write_text("9999-is-wrong")
    wrong.chmod(0o600)
    with pytest.raises(CommandFailed, match="the PIN is wrong") as caught:
        ca_signer_token(hsm, "list", "--pin-file", str(wrong))
    assert caught.value.args[0] == 2
    assert "9999" not in caught.value.args[1]


def test_init_for_a_foreign_key_refuses_a_request_that_does_not_verify(
    hsm: SoftHSM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = x509.load_pem_x509_csr(hsm.csr("01").read_bytes())
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-1] ^= 1
    broken, passphrase = tmp_path / "broken.csr", tmp_path / "passphrase"
    broken.write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM))
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    assert ca_signer(
        ["ca", "init", "--name", "T", "--folder", str(tmp_path / "ca"), "--issuing-csr", str(broken),
         "--passphrase-file", str(passphrase)]
    ) == 2  # fmt: skip
    assert "is wrong" in capsys.readouterr().err
    assert not (tmp_path / "ca").exists()


@dataclass(frozen=True)
class Above:
    """An outside CA that signs the request; every test changes one thing."""

    root_length: int | None = 1
    ca: bool = True
    usage: bool = True
    days: int = 30
    foreign_key: bool = False
    foreign_root: bool = False
    ski: bool = True

    def write(self, csr: Path, folder: Path) -> list[str]:
        """Write certificate and chain; returns the arguments of ``import``."""
        root_key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Outside Root")])
        request = x509.load_pem_x509_csr(csr.read_bytes())
        public_key = other.public_key() if self.foreign_key else request.public_key()
        root = self._builder(root_name, root_name, root_key.public_key(), self.root_length)
        issuing = self._builder(request.subject, root_name, public_key, 0)
        signer = other if self.foreign_root else root_key
        chain, certificate = folder / "chain.in.pem", folder / "issuing.in.pem"
        chain.write_bytes(root.sign(root_key, SHA256()).public_bytes(Encoding.PEM))
        certificate.write_bytes(issuing.sign(signer, SHA256()).public_bytes(Encoding.PEM))
        return [
            "import", "--folder", str(folder / "ca"), "--certificate", str(certificate),
            "--chain", str(chain), "--csr", str(csr),
        ]  # fmt: skip

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: Any, length: int | None
    ) -> x509.CertificateBuilder:
        ca = self.ca or subject == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=60))
            .not_valid_after(NOW + dt.timedelta(days=self.days))
            .add_extension(x509.BasicConstraints(ca, length if ca else None), critical=True)
        )
        usage = CA_KEY_USAGE if self.usage else replace_usage()
        builder = builder.add_extension(usage, critical=True)
        if self.ski:
            ski = x509.SubjectKeyIdentifier.from_public_key(key)
            builder = builder.add_extension(ski, critical=False)
        return builder


def replace_usage() -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def test_a_certificate_signed_by_an_external_ca_is_imported(hsm: SoftHSM, tmp_path: Path) -> None:
    arguments = Above().write(hsm.csr("02"), tmp_path)
    assert ca_signer(["ca", *arguments]) == 0
    for name in ("issuing", "chain"):
        wanted = (tmp_path / f"{name}.in.pem").read_bytes()
        assert (tmp_path / "ca" / f"{name}.pem").read_bytes() == wanted
    assert ca_signer(["ca", *arguments]) == 2  # never over another


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"foreign_key": True}, "is not for the key"),
        ({"foreign_root": True}, "breaks at CN=Outside Root"),
        ({"ca": False}, "is not a CA certificate"),
        ({"root_length": 0}, "allows 0 CAs below it, not 1"),
        ({"usage": False}, "may not sign certificates"),
        ({"days": -1}, "is not valid now"),
        ({"ski": False}, "lacks an extension"),
    ],
    ids=lambda value: str(value),
)
def test_import_refuses_what_clients_would_refuse(
    hsm: SoftHSM,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    word: str,
) -> None:
    arguments = replace(Above(), **change).write(hsm.csr("01"), tmp_path)
    assert ca_signer(["ca", *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "ca").exists()
