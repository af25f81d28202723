"""Outputs of the agent: the forms that services read, and where they may be written."""

from __future__ import annotations

import asyncio
import datetime as dt
import grp
import os
import shutil
import ssl
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
from pydantic import ValidationError

from estclient.agent.bundle import Bundle
from estclient.agent.credential_store import CredentialStore
from estclient.agent.output_files import Outputs
from estclient.agent.output_settings import OutputSettings
from estclient.agent.placed_file import Access, opened_folder, place_file
from estclient.errors import OutputFailed
from estcore.clock import SystemClock
from estcore.errors import ConfigurationError
from estsuite_testing.est_server import CA

NOW = SystemClock().now
KEYTOOL = shutil.which("keytool")


@pytest.fixture(scope="module")
def ca() -> CA:
    return CA()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text("a password")
    return file


def output(**values: Any) -> OutputSettings:
    return OutputSettings.model_validate(values)


def store(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "store")


def write(
    tmp_path: Path, settings: OutputSettings, bundle: Bundle, old: Bundle | None = None
) -> list[Path]:
    return asyncio.run(Outputs([settings], tmp_path / "store").write(bundle, old))


def test_pem_files_are_what_openssl_loads(tmp_path: Path, ca: CA, out: Path) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    files = {name: str(out / f"{name}.pem") for name in ("certificate", "key", "ca")}
    settings = output(format="pem", **files, mode="0640")
    assert len(write(tmp_path, settings, bundle)) == 3
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certificate"], files["key"])
    context.load_verify_locations(files["ca"])
    chain = x509.load_pem_x509_certificates((out / "certificate.pem").read_bytes())
    assert chain == [bundle.certificate, ca.issuer]
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in out.iterdir()}
    assert modes == {"certificate.pem": 0o644, "key.pem": 0o640, "ca.pem": 0o644}
    # The same again changes nothing; what another program changed is written again.
    assert write(tmp_path, settings, bundle) == []
    (out / "key.pem").chmod(0o644)
    (out / "ca.pem").write_text("x")
    assert [p.name for p in write(tmp_path, settings, bundle)] == ["key.pem", "ca.pem"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [({}, 2), ({"chain": False}, 1), ({"root": True}, 3)],
)
def test_a_combined_file_has_chain_and_key(
    tmp_path: Path, ca: CA, out: Path, changes: dict[str, Any], names: int
) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    file = out / "web.pem"
    write(tmp_path, output(format="combined-pem", path=str(file), **changes), bundle)
    octets = file.read_bytes()
    assert len(x509.load_pem_x509_certificates(octets)) == names
    assert load_pem_private_key(octets, None) is not None
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file)


def test_pkcs12_opens_with_its_password_only(
    tmp_path: Path, ca: CA, out: Path, password: Path
) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    file = out / "web.p12"
    settings = output(format="pkcs12", path=str(file), password_file=str(password), alias="web")
    assert write(tmp_path, settings, bundle) == [file]
    assert write(tmp_path, settings, bundle) == []
    loaded = pkcs12.load_pkcs12(file.read_bytes(), b"a password")
    assert loaded.cert is not None
    assert loaded.cert.friendly_name == b"web"
    assert loaded.cert.certificate == bundle.certificate
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_pkcs12(file.read_bytes(), b"another one")
    password.write_text("changed password")
    assert write(tmp_path, settings, bundle) == [file]
    password.write_text("short")
    with pytest.raises(OutputFailed, match="6 characters") as caught:
        write(tmp_path, settings, bundle)
    assert caught.value.code == "agent.keystore_password"


@pytest.mark.skipif(KEYTOOL is None, reason="Java is not installed")
def test_java_reads_every_key_store(tmp_path: Path, ca: CA, out: Path, password: Path) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    for form, kind, words in (
        ("jks", "JKS", "PrivateKeyEntry"),
        ("pkcs12", "PKCS12", "PrivateKeyEntry"),
        ("pkcs12-truststore", "PKCS12", "trustedCertEntry"),
    ):
        file = out / form
        settings = output(format=form, path=str(file), password_file=str(password))
        assert write(tmp_path, settings, bundle) == [file]
        assert write(tmp_path, settings, bundle) == []
        done = subprocess.run(
            [str(KEYTOOL), "-list", "-storetype", kind, "-keystore", file,
             "-storepass:file", password],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert words in done.stdout
        assert "1 entry" in done.stdout
    assert (out / "jks").read_bytes()[:4] == bytes.fromhex("feedfeed")
    (out / "jks").write_bytes(b"")
    settings = output(format="jks", path=str(out / "jks"), password_file=str(password))
    assert write(tmp_path, settings, bundle) == [out / "jks"]


def test_without_java_jks_is_refused_in_one_line(
    tmp_path: Path, ca: CA, out: Path, password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = output(format="jks", path=str(out / "jks"), password_file=str(password))
    with pytest.raises(OutputFailed, match="pkcs12") as caught:
        write(tmp_path, settings, bundle)
    assert caught.value.code == "agent.keytool"


def test_the_credential_before_lies_beside_until_it_expires(
    tmp_path: Path, ca: CA, out: Path
) -> None:
    kept = store(tmp_path)
    old = kept.save(ca.bundle(life=dt.timedelta(hours=1)), now=NOW())
    file = out / "web.pem"
    settings = output(format="combined-pem", path=str(file), previous=True)
    assert write(tmp_path, settings, old, kept.previous(old, now=NOW())) == [file]
    new = kept.save(ca.bundle(), now=NOW())
    before = kept.previous(new, now=NOW())
    assert before is not None
    assert before.fingerprint == old.fingerprint
    beside = out / "web.pem.previous"
    assert write(tmp_path, settings, new, before) == [file, beside]
    assert x509.load_pem_x509_certificate(beside.read_bytes()) == old.certificate
    assert x509.load_pem_x509_certificate(file.read_bytes()) == new.certificate
    later = NOW() + dt.timedelta(hours=2)
    assert kept.previous(new, now=later) is None
    assert write(tmp_path, settings, new, None) == [beside]
    assert not beside.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"format": "pem", "path": "/x"},
        {"format": "pem", "certificate": "/c"},
        {"format": "combined-pem"},
        {"format": "combined-pem", "path": "/x", "key": "/k"},
        {"format": "combined-pem", "path": "relative"},
        {"format": "combined-pem", "path": "/a/../b"},
        {"format": "combined-pem", "path": "/x", "mode": "0644"},
        {"format": "combined-pem", "path": "/x", "mode": "0601"},
        {"format": "combined-pem", "path": "/x", "mode": "4600"},
        {"format": "combined-pem", "path": "/x", "password_file": "/p"},
        {"format": "pkcs12", "path": "/x"},
        {"format": "pem", "certificate": "/c", "key": "/c"},
        {"format": "combined-pem", "path": "/x", "owner": "-R"},
        {"format": "der", "path": "/x"},
    ],
)
def test_outputs_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        output(**values)


# Places.


def test_a_reader_sees_the_old_file_or_the_new_one(out: Path) -> None:
    file = out / "f"
    place_file(file, b"old", Access(0o600))
    with file.open("rb") as reader:
        place_file(file, b"new", Access(0o600))
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"
    assert [p.name for p in out.iterdir()] == ["f"]


def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(out: Path) -> None:
    victim = out / "victim"
    victim.write_text("precious")
    (out / "f").symlink_to(victim)
    (out / ".f.new").symlink_to(victim)
    place_file(out / "f", b"new", Access(0o600))
    assert victim.read_text() == "precious"
    assert not (out / "f").is_symlink()


def test_a_pipe_in_the_place_of_the_file_stops_nothing(tmp_path: Path, ca: CA, out: Path) -> None:
    bundle = store(tmp_path).save(ca.bundle(), now=NOW())
    file = out / "web.pem"
    os.mkfifo(file, 0o600)
    assert write(tmp_path, output(format="combined-pem", path=str(file)), bundle) == [file]
    assert file.is_file()


def test_our_own_links_are_followed(tmp_path: Path, out: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "again").symlink_to(tmp_path / "link")
    place_file(tmp_path / "again" / "f", b"x", Access(0o600))
    assert (out / "f").read_bytes() == b"x"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputFailed, match="too many"):
        place_file(tmp_path / "loop" / "f", b"x", Access(0o600))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_links_and_folders_of_others_are_refused(tmp_path: Path, out: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(out)
    os.lchown(link, 12345, 12345)
    with pytest.raises(OutputFailed, match="symbolic link") as caught:
        place_file(link / "f", b"x", Access(0o600))
    assert caught.value.code == "agent.output_path"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(OutputFailed, match="another user"):
        place_file(theirs / "f", b"x", Access(0o600))
    place_file(theirs / "f", b"x", Access(0o640, owner="12345", group="12346"))
    status = (theirs / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 12346, 0o640)


def test_a_folder_that_everybody_may_change_is_refused(out: Path) -> None:
    out.chmod(0o1777)
    with pytest.raises(OutputFailed, match="everybody"):
        place_file(out / "f", b"x", Access(0o600))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["owner", "group"])
def test_an_account_that_does_not_exist_is_named(out: Path, name: str) -> None:
    with pytest.raises(OutputFailed, match="no-such-account") as caught:
        place_file(out / "f", b"x", Access(0o600, **{name: "no-such-account"}))
    assert caught.value.code == "agent.output_owner"
    assert list(out.iterdir()) == []


def test_a_group_is_given_by_its_name(out: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    place_file(out / "f", b"x", Access(0o640, group=group))
    assert (out / "f").stat().st_gid == os.getegid()


def test_descriptors_are_closed_whatever_happens(out: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (out, out / "missing", Path("/etc/passwd")):
        for _ in range(3):
            try:
                with opened_folder(path, -1):
                    pass
            except OSError:
                pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_missing_password_is_named(tmp_path: Path, ca: CA, out: Path) -> None:
    bundle = replace(ca.bundle(), folder=None)
    settings = output(format="pkcs12", path=str(out / "p"), password_file=str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="none"):
        write(tmp_path, settings, bundle)
