"""PodCertificateRequests: what may be asked, and what the API server takes as an answer."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from est_issuer import pod_requests, pods
from est_issuer.answers import Issued, Refused, UnfitCertificate
from est_issuer.errors import InvalidRequest
from est_issuer.pod_requests import next_pod_step, read_pod_request
from estsuite_testing.chains import NOON, make_request

KEY = ec.generate_private_key(ec.SECP256R1())
HOUR = dt.timedelta(hours=1)
BEGIN = NOON - dt.timedelta(seconds=1)


def empty_csr() -> bytes:
    """As the kubelet makes it."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def request(**spec: Any) -> dict[str, Any]:
    base = {
        "signerName": "estissuers.estsuite.internal/shop.est",
        "podName": "web-0",
        "podUID": "1-2-3",
        "serviceAccountName": "web",
        "serviceAccountUID": "4-5-6",
        "nodeName": "node1",
        "nodeUID": "7-8-9",
        "maxExpirationSeconds": 86400,
        "stubPKCS10Request": base64.b64encode(empty_csr()).decode(),
    }
    metadata = {"name": "req-1", "namespace": "shop", "uid": "u"}
    return {"metadata": metadata, "spec": {**base, **spec}}


def pod(**changes: Any) -> dict[str, Any]:
    spec = {"nodeName": "node1", "serviceAccountName": "web"}
    return {"metadata": {}, "spec": spec, "status": {"phase": "Running"}} | changes


def certificate(lifetime: dt.timedelta, begin: dt.datetime = BEGIN) -> x509.Certificate:
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), KEY.public_key(), 5)
    valid = builder.not_valid_before(begin).not_valid_after(begin + lifetime)
    return valid.sign(KEY, SHA256())


def test_the_empty_request_of_a_kubelet_is_read() -> None:
    found = read_pod_request(request())
    assert list(found.csr.subject) == []
    assert found.duration == dt.timedelta(days=1)


def test_the_names_are_not_those_of_the_request() -> None:
    """They were not checked: the maker of the object writes what they like."""
    _, pem = make_request("www.bank.test")
    text = base64.b64encode(pem).decode()
    with pytest.raises(InvalidRequest, match="is not empty"):
        read_pod_request(request(stubPKCS10Request=text))


@pytest.mark.parametrize(
    ("spec", "reason", "text"),
    [
        ({"unverifiedUserAnnotations": {"a.test/b": "c"}}, "InvalidUnverifiedUserAnnotations", "a.test/b"),
        ({"stubPKCS10Request": None, "pkixPublicKey": "AA==", "proofOfPossession": "AA=="}, "InvalidRequest", "Kubernetes 1.36"),
        ({"stubPKCS10Request": "AA=="}, "InvalidRequest", "stubPKCS10Request is no PKCS #10"),
    ],
)  # fmt: skip
def test_what_can_never_be_granted_is_denied(spec: Any, reason: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_pod_request(request(**spec))
    status = pod_requests.denied(raised.value, now=NOON)
    (condition,) = status["conditions"]
    assert (condition["type"], condition["status"]) == ("Denied", "True")
    assert condition["reason"] == reason
    assert text in condition["message"]


@pytest.mark.parametrize("kind", ["Issued", "Denied", "Failed"])
def test_an_answered_request_is_left_alone(kind: str) -> None:
    found = request() | {"status": {"conditions": [{"type": kind, "status": "True"}]}}
    assert next_pod_step(found) == "ignore"
    assert next_pod_step(request()) == "issue"


def test_a_certificate_is_in_the_status_with_its_times() -> None:
    made = certificate(3 * HOUR)
    status = pod_requests.answered(Issued(made, b"PEM", b"", "fine"), now=NOON)
    assert [c["type"] for c in status["conditions"]] == ["Issued"]
    assert status["certificateChain"] == "PEM"
    times = [status[name] for name in ("notBefore", "beginRefreshAt", "notAfter")]
    assert times == ["2026-06-01T11:59:59Z", "2026-06-01T13:59:59Z", "2026-06-01T14:59:59Z"]


@given(st.integers(min_value=3600, max_value=7_862_400))
def test_the_moment_of_renewal_is_one_the_api_server_takes(seconds: int) -> None:
    """Ten minutes after the beginning at the earliest, and ten before the end at the latest."""
    made = certificate(dt.timedelta(seconds=seconds))
    due, margin = pod_requests.begin_refresh_at(made), dt.timedelta(minutes=10)
    assert made.not_valid_before_utc + margin <= due <= made.not_valid_after_utc - margin


@pytest.mark.parametrize(
    ("lifetime", "begin", "text"),
    [
        (HOUR - dt.timedelta(seconds=1), BEGIN, "the pod takes 1h to 1d"),
        (dt.timedelta(days=1, seconds=1), BEGIN, "raise maxExpirationSeconds"),
        (2 * HOUR, NOON - dt.timedelta(minutes=5), "set backdate: none"),
        (2 * HOUR, NOON + dt.timedelta(minutes=6), "set backdate: none"),
    ],
)
def test_a_certificate_that_the_api_server_would_refuse_is_not_written(
    lifetime: dt.timedelta, begin: dt.datetime, text: str
) -> None:
    with pytest.raises(UnfitCertificate, match=text):
        pod_requests.require_fit(request(), certificate(lifetime, begin), now=NOON)


@pytest.mark.parametrize("lifetime", [HOUR, dt.timedelta(days=1)])
def test_the_shortest_and_the_longest_fit(lifetime: dt.timedelta) -> None:
    pod_requests.require_fit(request(), certificate(lifetime), now=NOON)


@pytest.mark.parametrize(
    ("refused", "kind", "reason"),
    [
        (Refused("no", "client.refused", 403, "policy.names"), "Denied", "RefusedByServer"),
        (Refused("no", "client.refused", 400, "profile.key_algorithm"), "Denied", "UnsupportedKeyType"),
        (Refused("no", "client.refused", 401, "auth.failed"), "Failed", "RefusedByServer"),
        (Refused("no", "issuer.certificate"), "Failed", "UnfitCertificate"),
    ],
)  # fmt: skip
def test_a_refusal_is_denied_where_it_is_the_policys(
    refused: Refused, kind: str, reason: str
) -> None:
    status = pod_requests.answered(refused, now=NOON)
    assert {*status} == {"conditions"}
    (condition,) = status["conditions"]
    assert (condition["type"], condition["reason"]) == (kind, reason)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"spec": {"nodeName": "node2", "serviceAccountName": "web"}}, "does not run on node node1"),
        ({"spec": {"serviceAccountName": "web"}}, "does not run on node node1"),
        ({"spec": {"nodeName": "node1", "serviceAccountName": "x"}}, "service account web"),
        ({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}, "mirror pod"),
        ({"status": {"phase": "Succeeded"}}, "has ended"),
    ],
)  # fmt: skip
def test_a_pod_that_is_not_the_one_of_the_request(changes: Any, text: str) -> None:
    assert text in pods.pod_differs(pod(**changes), request()["spec"])
    assert pods.pod_differs(pod(), request()["spec"]) == ""


def test_a_token_ends_with_its_pod() -> None:
    spec = pods.token_request(request()["spec"], "est")["spec"]
    assert spec["audiences"] == ["est"]
    assert (spec["boundObjectRef"]["name"], spec["boundObjectRef"]["uid"]) == ("web-0", "1-2-3")
