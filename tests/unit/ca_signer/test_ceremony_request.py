"""An issuing CA under an external root: the request here, the certificate there, then import."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from ca_signer.cli.entry import main as ca_signer
from ca_signer.settings import IssuerSettings
from ca_signer.signing.issuers import load_issuer

EXTENSIONS = """[ca]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def openssl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("a long enough passphrase")
    path.chmod(0o600)
    return path


def ask(folder: Path, passphrase: Path, *more: str, subject: str = "CN=Ward CA,O=Clinic") -> int:
    return ca_signer(
        ["ca", "csr", "--folder", str(folder), "--passphrase-file", str(passphrase),
         "--subject", subject, *more]
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-3072", "ed25519"])
def test_a_request_signed_by_an_external_ca_is_imported_and_signs(
    tmp_path: Path, passphrase: Path, algorithm: str
) -> None:
    ca = tmp_path / "ca"
    # 1. Key and request; openssl verifies the request.
    assert ask(ca, passphrase, "--algorithm", algorithm) == 0
    assert stat.S_IMODE((ca / "issuing.key").stat().st_mode) == 0o600
    assert "ENCRYPTED" in (ca / "issuing.key").read_text()
    text = openssl(ca, "req", "-in", "issuing.csr", "-verify", "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in text
    # 2. An external root signs it.
    (tmp_path / "ext").write_text(EXTENSIONS)
    openssl(tmp_path, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-nodes", "-keyout", "root.key", "-subj", "/CN=Their Root", "-days", "30",
            "-out", "root.pem")  # fmt: skip
    openssl(tmp_path, "x509", "-req", "-in", "ca/issuing.csr", "-CA", "root.pem", "-CAkey",
            "root.key", "-days", "20", "-extfile", "ext", "-extensions", "ca",
            "-set_serial", "7", "-out", "signed.pem")  # fmt: skip
    # 3. It is imported, and the signer takes key and certificate together.
    taken = ["import", "--folder", str(ca), "--certificate", str(tmp_path / "signed.pem"),
             "--chain", str(tmp_path / "root.pem"), "--csr", str(ca / "issuing.csr")]  # fmt: skip
    assert ca_signer(["ca", *taken]) == 0
    issuer = load_issuer(
        IssuerSettings(
            issuer_id="ward",
            certificate_file=ca / "issuing.pem",
            chain_file=ca / "chain.pem",
            key_file=ca / "issuing.key",
            passphrase_file=passphrase,
        )
    )
    assert issuer.certificate.subject.rfc4514_string() == "CN=Ward CA,O=Clinic"


def test_no_key_is_written_over(
    tmp_path: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tmp_path / "ca", passphrase) == 0
    before = (tmp_path / "ca" / "issuing.key").read_bytes()
    assert ask(tmp_path / "ca", passphrase) == 2
    assert "[ca.exists]" in capsys.readouterr().err
    assert (tmp_path / "ca" / "issuing.key").read_bytes() == before


@pytest.mark.parametrize("subject", ["", "Ward CA", "CN"])
def test_a_subject_that_is_no_name_is_one_line(
    tmp_path: Path, passphrase: Path, capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    assert ask(tmp_path / "ca", passphrase, subject=subject) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ca").exists()
