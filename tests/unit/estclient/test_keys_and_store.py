"""Keys, requests, and credentials on disk."""

from __future__ import annotations

import datetime as dt
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from estclient.agent.bundle import Pending, verify_bundle
from estclient.agent.credential_store import CredentialStore
from estclient.errors import BundleInvalid
from estclient.est.keys import csr_like, make_csr, make_key, request_builder
from estclient.est.proof_of_use import sign_ack
from estcore.clock import SystemClock
from estcore.pki.csr import parse_csr
from estcore.pki.keys import KEY_ALGORITHMS
from estcore.testing.clock import FakeClock

NOW = SystemClock().now


@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
def test_a_request_like_a_certificate_repeats_its_names_with_any_key(
    ca: Any, algorithm: Any
) -> None:
    current = ca.bundle().certificate
    request = parse_csr(csr_like(current, make_key(algorithm)))
    assert request.key_algorithm == algorithm
    assert request.subject.public_bytes() == current.subject.public_bytes()
    san = current.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert request.san_extension == san.value


@given(st.sampled_from(["UTF8String", "PrintableString", "IA5String", "T61String"]))
def test_the_string_type_of_a_name_is_kept_octet_for_octet(kind: str) -> None:
    tag = {"UTF8String": 12, "PrintableString": 19, "IA5String": 22, "T61String": 20}[kind]
    asn1 = next(t for t in x509.name._ASN1Type if t.value == tag)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web", _type=asn1)])
    key = make_key()
    start = NOW().replace(microsecond=0)
    certificate = x509.CertificateBuilder(
        subject, subject, key.public_key(), 1, start, start + dt.timedelta(days=1)
    ).sign(key, hashes.SHA256())
    request = x509.load_der_x509_csr(csr_like(certificate, make_key()))
    assert request.subject.public_bytes() == subject.public_bytes()
    assert len(request.extensions) == 0


def test_a_first_request_carries_the_names_asked_for() -> None:
    san = ["dns:web.demo", "ip:10.0.0.1", "uri:spiffe://demo/web", "email:a@b.test"]
    request = parse_csr(make_csr(make_key(), "CN=web.demo,O=Clinic", san))
    assert request.subject_text == "CN=web.demo,O=Clinic"
    assert request.san == tuple(sorted(san))
    with pytest.raises(ValueError, match="nothing"):
        make_csr(make_key(), "CN=web", ["nothing"])


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "ec-p521", "rsa-2048", "ed25519"])
def test_a_proof_of_use_verifies_with_the_public_key(algorithm: Any) -> None:
    key = make_key(algorithm)
    now = FakeClock().now()
    token = sign_ack(key, rotation_id="r-1", serial="01ab", now=now)
    kinds: dict[str, Any] = {"ec": ECKey, "rs": RSAKey, "ed": OKPKey}
    public = kinds[algorithm[:2]].import_key(key.public_key())
    allowed = ["ES256", "ES384", "ES512", "PS256", "Ed25519"]
    found = jws.deserialize_compact(token, public, algorithms=allowed)
    assert found.payload == (
        b'{"rotation_id":"r-1","serial":"01ab","iat":%d}' % int(now.timestamp())
    )


def test_a_stored_bundle_is_read_back_and_the_key_is_private(ca: Any, tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "store")
    assert store.load() is None
    stored = store.save(replace(ca.bundle(), rotation_id="r-1", proven=False), now=NOW())
    again = CredentialStore(tmp_path / "store").load()
    assert again is not None
    assert again.fingerprint == stored.fingerprint
    assert (again.rotation_id, again.proven) == ("r-1", False)
    chain, key = again.files
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(x509.load_pem_x509_certificates(chain.read_bytes())) == 2
    store.note(replace(again, proven=True))
    final = store.load()
    assert final is not None
    assert final.proven


def test_a_bad_bundle_changes_nothing(ca: Any, tmp_path: Path) -> None:
    store = CredentialStore(tmp_path)
    good = store.save(ca.bundle(), now=NOW())
    other = ca.bundle()
    for wrong, code in (
        (replace(other, key=make_key()), "bundle.key"),
        (replace(other, authorities=(ca.root,)), "bundle.chain"),
    ):
        with pytest.raises(BundleInvalid) as caught:
            store.save(wrong, now=NOW())
        assert caught.value.code == code
    with pytest.raises(BundleInvalid, match="not valid now"):
        verify_bundle(other, now=NOW() + dt.timedelta(days=2))
    kept = store.load()
    assert kept is not None
    assert kept.fingerprint == good.fingerprint


def test_the_last_three_generations_are_kept(ca: Any, tmp_path: Path) -> None:
    store = CredentialStore(tmp_path)
    saved = [store.save(ca.bundle(), now=NOW()) for _ in range(5)]
    names = sorted(p.name[:4] for p in (tmp_path / "generations").iterdir())
    assert names == ["0003", "0004", "0005"]
    assert store.current.resolve() == saved[-1].folder


def test_a_request_under_way_survives_a_restart(ca: Any, tmp_path: Path) -> None:
    current = ca.bundle()
    key = make_key()
    CredentialStore(tmp_path).begin(
        Pending(key, csr_like(current.certificate, key), current.fingerprint)
    )
    store = CredentialStore(tmp_path)
    found = store.pending(current.fingerprint)
    assert found is not None
    assert found.key.public_key() == key.public_key()
    assert store.pending("another") is None
    store.forget()
    assert store.pending(current.fingerprint) is None


@pytest.mark.parametrize(
    "entry", ["dns:", "dns:a b", "dns:web.demo.", "ip:", "ip:10.0.0.0/8", "uri:", "uri:web", "email:",
              "email:web", "web.demo", "other:x"],
)  # fmt: skip
def test_an_entry_that_is_no_name_is_refused_before_it_is_sent(entry: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each kind of name has its own reason
        request_builder("CN=web", ["dns:web.demo", entry])


def test_what_the_policy_of_a_server_decides_on_is_sent() -> None:
    csr = make_csr(make_key("ec-p256"), "CN=web", ["dns:*.web.demo", "dns:_web.demo"])
    san = x509.load_der_x509_csr(csr).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert san.value.get_values_for_type(x509.DNSName) == ["*.web.demo", "_web.demo"]
