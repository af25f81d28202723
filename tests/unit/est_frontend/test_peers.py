"""Who the TLS peer is: our own path validation, at the time of the request."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from ca_signer.ceremony import offline_ca
from est_frontend.auth.client_certificates import PeerValidator, serial_of
from estcore.clock import SystemClock
from estcore.errors import NotAuthenticated, Unavailable
from estcore.pki.pem import pem_text
from estcore.policy.labels import Label, Truststore
from estcore.testing.clock import FakeClock
from estsuite_testing.chains import HOUR, NOON, Pair, certificate
from estsuite_testing.encodings import over_sha1, rdns_out_of_order
from estsuite_testing.tls_link import Link

LABEL = Label(issuer="issuing", profiles=("service-mtls",))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    passphrase = folder / "passphrase"
    passphrase.write_text("a long enough passphrase")
    passphrase.chmod(0o600)
    clock = SystemClock()
    offline_ca.init(folder / "ca", name="T", passphrase_file=passphrase, clock=clock)
    offline_ca.server_certificate(
        folder / "ca",
        out=folder,
        names=["localhost"],
        passphrase_file=passphrase,
        days=9,
        clock=clock,
    )
    return folder


@pytest.fixture(scope="module")
def anchor() -> Pair:
    return certificate("issuing", ca=True)


def connected(files: Path, leaf: Pair, *chain: Pair) -> Link:
    pem = files / "client.pem"
    pem.write_bytes(
        b"".join(c.public_bytes(Encoding.PEM) for c, _ in (leaf, *chain))
        + leaf[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    link = Link(files, ssl.TLSVersion.TLSv1_3, presenting=pem)
    link.handshake()
    link.server_reads()
    return link


def validator(anchor: Pair, clock: FakeClock) -> PeerValidator:
    peers = PeerValidator(clock)
    peers.set_anchors("issuing", [anchor[0].public_bytes(Encoding.DER)])
    return peers


def test_K7_F6_validity_is_that_of_the_request_not_of_the_first_one(
    files: Path, anchor: Pair
) -> None:
    clock = FakeClock(NOON - 2 * HOUR)
    peers = validator(anchor, clock)
    link = connected(files, certificate("svc", anchor))
    for hours, code in ((0, "not_yet_valid"), (2, None), (2, "expired"), (-4, "not_yet_valid")):
        clock.forward(hours=hours)
        if code is None:
            peer = peers.identify(link.server, LABEL)
            assert peer is not None
            assert peer.subject == "CN=svc"
            continue
        with pytest.raises(NotAuthenticated) as refused:
            peers.identify(link.server, LABEL)
        assert refused.value.code == f"auth.certificate_{code}"


def test_K7_a_chain_that_was_missing_once_may_come_the_next_time(files: Path, anchor: Pair) -> None:
    """A refusal is not remembered: a stranger cannot lock a certificate's owner out."""
    peers = validator(anchor, FakeClock(NOON))
    between = certificate("between", anchor, ca=True)
    leaf = certificate("svc", between)
    with pytest.raises(NotAuthenticated) as refused:
        peers.identify(connected(files, leaf).server, LABEL)
    assert refused.value.code == "auth.certificate_untrusted"
    assert peers.identify(connected(files, leaf, between).server, LABEL) is not None


def test_K7_a_different_ca_of_the_same_name_is_not_trusted(files: Path, anchor: Pair) -> None:
    peers = validator(anchor, FakeClock(NOON))
    impostor = certificate("issuing", ca=True)
    with pytest.raises(NotAuthenticated) as refused:
        peers.identify(connected(files, certificate("svc", impostor)).server, LABEL)
    assert refused.value.code == "auth.certificate_untrusted"


def test_a_server_certificate_does_not_identify_a_client(files: Path, anchor: Pair) -> None:
    peers = validator(anchor, FakeClock(NOON))
    leaf = certificate("svc", anchor, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    with pytest.raises(NotAuthenticated) as refused:
        peers.identify(connected(files, leaf).server, LABEL)
    assert refused.value.code == "auth.certificate_usage"


def test_K8_another_makers_certificate_counts_on_labels_that_name_its_truststore(
    files: Path, anchor: Pair
) -> None:
    maker = certificate("maker root", ca=True)
    peers = validator(anchor, FakeClock(NOON))
    pem = maker[0].public_bytes(Encoding.PEM).decode()
    peers.set_truststores({"maker": Truststore(certificates=pem)})
    devices = LABEL.model_copy(update={"truststores": ("maker",)})
    server = connected(files, certificate("device", maker)).server
    peer = peers.identify(server, devices)
    assert peer is not None
    assert (peer.issuer_id, peer.third_party) == ("maker", True)
    with pytest.raises(NotAuthenticated):
        peers.identify(server, LABEL)
    ours = peers.identify(connected(files, certificate("svc", anchor)).server, devices)
    assert ours is not None
    assert (ours.issuer_id, ours.third_party) == ("issuing", False)
    peers.set_truststores({})
    with pytest.raises(NotAuthenticated):
        peers.identify(server, LABEL)


def test_without_the_issuers_certificate_nothing_is_said_about_the_clients(
    files: Path, anchor: Pair
) -> None:
    server = connected(files, certificate("svc", anchor)).server
    peers = PeerValidator(FakeClock(NOON))
    with pytest.raises(Unavailable):
        peers.identify(server, LABEL)
    maker = certificate("maker root", ca=True)
    pem = maker[0].public_bytes(Encoding.PEM).decode()
    peers.set_truststores({"maker": Truststore(certificates=pem)})
    devices = LABEL.model_copy(update={"truststores": ("maker",)})
    with pytest.raises(Unavailable):  # it may be the issuer's
        peers.identify(server, devices)
    assert (
        peers.identify(connected(files, certificate("device", maker)).server, devices) is not None
    )


def devices_of(store: Truststore, anchor: Pair) -> tuple[PeerValidator, Label]:
    peers = validator(anchor, FakeClock(NOON))
    peers.set_truststores({"maker": store})
    return peers, LABEL.model_copy(update={"truststores": ("maker",)})


def refusal(peers: PeerValidator, link: Link, label: Label) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        peers.identify(link.server, label)
    return refused.value.code


def truststore(maker: Pair, *, strict: bool = True) -> Truststore:
    pem = maker[0].public_bytes(Encoding.PEM).decode()
    return Truststore(certificates=f"The maker's root\n{pem}", strict=strict)


@pytest.mark.parametrize("place", ["leaf", "between"])
def test_a_makers_chain_over_sha1_is_refused_wherever_it_is(
    files: Path, anchor: Pair, place: str
) -> None:
    maker = certificate("maker root", ca=True)
    peers, label = devices_of(truststore(maker), anchor)
    between = certificate("between", maker, ca=True)
    leaf = certificate("device", between)
    if place == "leaf":
        leaf = over_sha1(leaf, between)
    else:
        between = over_sha1(between, maker)
    assert refusal(peers, connected(files, leaf, between), label) == "auth.certificate_weak"


def test_a_makers_chain_without_key_identifiers_needs_a_store_that_is_not_strict(
    files: Path, anchor: Pair
) -> None:
    maker = certificate("maker root", ca=True, identified=False)
    link = connected(files, certificate("device", maker, identified=False))
    peers, label = devices_of(truststore(maker), anchor)
    assert refusal(peers, link, label) == "auth.certificate_strict"
    peers.set_truststores({"maker": truststore(maker, strict=False)})
    peer = peers.identify(link.server, label)
    assert peer is not None
    peers.set_truststores({"maker": truststore(maker)})
    assert refusal(peers, link, label) == "auth.certificate_strict"


def test_a_makers_ca_for_another_purpose_identifies_no_client(files: Path, anchor: Pair) -> None:
    maker = certificate("maker root", ca=True)
    peers, label = devices_of(truststore(maker), anchor)
    between = certificate("between", maker, ca=True, usage=ExtendedKeyUsageOID.CODE_SIGNING)
    link = connected(files, certificate("device", between), between)
    assert refusal(peers, link, label) == "auth.certificate_usage"


def test_a_makers_certificates_may_have_rdns_out_of_order(files: Path, anchor: Pair) -> None:
    maker, between, leaf = (rdns_out_of_order(n) for n in ("root", "between", "device"))
    root = maker.issued_by(maker, ca=True)
    pem = pem_text("CERTIFICATE", root)
    peers, label = devices_of(Truststore(certificates=pem), anchor)
    chain = [leaf.issued_by(between, ca=False), between.issued_by(maker, ca=True)]
    file = files / "unsorted.pem"
    key = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes("".join(pem_text("CERTIFICATE", c) for c in chain).encode() + key)
    link = Link(files, ssl.TLSVersion.TLSv1_3, presenting=file)
    link.handshake()
    link.server_reads()
    peer = peers.identify(link.server, label)
    assert peer is not None
    assert peer.subject_canonical == "CN=device+O=maker"
    assert peer.der == chain[0]
    assert serial_of(peer.der)


@given(st.integers(1, 2**159 - 1))
def test_a_serial_number_is_written_in_octets_as_in_every_other_record(number: int) -> None:
    """Those of our CA begin with 01: written as a number they would lose the zero."""
    presented, _ = certificate("svc", serial_number=number)
    octets = number.to_bytes((number.bit_length() + 7) // 8, "big")
    assert serial_of(presented.public_bytes(Encoding.DER)) == octets.hex()
