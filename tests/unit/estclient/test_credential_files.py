"""Certificate and key as files: made, replaced, and whole after every crash."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from estclient.est.keys import PrivateKey, make_key
from estclient.files.credential_files import (
    CredentialFiles,
    is_key_of,
    key_in,
    read_chain,
    read_key,
    write_chain,
)
from estclient.files.server_options import key_beside
from estcore.errors import ConfigurationError

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)


def certificate_for(key: PrivateKey, name: str = "web") -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        subject, subject, key.public_key(), x509.random_serial_number(), NOW, NOW + dt.timedelta(9)
    )
    return builder.sign(issuer_key, SHA256())


def files_in(folder: Path) -> CredentialFiles:
    return CredentialFiles(folder / "web.pem", folder / "web.key")


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "web.key"
    key, made = key_in(file, "ec-p256")
    again, made_again = key_in(file, "ec-p384")
    assert (made, made_again) == (True, False)
    assert key.private_numbers() == again.private_numbers()  # type: ignore[union-attr]
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(ConfigurationError) as refused:
        read_key(file)
    assert refused.value.code == "secret.exposed"


class Crashed(Exception):
    """The process ended here."""


@pytest.mark.parametrize("crash_at", range(5))
def test_after_a_crash_at_every_step_the_pair_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Every rename is a step; what a crash leaves is finished, or is as before."""
    files = files_in(tmp_path)
    old_key, _ = key_in(files.key, "ec-p256")
    old = certificate_for(old_key)
    write_chain(files.certificate, [old])
    new_key, _ = key_in(files.new_key, "ec-p256")
    new = certificate_for(new_key)
    steps = 0
    rename = Path.replace

    def counted(self: Path, target: Path) -> Path:
        nonlocal steps
        if steps == crash_at:
            raise Crashed
        steps += 1
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counted)
        try:
            files.store([new])
        except Crashed:
            assert crash_at < 3
        else:
            assert crash_at >= 3
    files.resume()
    certificate = read_chain(files.certificate)[0]
    assert is_key_of(read_key(files.key), certificate)
    assert certificate == (old if crash_at == 0 else new)
    assert not files.new_certificate.exists()
    assert files.new_key.exists() == (crash_at == 0), "the same key asks again"
    assert not files.resume()


def test_a_chain_of_a_different_key_is_not_taken(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    key_in(files.key, "ec-p256")
    write_chain(files.new_certificate, [certificate_for(make_key())])
    assert not files.resume()
    assert not files.certificate.exists()


def test_what_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "web.pem"
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_chain(missing, [certificate_for(make_key())])
    folder = tmp_path / "folder.pem"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_chain(folder, [certificate_for(make_key())])
    assert list(tmp_path.iterdir()) == [folder]
    shutil.rmtree(folder)


def test_the_key_lies_beside_the_certificate() -> None:
    assert key_beside(Path("a/web.pem")) == Path("a/web.key")
    with pytest.raises(ConfigurationError, match="give --key"):
        key_beside(Path("web.key"))
