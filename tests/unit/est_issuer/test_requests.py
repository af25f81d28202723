"""Requests: which are processed, which are refused at once, and that any input gives one of both."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from est_issuer import requests
from est_issuer.durations import parse_duration, shown
from est_issuer.errors import InvalidRequest
from est_issuer.kinds import CLUSTER_ISSUERS, GROUP, ISSUERS, Key
from est_issuer.sources import access_review
from estsuite_testing.chains import make_request

_, CSR = make_request("web.devices.test")
_, OF_A_CA = make_request("ca.devices.test", is_ca=True)
APPROVED = {"type": "Approved", "status": "True"}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def request(**spec: Any) -> dict[str, Any]:
    reference = {"group": GROUP, "kind": "ESTIssuer", "name": "est"}
    good = {"request": base64.b64encode(CSR).decode(), "issuerRef": reference}
    return {
        "metadata": {"namespace": "shop", "name": "web-1"},
        "spec": {**good, **spec},
        "status": {"conditions": [APPROVED]},
    }


def with_status(*conditions: dict[str, str], **status: Any) -> dict[str, Any]:
    return {**request(), "status": {"conditions": [*conditions], **status}}


@pytest.mark.parametrize(
    ("found", "step"),
    [
        (with_status(), "ignore"),
        ({**request(), "status": None}, "ignore"),
        (with_status(APPROVED), "issue"),
        (with_status({"type": "Approved", "status": "False"}), "ignore"),
        (with_status({"type": "Denied", "status": "True"}), "deny"),
        (with_status(APPROVED, {"type": "Denied", "status": "True"}), "deny"),
        (with_status(APPROVED, {"type": "Ready", "status": "False", "reason": "Pending"}), "issue"),
        (with_status(APPROVED, {"type": "Ready", "status": "False", "reason": "Failed"}), "ignore"),
        (with_status(APPROVED, {"type": "Ready", "status": "False", "reason": "Denied"}), "ignore"),
        (with_status(APPROVED, {"type": "Ready", "status": "True", "reason": "Issued"}), "ignore"),
        (with_status(APPROVED, certificate="LS0t"), "ignore"),
    ],
)
def test_only_approved_requests_without_an_outcome_are_issued(
    found: dict[str, Any], step: str
) -> None:
    assert requests.next_step(found) == step


def test_a_request_that_is_being_deleted_is_ignored() -> None:
    found = with_status(APPROVED)
    found["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z"
    assert requests.next_step(found) == "ignore"


@pytest.mark.parametrize(
    ("conditions", "status", "step"),
    [
        ([], {}, "ignore"),
        ([APPROVED], {}, "issue"),
        ([APPROVED], {"certificate": "LS0t"}, "ignore"),
        ([APPROVED, {"type": "Denied", "status": "True"}], {}, "ignore"),
        ([APPROVED, {"type": "Failed", "status": "True"}], {}, "ignore"),
    ],
)
def test_signing_requests_of_kubernetes_follow_its_conditions(
    conditions: list[dict[str, str]], status: dict[str, str], step: str
) -> None:
    assert requests.next_signing_step(with_status(*conditions, **status)) == step


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ({"group": GROUP, "kind": "ESTIssuer", "name": "a"}, (ISSUERS, Key("shop", "a"))),
        (
            {"group": GROUP, "kind": "ESTClusterIssuer", "name": "a"},
            (CLUSTER_ISSUERS, Key("", "a")),
        ),
        ({"group": "cert-manager.io", "kind": "ESTIssuer", "name": "a"}, None),
        ({"group": GROUP, "kind": "Issuer", "name": "a"}, None),
        ({"name": "a"}, None),
    ],
)
def test_only_issuers_of_our_group_and_kinds_are_ours(
    reference: dict[str, str], key: tuple[Any, Key] | None
) -> None:
    found = requests.issuer_of_request(request(issuerRef=reference))
    assert (found and (found.resource, found.key)) == key


@pytest.mark.parametrize(
    ("signer", "key"),
    [
        (f"estissuers.{GROUP}/shop.est", Key("shop", "est")),
        (f"estissuers.{GROUP}/shop.est.eu", Key("shop", "est.eu")),
        (f"estclusterissuers.{GROUP}/est.eu", Key("", "est.eu")),
        (f"estissuers.{GROUP}/est", None),
        (f"estissuers.{GROUP}/", None),
        (f"estclusterissuers.{GROUP}/", None),
        ("kubernetes.io/kube-apiserver-client", None),
        ("", None),
    ],
)
def test_signer_names_are_those_of_cert_manager(signer: str, key: Key | None) -> None:
    found = requests.issuer_of_signer(signer)
    assert (found and found.key) == key


def test_a_request_is_read() -> None:
    found = request(duration="2160h0m0s", usages=["client auth"])
    found["metadata"]["annotations"] = {"cert-manager.io/certificate-name": "web"}
    read = requests.read_request(found)
    assert read.csr == x509.load_pem_x509_csr(CSR)
    assert (read.usages, read.duration) == (("client auth",), dt.timedelta(days=90))
    assert read.certificate_name == "web"
    assert {n.value for n in requests.san_of(read.csr)} == {"web.devices.test"}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"isCA": True}, "isCA"),
        ({"usages": ["server auth", "cert sign"]}, "usages cert sign"),
        ({"request": base64.b64encode(OF_A_CA).decode()}, "CA:TRUE"),
        ({"request": ""}, "is empty"),
        ({"request": "A" * 70_000}, "more than"),
        ({"request": "not base64!"}, "no PKCS #10"),
        ({"request": base64.b64encode(b"hello").decode()}, "no PKCS #10"),
        ({"request": None}, "is empty"),
    ],
)
def test_what_can_never_be_granted_is_refused(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        requests.read_request(request(**spec))


def test_a_signature_by_a_different_key_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER))
    place = bytes(der).index(b"web.devices.test")
    der[place] ^= 1
    with pytest.raises(InvalidRequest, match="signature"):
        requests.read_request(request(request=base64.b64encode(der).decode()))


@given(anything, anything, st.binary(max_size=300), st.integers(min_value=0, max_value=400))
def test_any_request_is_read_or_refused(
    duration: Any, usages: Any, octets: bytes, place: int
) -> None:
    der = x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER)
    changed = der[:place] + octets + der[place + len(octets) :]
    names = usages if isinstance(usages, list) else []
    found = request(request=base64.b64encode(changed).decode(), duration=duration, usages=names)
    try:
        read = requests.read_request(found)
    except InvalidRequest as exc:
        assert "\n" not in exc.reason
    else:
        assert read.duration is None or read.duration >= dt.timedelta(0)


@given(st.integers(min_value=0, max_value=10**8))
def test_durations_are_those_of_go(seconds: int) -> None:
    hours, rest = divmod(seconds, 3600)
    text = f"{hours}h{rest // 60}m{rest % 60}s"
    assert parse_duration(text) == dt.timedelta(seconds=seconds)
    if seconds % 86400:
        assert parse_duration(shown(dt.timedelta(seconds=seconds))) == dt.timedelta(seconds=seconds)


@given(anything)
def test_what_is_no_duration_is_none(value: Any) -> None:
    found = parse_duration(value)
    assert found is None or found >= dt.timedelta(0)


def test_durations_of_all_units() -> None:
    assert parse_duration("1h30m") == dt.timedelta(minutes=90)
    assert parse_duration("1.5h") == dt.timedelta(minutes=90)
    assert parse_duration("500ms") == dt.timedelta(milliseconds=500)
    assert [parse_duration(t) for t in ("", "-1h", "1", "1d", "h", "9" * 60 + "h")] == [None] * 6
    assert shown(dt.timedelta(days=90)) == "90d"
    assert shown(dt.timedelta(hours=1, seconds=5)) == "1h5s"


def test_a_review_asks_about_the_maker_that_the_api_server_wrote() -> None:
    spec = {
        "username": "ann",
        "uid": "1",
        "groups": ["staff", "system:authenticated"],
        "extra": {"scope": ["x"]},
        "signerName": "estissuers.estsuite.internal/shop.est",
    }
    review = access_review(spec, "shop", "est")["spec"]
    assert review.pop("resourceAttributes") == {
        "group": "estsuite.internal",
        "version": "*",
        "resource": "signers",
        "verb": "reference",
        "namespace": "shop",
        "name": "est",
    }
    maker = {"user": "ann", "uid": "1", "groups": spec["groups"], "extra": spec["extra"]}
    assert review == maker
    assert access_review({"username": "ann"}, "shop", "*")["spec"]["user"] == "ann"
